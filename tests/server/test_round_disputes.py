"""Outer states that differ: who is waited for, what recomputation settles, and what fails the job."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import pytest

from consortium.domain.codec import from_json, to_json
from consortium.domain.job import JobState
from consortium.domain.training import Round, RoundPhase, Settlement
from consortium.errors import ConflictError, VerificationError
from consortium.server import rounds as machine
from consortium.server.core import Core
from consortium.state import jobs, records
from consortium.train import disputes
from tests.server.played import GRACE_MS, SITES, Play, advance, certified


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
