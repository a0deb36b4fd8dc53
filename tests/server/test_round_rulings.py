"""Admins' rulings in the machine of rounds: from when they hold, and whom they leave in."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.job import JobState, LegState
from consortium.domain.training import RoundPhase, Ruling
from consortium.errors import ConflictError, ForbiddenError, VerificationError
from consortium.keys.signing import sign_value
from consortium.server import rounds as machine
from consortium.server import rulings
from consortium.state import jobs, rounds
from tests.server.played import ADMIN, CLAIMS, GRACE_MS, SITES, Play


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
