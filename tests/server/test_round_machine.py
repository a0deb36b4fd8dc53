"""The server's rounds under a network that loses, delays, repeats and reorders whatever sites send.

The state, its transactions and the machine are the real ones; the network and the clock are played.
"""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from consortium.domain.codec import from_json, to_json
from consortium.domain.job import JobKind, JobState, LegState
from consortium.domain.partner import Person, Role
from consortium.domain.training import Commit, Round, RoundPhase, Ruling, Settlement, Verdict
from consortium.errors import ConflictError, ForbiddenError, UsageError, VerificationError
from consortium.keys.roster import Rosters
from consortium.keys.signing import SigningKey, sign_value
from consortium.keys.tokens import Claims
from consortium.server import evictions, rulings
from consortium.server import rounds as machine
from consortium.server.core import Core
from consortium.state import Database, jobs, records, rounds, tables
from consortium.state.data import agree, agreements
from consortium.state.rounds import first_open
from consortium.train import disputes
from consortium.train.rounds import check_certificate, left_out
from tests.state.test_jobs import make_job, place, store

SITES = ("de-1", "fr-1", "uy-1")
KEYS = {site: SigningKey.generate() for site in SITES}
ADMIN = SigningKey.generate()
CLAIMS = Claims(subject="fr/bruno", roles=(Role.ADMIN,), partner="fr", expires_ms=2**50)
GRACE_MS, ROUNDS = 1_000, 3
REASONS = ("", "", "", "outlier", "missing")


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("rounds")
    db = Database(f"sqlite:///{folder / 'state.db'}")
    clock = SimpleNamespace(now=1_000)
    known = {site: SimpleNamespace(id=site, signing_key=key.public) for site, key in KEYS.items()}
    admin = Person(id="fr/bruno", name="Bruno", roles=(Role.ADMIN,), signing_key=ADMIN.public)
    yield Core(
        settings=SimpleNamespace(round_grace_ms=GRACE_MS),  # type: ignore[arg-type]  # all that rounds read of them
        db=db,
        ledger=None,  # type: ignore[arg-type]  # records wait in the outbox
        key=SigningKey.generate(),
        trust=None,  # type: ignore[arg-type]
        clock=SimpleNamespace(now_ms=lambda: clock.now, at=clock),  # type: ignore[arg-type]
        contacts=None,  # type: ignore[arg-type]
        files=SimpleNamespace(current=SimpleNamespace(site=known.__getitem__, rosters=Rosters({admin.id: admin}))),  # type: ignore[arg-type]
        incarnation=7,
    )
    db.close()
    shutil.rmtree(folder)


@dataclass
class Play:
    """One job's rounds; `random` is the network."""

    core: Any
    random: random.Random
    quarantine: int
    ruled: bool = False
    quorum: int = 2
    resumed: bool = False
    flight: list[Callable[[], None]] = field(default_factory=list)
    certificates: dict[int, Any] = field(default_factory=dict)
    said: dict[tuple[str, int, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        screen = {"clip": 2.0, "quarantine": self.quarantine, "clip_window": 4} if self.quarantine else {}
        job = make_job()
        params = {"outer": {"rounds": ROUNDS, "inner_steps": 5, "quorum": self.quorum, "screen": screen}}
        params["start"] = {"resume": self.resumed}
        spec = type(job.spec)(**{**_fields(job.spec), "kind": JobKind.PRETRAIN, "params": params, "min_sites": 2})
        self.job = store(self.core.db, _with(job, spec=spec, target_sites=SITES)).id
        place(self.core.db, _with(job, spec=spec), sites=SITES)
        with self.core.db.write() as connection:
            jobs.start_attempt(connection, jobs.find_job(connection, self.job).attempt.id, 10)

    # -- what sites send: the same message has the same content, however often it is sent ---------------------------

    def commit(self, site: str, number: int) -> Commit:
        norm = float(1 + (hash_of(site, number) % 7)).hex()
        return sign_value(KEYS[site], Commit(job=self.job, round=number, site=site, tokens=100, steps=5,
                                             digest=f"sha256:{site}{number}", norm=norm, loss="0x1p+1"))  # fmt: skip

    def judge(self, judge: str, number: int) -> tuple[Verdict, ...]:
        given = []
        for commit in self.read(number).commits:
            reason = self.said.setdefault((judge, number, commit.site), self.random.choice(REASONS))
            given.append(sign_value(KEYS[judge], Verdict(
                job=self.job, round=number, judge=judge, site=commit.site, digest=commit.digest,
                accept=not reason, reason=reason, norm=commit.norm)))  # fmt: skip
        return tuple(given)

    def send(self, site: str, number: int) -> None:
        """Put into flight whatever the site would send now, as often as it tries again."""
        current = self.read(number)
        if current.phase is RoundPhase.OPEN or all(one.site != site for one in current.commits):
            commit = self.commit(site, number)
            self.flight.append(lambda: self._write(machine.take_commit, site, commit))
        if current.phase is RoundPhase.JUDGING:
            given_ = self.judge(site, number)
            self.flight.append(lambda: self._write(machine.take_verdicts, site, self.job, given_))
        if current.phase is RoundPhase.CERTIFIED:
            self.flight.append(lambda: self._agree(site, number))

    def _agree(self, site: str, number: int) -> None:
        self.publish(site, f"outer/{number}", f"sha256:outer{number}")

    def publish(self, site: str, topic: str, digest: str) -> None:
        with self.core.db.write() as connection:
            now_ms = self.core.clock.now_ms()
            agree(connection, job=self.job, topic=topic, site=site, digest=digest, signature="", now_ms=now_ms)

    def published(self, topic: str) -> dict[str, str]:
        with self.core.db.read() as connection:
            return agreements(connection, self.job, topic)

    def write(self, call: Any, *given_: Any) -> None:
        with self.core.db.write() as connection:
            call(self.core, connection, *given_)

    def _write(self, call: Any, *given_: Any) -> None:
        # Too late, too early, or said already: the site learns it and goes on.
        with contextlib.suppress(ConflictError, UsageError):
            self.write(call, *given_)

    def rule(self) -> None:
        """An admin rules on a site from the next round on; what may not be is refused."""
        with self.core.db.read() as connection:
            first = first_open(connection, self.job)
        action = self.random.choice(["reject", "readmit", "withdraw"])
        ruling = Ruling(job=self.job, round=first + self.random.randrange(2), site=self.random.choice(SITES),
                        action=action, reason="asked to", by="fr/bruno")  # fmt: skip
        with contextlib.suppress(ConflictError):
            self.write(rulings.take_ruling, CLAIMS, sign_value(ADMIN, ruling))

    def _stop_the_withdrawn(self) -> None:
        rulings.withdraw_due(self.core)
        with self.core.db.write() as connection:
            job = jobs.find_job(connection, self.job)
            for leg in job.attempt.legs if job.attempt else ():
                if leg.state is LegState.STOPPING:
                    evictions.stopped(self.core, connection, leg, LegState.STOPPED, self.core.clock.now_ms(), None)

    # -- the network, and what must hold whatever it does ---------------------------------------------------------

    def step(self, number: int) -> None:
        match self.random.randrange(11):
            case 10 if self.ruled:
                self.rule()
            case 0 | 1 | 2:
                self.send(
                    self.random.choice(SITES), self.random.choice([number, number, max(1, number - 1), number + 1])
                )
            case 3 | 4 | 5 if self.flight:
                self.flight.pop(self.random.randrange(len(self.flight)))()
            case 6 if self.flight:
                self.random.choice(self.flight)()
            case 7 if self.flight:
                self.flight.pop(self.random.randrange(len(self.flight)))
            case _:
                self.core.clock.at.now += self.random.choice([1, GRACE_MS])
                advance(self.core)
                self._stop_the_withdrawn()
                self.holds()

    def holds(self) -> None:
        for number in range(1, ROUNDS + 1):
            current = self.read(number)
            if current.certificate is None:
                assert number not in self.certificates, "a certificate does not go away"
                continue
            assert self.certificates.setdefault(number, current.certificate) == current.certificate, "only one"
            check_certificate(current, current.certificate.previous_outer)
            parts = current.certificate.contributions
            out = left_out(number, current.rulings, current.certificate.standing)
            assert not {part.site for part in parts} & out, "who is left out does not count"
            assert [part.site for part in parts] == sorted({part.site for part in parts}), "each site once"
            for part in parts:
                assert part.digest == f"sha256:{part.site}{number}"
                yes = [v for v in current.verdicts if v.site == part.site and v.accept and v.digest == part.digest]
                assert 2 * len({v.judge for v in yes}) > len({c.site for c in current.commits} - out)

    def read(self, number: int) -> Round:
        with self.core.db.read() as connection:
            stored = rounds.read(connection, self.job, number)
            return stored or machine.read_round(self.core, connection, self.job, number, "")


def advance(core: Any) -> None:
    """Move rounds on; an error in one job's round, which the server only logs, fails the test."""
    said: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = said.append  # type: ignore[method-assign]
    machine.log.addHandler(handler)
    try:
        machine.advance_all(core)
    finally:
        machine.log.removeHandler(handler)
    assert [record.getMessage() for record in said] == []


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _with(value: Any, **changes: Any) -> Any:
    return type(value)(**{**_fields(value), **changes})


def hash_of(site: str, number: int) -> int:
    return sum(site.encode()) * 31 + number * 7


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), quarantine=st.sampled_from([0, 1]), ruled=st.booleans())
def test_whatever_the_network_does_there_is_one_certificate_and_its_verdicts_imply_it(core, seed, quarantine, ruled):
    play = Play(core, random.Random(seed), quarantine, ruled)
    for site in SITES:
        play.publish(site, "outer/0", "sha256:begun")
    number = 1
    for _ in range(60):
        play.step(number)
        if play.read(number).phase is RoundPhase.CLOSED and number < ROUNDS:
            number += 1
    # Once the network is well again, whatever is open is closed.
    for _ in range(12):
        if play.read(number).phase is RoundPhase.CLOSED:
            break
        for site in SITES:
            play.send(site, number)
        play.random.shuffle(play.flight)
        while play.flight:
            play.flight.pop()()
        core.clock.at.now += GRACE_MS
        advance(core)
        play.holds()
    assert play.read(number).phase is RoundPhase.CLOSED


def test_a_leg_that_was_started_anew_changes_nothing_of_a_commit_once_the_set_is_fixed(core):
    play = Play(core, random.Random(0), 0)
    for site in SITES:
        play.write(machine.take_commit, site, play.commit(site, 1))
    machine.advance_all(core)
    assert play.read(1).phase is RoundPhase.JUDGING
    with core.db.write() as connection:
        connection.execute(tables.legs.update().where(tables.legs.c.job == play.job).values(incarnation=8))
    fixed = play.read(1).commits
    play.write(machine.take_commit, "fr-1", play.commit("fr-1", 1))
    for changed in ({"tokens": 10**9}, {"norm": (1e-9).hex()}, {"loss": (0.0).hex()}, {"steps": 6}):
        lie = sign_value(KEYS["fr-1"], replace(play.commit("fr-1", 1), **changed))
        with pytest.raises(ConflictError, match="takes no commits"):
            play.write(machine.take_commit, "fr-1", lie)
    assert play.read(1).commits == fixed


def test_nobody_commits_to_what_another_committed_but_for_what_honest_sites_have_in_common(core):
    play = Play(core, random.Random(0), 0)
    made = play.commit("de-1", 1)
    play.write(machine.take_commit, "de-1", made)
    copy = sign_value(KEYS["uy-1"], replace(made, site="uy-1"))
    with pytest.raises(ConflictError, match="de-1 committed"):
        play.write(machine.take_commit, "uy-1", copy)
    with core.db.read() as connection:
        seen = {who: machine.read_round(core, connection, play.job, 1, who) for who in ("de-1", "uy-1", "fr/bruno")}
    assert {who: one.commits for who, one in seen.items()} == {"de-1": (made,), "uy-1": (), "fr/bruno": ()}
    assert {one.committed for one in seen.values()} == {("de-1",)}
    play.write(machine.take_commit, "uy-1", play.commit("uy-1", 1))
    with core.db.write() as connection:
        connection.execute(tables.legs.update().where(tables.legs.c.job == play.job).values(incarnation=8))
    with pytest.raises(ConflictError, match="de-1 committed"):
        play.write(machine.take_commit, "uy-1", copy)
    for site in SITES:
        same = replace(play.commit(site, 1), digest="sha256:not-finite", norm="nan")
        play.write(machine.take_commit, site, sign_value(KEYS[site], same))
    machine.advance_all(core)
    with core.db.read() as connection:
        fixed = machine.read_round(core, connection, play.job, 1, "uy-1")
    assert (fixed.phase, len(fixed.commits), fixed.committed) == (RoundPhase.JUDGING, 3, ())


def test_who_says_nothing_of_its_outer_state_is_waited_for_until_the_grace_is_over(core):
    play = certified(core)
    play.publish("de-1", "outer/1", "sha256:one")
    for _ in range(2):
        core.clock.at.now += GRACE_MS
        advance(core)
    assert play.read(1).phase is RoundPhase.CERTIFIED, "one of three is not enough, however long it takes"
    play.publish("fr-1", "outer/1", "sha256:one")
    advance(core)
    assert play.read(1).phase is RoundPhase.CERTIFIED
    core.clock.at.now += GRACE_MS
    advance(core)
    assert play.read(1).phase is RoundPhase.CLOSED


@pytest.mark.parametrize(("resumed", "lies", "begins"), [
    (False, {"fr-1": "sha256:evil", "uy-1": "sha256:evil"}, "sha256:first"),
    (True, {"de-1": "sha256:evil"}, "sha256:first"),
])  # fmt: skip
def test_whose_state_training_begins_with_is_no_liars_to_say(core, resumed, lies, begins):
    play = Play(core, random.Random(0), 0, resumed=resumed)
    for site in SITES:
        play.publish(site, "outer/0", lies.get(site, "sha256:first"))
        play.write(machine.take_commit, site, play.commit(site, 1))
    advance(core)
    for site in SITES:
        play.write(machine.take_verdicts, site, play.job, play.judge(site, 1))
    advance(core)
    assert play.read(1).certificate.previous_outer == begins


def test_without_a_quorum_a_round_waits_for_every_site(core):
    play = Play(core, random.Random(0), 0, quorum=0)
    for site in SITES[:2]:
        play.write(machine.take_commit, site, play.commit(site, 1))
    for _ in range(3):
        core.clock.at.now += GRACE_MS
        advance(core)
    assert play.read(1).phase is RoundPhase.OPEN
    play.write(machine.take_commit, SITES[2], play.commit(SITES[2], 1))
    advance(core)
    assert play.read(1).phase is RoundPhase.JUDGING


def test_a_megabyte_of_reason_is_refused(core):
    play = certified(core)
    long = sign_value(KEYS["fr-1"], replace(play.judge("fr-1", 1)[0], accept=False, reason="x" * 1_000_000))
    with pytest.raises(UsageError, match="has 1000000 characters"):
        play.write(machine.take_verdicts, "fr-1", play.job, (long,))


def test_a_job_whose_round_cannot_be_moved_on_keeps_no_other_from_it(core):
    plays = Play(core, random.Random(0), 0), Play(core, random.Random(0), 0)
    for play in plays:
        for site in SITES:
            play.write(machine.take_commit, site, play.commit(site, 1))
    advance(core)
    for play in plays:
        for site in SITES:
            play.write(machine.take_verdicts, site, play.job, play.judge(site, 1))
    broken = tables.jobs.c.id == plays[0].job
    with core.db.write() as connection:
        spec = connection.execute(select(tables.jobs.c.spec).where(broken)).scalar()
        spec["params"]["outer"]["screen"] = {"quarantine": -1}
        connection.execute(tables.jobs.update().where(broken).values(spec=spec))
    machine.advance_all(core)
    assert [play.read(1).phase for play in plays] == [RoundPhase.JUDGING, RoundPhase.CERTIFIED]


def test_rulings_hold_from_an_open_round_and_a_withdrawn_site_keeps_what_it_contributed(core):
    play = Play(core, random.Random(0), 0)

    def said(action: str, site: str, number: int, **changes: Any) -> Ruling:
        one = Ruling(job=play.job, round=number, site=site, action=action, reason="why", by="fr/bruno")
        return sign_value(ADMIN, replace(one, **changes))

    def whole_round(number: int) -> tuple[str, ...]:
        for _ in range(4):
            for site in SITES:
                play.send(site, number)
            while play.flight:
                play.flight.pop()()
            machine.advance_all(core)
            play._stop_the_withdrawn()
        assert play.read(number).phase is RoundPhase.CLOSED
        parts = play.read(number).certificate.contributions
        return tuple(part.site for part in parts)

    with pytest.raises(VerificationError, match="does not hold"):
        play.write(rulings.take_ruling, CLAIMS, replace(said("reject", "de-1", 1), round=2))
    foreign = replace(CLAIMS, subject="de/bernd", partner="de")
    with pytest.raises(ForbiddenError, match="not de/bernd's to decide"):
        play.write(rulings.take_ruling, foreign, said("reject", "uy-1", 1, by="de/bernd"))
    play.said |= {(judge, number, site): "" for judge in SITES for site in SITES for number in (1, 2, 3)}
    play.write(rulings.take_ruling, CLAIMS, said("reject", "de-1", 1))
    assert play.read(1).expected == ("fr-1", "uy-1"), "the round waits for nobody who is left out"
    assert whole_round(1) == ("fr-1", "uy-1")
    with pytest.raises(ConflictError, match="no rulings any more"):
        play.write(rulings.take_ruling, CLAIMS, said("readmit", "de-1", 1))
    play.write(rulings.take_ruling, CLAIMS, said("readmit", "de-1", 2))
    play.write(rulings.take_ruling, CLAIMS, said("withdraw", "uy-1", 3))
    with pytest.raises(ConflictError, match="the job needs 2"):
        play.write(rulings.take_ruling, CLAIMS, said("withdraw", "de-1", 3))
    assert whole_round(2) == SITES
    with core.db.read() as connection:
        job = jobs.find_job(connection, play.job)
        assert rounds.left_for_good(connection)[play.job] == {"uy-1"}, "nor is what lies there read elsewhere"
    assert {leg.site: leg.state for leg in job.attempt.legs}["uy-1"] is LegState.STOPPED
    assert job.target_sites == ("de-1", "fr-1"), "nor would another attempt go there"
    assert whole_round(3) == ("de-1", "fr-1")
    assert "uy-1" in {part.site for part in play.read(2).certificate.contributions}, "what it gave still counts"


def test_a_ruling_leaves_somebody_in_later_rounds_too_for_which_others_were_rejected_before(core):
    play = Play(core, random.Random(0), 0)

    def reject(site: str, number: int) -> None:
        one = Ruling(job=play.job, round=number, site=site, action="reject", reason="why", by="fr/bruno")
        play.write(rulings.take_ruling, CLAIMS, sign_value(ADMIN, one))

    reject("fr-1", 2)
    reject("de-1", 1)
    with pytest.raises(ConflictError, match="0 sites would be left in round 2, the job needs 1"):
        reject("uy-1", 1)
    reject("fr-1", 1)


def test_a_ruling_leaves_somebody_besides_who_was_withdrawn_or_given_up(core):
    play = Play(core, random.Random(0), 0)

    def rule(action: str, site: str, number: int) -> None:
        one = Ruling(job=play.job, round=number, site=site, action=action, reason="why", by="fr/bruno")
        play.write(rulings.take_ruling, CLAIMS, sign_value(ADMIN, one))

    rule("readmit", "uy-1", 3)
    rule("withdraw", "uy-1", 1)
    rule("reject", "de-1", 3)
    with pytest.raises(ConflictError, match="0 sites would be left in round 3, the job needs 1"):
        rule("reject", "fr-1", 3)
    play = Play(core, random.Random(0), 0)
    with core.db.write() as connection:
        job = jobs.find_job(connection, play.job)
        jobs.set_leg(connection, job.attempt.legs[0], LegState.FAILED, 10)
        jobs.update_job(connection, job, now_ms=10, state=JobState.RUNNING)
    with pytest.raises(ConflictError, match="1 sites would be left in round 2, the job needs 2"):
        rule("withdraw", "uy-1", 2)
    rule("reject", "uy-1", 2)
    with pytest.raises(ConflictError, match="0 sites would be left in round 2, the job needs 1"):
        rule("reject", "fr-1", 2)


def test_a_commit_of_a_site_in_quarantine_makes_no_quorum(core):
    play = Play(core, random.Random(0), quarantine=1)
    play.said |= {(judge, 1, site): "outlier" if site == "uy-1" else "" for judge in SITES for site in SITES}
    for _ in range(4):
        for site in SITES:
            play.send(site, 1)
        while play.flight:
            play.flight.pop()()
        machine.advance_all(core)
    assert play.read(1).phase is RoundPhase.CLOSED
    for site in ("de-1", "uy-1"):
        play.write(machine.take_commit, site, play.commit(site, 2))
    for _ in range(3):
        core.clock.at.now += GRACE_MS
        machine.advance_all(core)
    assert play.read(2).phase is RoundPhase.OPEN, "one of the two does not count"
    play.write(machine.take_commit, "fr-1", play.commit("fr-1", 2))
    machine.advance_all(core)
    assert play.read(2).phase is RoundPhase.JUDGING


def certified(core: Core) -> Play:
    play = Play(core, random.Random(0), 0)
    play.said |= {(judge, number, site): "" for judge in SITES for site in SITES for number in (1, 2)}
    for _ in range(3):
        for site in SITES:
            play.send(site, 1)
            if play.read(1).phase is not RoundPhase.CERTIFIED:
                while play.flight:
                    play.flight.pop()()
        machine.advance_all(core)
    assert play.read(1).phase is RoundPhase.CERTIFIED
    play.flight.clear()
    return play


def says(play: Play, site: str, outer: str, momentum: str = "sha256:m", certificate: str = "") -> None:
    """A site publishes what its second computation of round 1 came to."""
    follows = certificate or disputes.certificate_digest(play.read(1).certificate)
    for part, topic in disputes.topics(1).items():
        digest = {"certificate": follows, "momentum": momentum, "outer": outer}[part]
        play.publish(site, topic, digest)


def test_who_differs_is_settled_by_recomputation_and_the_round_closes_with_the_state_that_holds(core):
    play = certified(core)
    for site, digest in zip(SITES, ("sha256:true", "sha256:wrong", "sha256:true"), strict=True):
        play.publish(site, "outer/1", digest)
    machine.advance_all(core)
    assert play.read(1).phase is RoundPhase.CERTIFIED, "nobody recomputed it yet"
    says(play, "de-1", "sha256:true")
    says(play, "uy-1", "sha256:true")
    machine.advance_all(core)
    assert play.read(1).phase is RoundPhase.CERTIFIED, "the third is waited for, as long as its grace lasts"
    core.clock.at.now += GRACE_MS
    machine.advance_all(core)
    closed = play.read(1)
    assert closed.phase is RoundPhase.CLOSED
    assert closed.settlement == Settlement(
        parties=SITES, outer="sha256:true", momentum="sha256:m", agree=("de-1", "uy-1"), differ=("fr-1",)
    )
    assert from_json(Round, to_json(closed)) == closed
    parts = {part: play.published(topic) for part, topic in disputes.topics(1).items()}
    assert disputes.check_settlement(closed, disputes.recomputations(parts)) == closed.settlement
    forged = replace(closed, settlement=replace(closed.settlement, outer="sha256:wrong", agree=("fr-1", "uy-1")))
    with pytest.raises(VerificationError, match="does not follow"):
        disputes.check_settlement(forged, disputes.recomputations(parts))
    with core.db.read() as connection:
        (record,) = [p for *_, p in records.pending_outbox(connection, 5_000) if p["type"] == "dispute"]
    assert record["body"]["settlement"]["differ"] == ["fr-1"]
    assert set(record["body"]["signed"]["outer"]) == {"de-1", "uy-1"}
    for _ in range(3):
        for site in SITES:
            play.send(site, 2)
        while play.flight:
            play.flight.pop()()
        machine.advance_all(core)
    assert play.read(2).certificate.previous_outer == "sha256:true"


@pytest.mark.parametrize(
    "said",
    [
        {"de-1": ("sha256:true",)},
        {"de-1": ("sha256:true",), "fr-1": ("sha256:wrong",), "uy-1": ("sha256:else",)},
        {"de-1": ("sha256:true",), "uy-1": ("sha256:true", "sha256:another momentum")},
        {"de-1": ("sha256:true",), "uy-1": ("sha256:true", "sha256:m", "sha256:another certificate")},
    ],
    ids=["one alone", "all differ", "other momenta", "another certificate"],
)
def test_what_recomputation_does_not_decide_fails_the_job(core, said):
    play = certified(core)
    for site, digest in zip(SITES, ("sha256:true", "sha256:wrong", "sha256:true"), strict=True):
        play.publish(site, "outer/1", digest)
    for site, parts in said.items():
        says(play, site, *parts)
    for _ in range(2):
        machine.advance_all(core)
        core.clock.at.now += GRACE_MS
    assert play.read(1).phase is RoundPhase.DISPUTED
    with core.db.read() as connection:
        job = jobs.find_job(connection, play.job)
    assert job.state is JobState.FAILED
    assert "undecided" in job.reason.message


def test_who_comes_later_says_nothing_of_what_training_began_with(core):
    play = Play(core, random.Random(0), 0)
    for site in SITES:
        play.publish(site, "outer/0", "sha256:begun")
        play.write(machine.take_commit, site, play.commit(site, 1))
    machine.advance_all(core)
    for site in SITES:
        play.write(machine.take_verdicts, site, play.job, play.judge(site, 1))
    machine.advance_all(core)
    check = partial(_checked, core, play.job, "outer/0")
    check("sha256:else")
    for site in SITES:
        play.publish(site, "outer/1", "sha256:one")
    machine.advance_all(core)
    assert play.read(1).phase is RoundPhase.CLOSED
    check("sha256:begun")
    with pytest.raises(ConflictError, match="round 1 began with the outer state sha256:begun, not sha256:else"):
        check("sha256:else")


def _checked(core: Core, job: str, topic: str, digest: str) -> None:
    with core.db.read() as connection:
        machine.check_agreement(connection, job, topic, digest)


def test_a_word_that_differs_leaves_everybody_the_whole_grace_however_late_it_comes(core):
    play = certified(core)
    for site in ("de-1", "fr-1"):
        play.publish(site, "outer/1", "sha256:true")
    machine.advance_all(core)
    core.clock.at.now += GRACE_MS - 1
    play.publish("uy-1", "outer/1", "sha256:wrong")
    machine.advance_all(core)
    core.clock.at.now += GRACE_MS - 1
    machine.advance_all(core)
    assert play.read(1).phase is RoundPhase.CERTIFIED
    for site in ("de-1", "fr-1"):
        says(play, site, "sha256:true")
    core.clock.at.now += 1
    machine.advance_all(core)
    assert play.read(1).settlement.differ == ("uy-1",)


def test_a_round_waits_for_no_verdict_on_a_site_that_is_left_out(core):
    play = Play(core, random.Random(0), 0)
    out = Ruling(job=play.job, round=1, site="uy-1", action="reject", reason="x", by="fr/bruno")
    play.write(rulings.take_ruling, CLAIMS, sign_value(ADMIN, out))
    for site in SITES:
        play.write(machine.take_commit, site, play.commit(site, 1))
    machine.advance_all(core)
    assert [one.site for one in play.read(1).commits] == [*SITES]
    for judge in ("de-1", "fr-1"):
        play.said |= {(judge, 1, site): "" for site in SITES}
        mine = tuple(one for one in play.judge(judge, 1) if one.site != "uy-1")
        play.write(machine.take_verdicts, judge, play.job, mine)
    machine.advance_all(core)
    assert [part.site for part in play.read(1).certificate.contributions] == ["de-1", "fr-1"]


@pytest.mark.parametrize("name", ["loss", "norm"])
def test_a_commit_whose_loss_or_norm_is_no_number_is_refused(core, name):
    play = Play(core, random.Random(0), 0)
    for value in ("zzz", "", "0x1p99999"):
        given = sign_value(KEYS["de-1"], replace(play.commit("de-1", 1), signature="", **{name: value}))
        with pytest.raises(UsageError, match=f"{name} .* is no hexadecimal number"):
            play.write(machine.take_commit, "de-1", given)
    nan = sign_value(KEYS["de-1"], replace(play.commit("de-1", 1), signature="", **{name: "nan"}))
    play.write(machine.take_commit, "de-1", nan)


def test_tokens_that_no_leg_can_have_read_are_no_commit(core):
    """Weights and FLOPs follow from them, those of refused commits too."""
    job = make_job()
    model = {"name": "tiny", "dim": 8, "layers": 1, "heads": 2, "context": 10}
    outer = {"rounds": 1, "inner_steps": 5}
    params = {"outer": outer, "data": {"batch_size": 2}, "model": model, "optim": {"lr": 0.01}}
    job = _with(job, spec=_with(job.spec, kind=JobKind.PRETRAIN, params=params))
    job = _with(job, id=store(core.db, job).id)
    place(core.db, job, sites=SITES)
    workers = job.spec.resources.gpus // job.spec.resources.gpus_per_worker

    def commit(tokens: int) -> None:
        given = Commit(job=job.id, round=1, site="de-1", tokens=tokens, steps=5, digest="d", norm="0x1p0", loss="0x1p0")
        with core.db.write() as connection:
            machine.take_commit(core, connection, "de-1", sign_value(KEYS["de-1"], given))

    for tokens in (10**30, 5 * 4 * 2 * 10 * workers + 1, 0, -1):
        with pytest.raises(UsageError, match=r"no leg of the job|a commit of (0|-1) tokens"):
            commit(tokens)
    commit(5 * 2 * 10 * workers)
