"""One job's rounds with real state, transactions and machine; the network and the clock are played."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from consortium.domain.job import JobKind, LegState
from consortium.domain.partner import Role
from consortium.domain.training import Commit, Round, RoundPhase, Ruling, Verdict
from consortium.errors import ConflictError, UsageError
from consortium.keys.signing import SigningKey, sign_value
from consortium.keys.tokens import Claims
from consortium.server import evictions, rulings
from consortium.server import rounds as machine
from consortium.server.core import Core
from consortium.state import jobs, rounds
from consortium.state.data import agree, agreements
from consortium.state.rounds import first_open
from consortium.train.rounds import check_certificate, left_out
from tests.state.test_jobs import make_job, place, store

SITES = ("de-1", "fr-1", "uy-1")


KEYS = {site: SigningKey.generate() for site in SITES}


ADMIN = SigningKey.generate()


CLAIMS = Claims(subject="fr/bruno", roles=(Role.ADMIN,), partner="fr", expires_ms=2**50)


GRACE_MS, ROUNDS = 1_000, 3


REASONS = ("", "", "", "outlier", "missing")


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
        spec = replace(job.spec, kind=JobKind.PRETRAIN, params=params, min_sites=2)
        self.job = store(self.core.db, replace(job, spec=spec, target_sites=SITES)).id
        place(self.core.db, replace(job, spec=spec), sites=SITES)
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


def hash_of(site: str, number: int) -> int:
    return sum(site.encode()) * 31 + number * 7


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
