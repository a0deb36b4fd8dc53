"""The server's rounds under a network that loses, delays, repeats and reorders whatever sites send.

The state, its transactions and the machine are the real ones; the network and the clock are played.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from consortium.domain.job import JobKind
from consortium.domain.training import Commit, RoundPhase, Ruling
from consortium.errors import ConflictError, UsageError
from consortium.keys.signing import sign_value
from consortium.server import rounds as machine
from consortium.server import rulings
from consortium.state import tables
from tests.server.played import ADMIN, CLAIMS, GRACE_MS, KEYS, ROUNDS, SITES, Play, advance, certified
from tests.state.test_jobs import make_job, place, store


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
    job = replace(job, spec=replace(job.spec, kind=JobKind.PRETRAIN, params=params))
    job = replace(job, id=store(core.db, job).id)
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
