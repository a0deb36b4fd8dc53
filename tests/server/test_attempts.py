"""How attempts end, in whatever order their legs do: none stays open without a leg that runs or is to come back."""

from __future__ import annotations

import pytest

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Fault, JobState, LegState
from consortium.server.core import Core
from consortium.state import jobs
from consortium.state.evict import evict
from tests.server.conftest import Fed
from tests.server.placed import RESULT, Running


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
