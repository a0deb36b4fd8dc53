"""How attempts end, in whatever order their legs do: none stays open without a leg that runs or is to come back."""

from __future__ import annotations

import pytest

from consortium.domain.data import Artifact, ArtifactClass
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Fault, JobState, LegState
from consortium.domain.partner import Role, SiteState
from consortium.domain.training import Commit, Ruling
from consortium.errors import ConflictError
from consortium.keys.signing import sign_value
from consortium.keys.tokens import Claims
from consortium.server import faults, loop, rulings
from consortium.server.core import Core
from consortium.state import data, jobs, nodes, rounds
from consortium.state.evict import evict
from consortium.state.sites import update_site
from tests.server.fed import Fed
from tests.server.placed import RESULT, Running

ADMIN = Claims(subject="fr/bruno", partner="fr", roles=(Role.ADMIN,), expires_ms=1 << 47)


@pytest.mark.parametrize("last", ["de-1", "fr-1"])
def test_an_evicted_job_waits_again_whichever_of_its_legs_ends_last(parts: tuple[Core, Fed], last: str) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", min_sites=2)
    with core.db.write() as connection:
        taken = Reason(code=ReasonCode.PREEMPTED, message="taken back")
        assert len(evict(connection, running.job, taken, core.clock.now_ms())) == 2
    if last == "fr-1":
        running.says("de-1", LegState.STOPPED)
    running.says("fr-1", LegState.SUCCEEDED, result=RESULT)
    if last == "de-1":
        running.says("de-1", LegState.STOPPED)
    assert (running.now().state, running.attempt_open()) == (JobState.PENDING, False)


def test_a_job_that_gave_up_a_site_and_then_lost_another_for_good_is_placed_again(parts: tuple[Core, Fed]) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", "uy-1", min_sites=2)
    with core.db.write() as connection:
        attempt = running.now().attempt
        assert attempt is not None
        legs = {leg.site: leg for leg in attempt.legs}
        jobs.set_leg(connection, legs["de-1"], LegState.FAILED, core.clock.now_ms(), fault=Fault.SITE)
        jobs.set_leg(connection, legs["uy-1"], LegState.STOPPING, core.clock.now_ms(), reason="withdrawn")
    running.says("uy-1", LegState.STOPPED)
    assert (running.now().state, running.attempt_open()) == (JobState.RUNNING, True), "fr-1 is at work"
    running.says("fr-1", LegState.SUCCEEDED, result=RESULT)
    job = running.now()
    assert (job.state, running.attempt_open()) == (JobState.PENDING, False)
    assert job.reason is not None
    assert "de-1 failed, fr-1 succeeded, uy-1 stopped" in job.reason.message


def withdraw(running: Running, fed: Fed, site: str, number: int) -> None:
    one = Ruling(job=running.job, round=number, site=site, action="withdraw", reason="asked to", by="fr/bruno")
    with running.core.db.write() as connection:
        rulings.take_ruling(running.core, connection, ADMIN, sign_value(fed.people["fr/bruno"], one))
    rulings.withdraw_due(running.core)


def failed_too_often(running: Running, site: str) -> None:
    attempt = running.now().attempt
    assert attempt is not None
    (leg,) = [leg for leg in attempt.legs if leg.site == site]
    with running.core.db.write() as connection:
        for _ in range(running.core.settings.retry.max_tries):
            nodes.add_fault(connection, leg, Fault.SITE, "it broke", running.core.clock.now_ms(), nodes=())


@pytest.mark.parametrize("leaves", ["de-1", "uy-1"])
def test_a_gang_that_a_site_is_withdrawn_from_before_it_starts_is_placed_again(
    parts: tuple[Core, Fed], leaves: str
) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", "uy-1", min_sites=2, runs=False)
    for site in ("de-1", "fr-1"):
        running.says(site, LegState.HELD)
    withdraw(running, fed, leaves, 1)
    attempt = running.now().attempt
    assert attempt is not None
    assert {leg.state for leg in attempt.legs} == {LegState.STOPPING}, "without it the gang would never start"
    for leg in attempt.legs:
        running.says(leg.site, LegState.STOPPED)
    job = running.now()
    assert (job.state, running.attempt_open()) == (JobState.PENDING, False)
    assert set(job.target_sites) == {"de-1", "fr-1", "uy-1"} - {leaves}


@pytest.mark.parametrize(("leaves", "begun", "state"), [
    ("de-1", False, JobState.PREEMPTING), ("de-1", True, JobState.RUNNING), ("uy-1", False, JobState.RUNNING),
])  # fmt: skip
def test_a_job_is_placed_again_where_the_site_is_withdrawn_whose_first_state_the_others_wait_for(
    parts: tuple[Core, Fed], leaves: str, begun: bool, state: JobState
) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", "uy-1", min_sites=2)
    if begun:
        running.publishes("de-1", "outer/0")
    withdraw(running, fed, leaves, 1)
    assert running.now().state is state


@pytest.mark.parametrize(("holds", "state"), [((), JobState.FAILED), (("uy-1",), JobState.RUNNING)])
def test_what_a_withdrawn_site_drew_counts_where_one_that_is_left_says_that_it_has_it(
    parts: tuple[Core, Fed], holds: tuple[str, ...], state: JobState
) -> None:
    core, fed = parts
    running = Running(core, fed, "fr-1", "uy-1", min_sites=1)
    for site in ("de-1", *holds):
        running.publishes(site, "outer/0")
    failed_too_often(running, "fr-1")
    running.says("fr-1", LegState.FAILED, fault=Fault.SITE, reason="it broke")
    assert running.now().state is state, "without it uy-1 would wait for what nobody draws"


@pytest.mark.parametrize(("runs", "begun", "state"), [
    (False, False, JobState.FAILED), (True, False, JobState.FAILED), (True, True, JobState.RUNNING),
])  # fmt: skip
def test_no_job_goes_on_without_a_site_that_its_other_legs_wait_for(
    parts: tuple[Core, Fed], runs: bool, begun: bool, state: JobState
) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", "uy-1", min_sites=2, runs=runs)
    if begun:
        running.publishes("de-1", "outer/0")
    failed_too_often(running, "de-1")
    running.says("de-1", LegState.FAILED, fault=Fault.SITE, reason="it broke")
    job = running.now()
    assert job.state is state
    if job.reason is not None and state is JobState.FAILED:
        assert "de-1 failed 6 times, last: it broke" in job.reason.message


def test_no_job_goes_on_with_sites_alone_that_its_rounds_do_not_hear(parts: tuple[Core, Fed]) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", "uy-1", min_sites=1)
    running.publishes("de-1", "outer/0")
    for site in ("de-1", "fr-1"):
        one = Ruling(job=running.job, round=2, site=site, action="reject", reason="asked to", by="fr/bruno")
        with core.db.write() as connection:
            rulings.take_ruling(core, connection, ADMIN, sign_value(fed.people["fr/bruno"], one))
    failed_too_often(running, "uy-1")
    running.says("uy-1", LegState.FAILED, fault=Fault.SITE, reason="it broke")
    assert running.now().state is JobState.FAILED


@pytest.mark.parametrize(("rejected", "state"), [
    (("de-1", "fr-1"), JobState.PREEMPTING), (("de-1",), JobState.RUNNING), ((), JobState.RUNNING),
])  # fmt: skip
def test_legs_that_rounds_do_not_hear_make_way_where_the_one_they_wait_for_is_to_be_tried_again_at_a_site_that_left(
    parts: tuple[Core, Fed], rejected: tuple[str, ...], state: JobState
) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", "uy-1", min_sites=1)
    running.publishes("de-1", "outer/0")
    for site in rejected:
        one = Ruling(job=running.job, round=1, site=site, action="reject", reason="asked to", by="fr/bruno")
        with core.db.write() as connection:
            rulings.take_ruling(core, connection, ADMIN, sign_value(fed.people["fr/bruno"], one))
    running.says("uy-1", LegState.FAILED, fault=Fault.SITE, reason="it broke")
    attempt = running.now().attempt
    assert attempt is not None
    with core.db.write() as connection:
        jobs.set_retry(connection, attempt.legs[2].id, 1)
        update_site(connection, "uy-1", state=SiteState.WITHDRAWN)
    loop._offer_again(core)
    assert running.now().state is state
    if state is JobState.PREEMPTING:
        for site in ("de-1", "fr-1"):
            running.says(site, LegState.STOPPED)
        assert (running.now().state, running.attempt_open()) == (JobState.PENDING, False)


def test_no_withdrawal_leaves_only_sites_that_have_yet_to_join(parts: tuple[Core, Fed]) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", min_sites=1)
    running.publishes("de-1", "outer/0")
    with pytest.raises(ConflictError, match="no site would be left in round 2 that holds what was trained: fr-1 join"):
        withdraw(running, fed, "de-1", 2)
    running.publishes("fr-1", "outer/0")
    withdraw(running, fed, "de-1", 2)


@pytest.mark.parametrize(("said", "state"), [(False, JobState.FAILED), (True, JobState.RUNNING)])
def test_no_job_goes_on_in_a_round_of_which_only_a_leg_that_was_given_up_could_say_what_it_came_to(
    parts: tuple[Core, Fed], said: bool, state: JobState
) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", "uy-1", min_sites=1)
    running.publishes("de-1", "outer/0")
    commit = Commit(
        job=running.job, round=1, site="fr-1", tokens=1, steps=1, digest="sha256:c", norm="0x1p0", loss="0x1p0"
    )
    with core.db.write() as connection:
        rounds.open_round(connection, running.job, 1, ["fr-1"])
        rounds.add_commit(connection, commit, "1", 1)
        rounds.change(connection, running.job, 1, phase="certified", fixed=["fr-1"])
    if said:
        running.publishes("fr-1", "outer/1")
    failed_too_often(running, "fr-1")
    running.says("fr-1", LegState.FAILED, fault=Fault.SITE, reason="it broke")
    assert running.now().state is state


@pytest.mark.parametrize("holds", [False, True])
def test_a_site_that_holds_nothing_when_the_others_are_through_is_not_waited_for(
    parts: tuple[Core, Fed], holds: bool
) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", min_sites=1)
    with core.db.write() as connection:
        rounds.open_round(connection, running.job, 4, ["de-1"])
        rounds.change(connection, running.job, 4, phase="closed")
    for site in ("de-1", "fr-1") if holds else ("de-1",):
        running.publishes(site, "outer/0")
    running.says("de-1", LegState.SUCCEEDED, result=RESULT)
    attempt = running.now().attempt
    assert attempt is not None
    late = {leg.site: leg.state for leg in attempt.legs}["fr-1"]
    assert late is (LegState.RUNNING if holds else LegState.STOPPING)
    running.says("fr-1", LegState.STOPPED if late is LegState.STOPPING else LegState.SUCCEEDED, result=RESULT)
    assert running.now().state is JobState.SUCCEEDED


@pytest.mark.parametrize(("sent", "leaves", "state"), [
    (False, False, JobState.FAILED), (True, False, JobState.RUNNING), (False, True, JobState.RUNNING),
])  # fmt: skip
def test_a_training_that_is_over_fails_at_once_where_too_few_sites_hold_a_state_to_end_with(
    parts: tuple[Core, Fed], sent: bool, leaves: bool, state: JobState
) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", min_sites=2)
    with core.db.write() as connection:
        rounds.open_round(connection, running.job, 4, ["de-1"])
        rounds.change(connection, running.job, 4, phase="closed")
        if sent:
            whole = Artifact(job=running.job, artifact_class=ArtifactClass.OUTER_STATE, name="outer-4", round=4,
                             sender="de-1", recipients=("fr-1",), digest="sha256:o", key="k", size_bytes=1)  # fmt: skip
            data.announce(connection, whole, 1)
    running.publishes("de-1", "outer/0")
    attempt = running.now().attempt
    assert attempt is not None
    if leaves:
        with core.db.write() as connection:
            jobs.set_leg(connection, attempt.legs[1], LegState.STOPPING, 1, reason="withdrawn")
    running.says("de-1", LegState.SUCCEEDED, result=RESULT)
    job = running.now()
    assert job.state is state
    if state is JobState.FAILED:
        assert job.reason is not None
        assert "over at 1 of the 2 sites that must succeed; fr-1 holds no state" in job.reason.message
        assert f"start.job={job.id}" in job.reason.fix


def test_a_site_in_backoff_that_holds_nothing_is_not_offered_a_training_that_is_over(parts: tuple[Core, Fed]) -> None:
    core, fed = parts
    running = Running(core, fed, "de-1", "fr-1", min_sites=1)
    with core.db.write() as connection:
        rounds.open_round(connection, running.job, 4, ["de-1"])
        rounds.change(connection, running.job, 4, phase="closed")
    running.publishes("de-1", "outer/0")
    running.says("fr-1", LegState.FAILED, fault=Fault.SITE, reason="it broke")
    running.says("de-1", LegState.SUCCEEDED, result=RESULT)
    assert running.now().state is JobState.RUNNING
    attempt = running.now().attempt
    assert attempt is not None
    with core.db.write() as connection:
        faults.offer_again(core, connection, attempt.legs[1])
    assert running.now().state is JobState.SUCCEEDED
