"""What the loop sees to besides placing, on the server's own parts in this process: history, run times, dead ends."""

from __future__ import annotations

from typing import Any

import pytest

from consortium.domain.job import Job, JobState, LegState, Resources
from consortium.server import legs, upkeep
from consortium.server.core import Core
from consortium.state import jobs, shares
from consortium.state.database import put_meta
from tests.server.fed import Fed
from tests.server.placed import at_work

HOUR_MS = 3_600_000


def run(core: Core, job: Job, ran_ms: int, end: JobState = JobState.SUCCEEDED) -> None:
    """Let a job's leg run for `ran_ms` until now, and end the job."""
    now_ms = core.clock.now_ms()
    with core.db.write() as connection:
        (leg,) = job.attempt.legs if job.attempt else ()
        for state, at_ms in ((LegState.STARTING, now_ms - ran_ms), (LegState.RUNNING, now_ms - ran_ms)):
            leg = jobs.set_leg(connection, leg, state, at_ms)
        jobs.update_job(connection, jobs.find_job(connection, job.id), now_ms=now_ms, state=JobState.RUNNING)
        jobs.set_leg(connection, leg, LegState.SUCCEEDED, now_ms)
        legs.end_job(core, connection, job.id, end, None)


def history(core: Core) -> dict[str, tuple[int, int]]:
    with core.db.read() as connection:
        return {item.account: (item.borrowed, item.lent) for item in shares.load_history(connection)[0]}


def back_to(core: Core, ms_ago: int) -> None:
    with core.db.write() as connection:
        put_meta(connection, "history_ms", str(core.clock.now_ms() - ms_ago))


def test_what_is_held_above_nominal_becomes_history_minute_by_minute(parts: tuple[Core, Fed]) -> None:
    core, fed = parts
    upkeep.move_history(core)
    at_work(core, fed)
    upkeep.move_history(core)
    assert history(core) == {}, "less than a minute has passed"
    back_to(core, 60_000)
    upkeep.move_history(core)
    borrowed, lent = history(core)["fr/health"]
    assert borrowed == pytest.approx(4 * 60_000, rel=0.02), "4 of its 6 GPUs are above its nominal of 2"
    assert lent == 0
    assert "de" not in history(core)


def test_a_long_absence_of_the_server_counts_as_held_for_ten_minutes_only(parts: tuple[Core, Fed]) -> None:
    core, fed = parts
    at_work(core, fed)
    upkeep.move_history(core)
    back_to(core, 48 * HOUR_MS)
    upkeep.move_history(core)
    assert history(core)["fr/health"][0] == pytest.approx(4 * 600_000, rel=0.02)


def test_run_times_are_counted_once_and_only_of_jobs_that_ended_by_themselves(parts: tuple[Core, Fed]) -> None:
    core, fed = parts
    run(core, at_work(core, fed), 3600_000)
    run(core, at_work(core, fed), 7200_000, JobState.FAILED)
    with core.db.write() as connection:
        legs.end_job(core, connection, never_placed(core, fed, connection), JobState.CANCELLED, None)
    for _ in range(2):
        upkeep.count_run_times(core)
    with core.db.read() as connection:
        seen = shares.load_run_times(connection)
    assert seen.seen("fr/health") == 2, "a job that never ran says nothing"
    assert seen.seen("fr") == seen.seen("") == 2
    whole, half = seen.shares["fr/health"][-1], sum(seen.shares["fr/health"][:-1])
    assert (whole, half) == (1, 1)
    assert sum(seen.errors["fr/health"]) == 2


def never_placed(core: Core, fed: Fed, connection: Any) -> str:
    """A job that is stored and never placed."""
    spec = fed.spec([], account="fr/health")
    job = Job(id=core.clock.new_id("job"), spec=spec, signature="s", state=JobState.PENDING, created_ms=1,
              updated_ms=1, version=1)  # fmt: skip
    jobs.insert_job(connection, job)
    return job.id


def test_a_pending_job_whose_deadline_passed_ends_and_one_whose_start_is_due_does_not(parts: tuple[Core, Fed]) -> None:
    core, fed = parts
    now_ms = core.clock.now_ms()
    with core.db.write() as connection:
        for name, deadline_ms in (("late", now_ms + 599_000), ("due", now_ms + 660_000), ("free", 0)):
            spec = fed.spec([], name=name, deadline_ms=deadline_ms, resources=Resources(gpus=1, walltime_s=600))
            jobs.insert_job(connection, Job(id=core.clock.new_id("job"), spec=spec, signature="s",
                                            state=JobState.PENDING, created_ms=1, updated_ms=1, version=1))  # fmt: skip
    upkeep.end_hopeless(core)
    with core.db.read() as connection:
        states = {job.spec.name: (job.state.value, job.reason) for job in jobs.list_jobs(connection)}
    assert states["late"][0] == "cancelled"
    assert states["late"][1] is not None
    assert states["late"][1].code == "deadline"
    assert states["due"] == states["free"] == ("pending", None)
