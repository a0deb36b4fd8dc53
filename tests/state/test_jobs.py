"""Jobs, placements by compare-and-swap, epochs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Epoch, Job, JobKind, JobSpec, JobState, LegState, Resources
from consortium.errors import ConflictError, NotFoundError
from consortium.scheduler import LegPlacement, Placement, Plan
from consortium.state import Database, jobs
from consortium.state.commit import Committed, commit_plan

NUMBERS = itertools.count()


def new_id(prefix: str) -> str:
    return f"{prefix}-{next(NUMBERS):026d}"


def make_job(**changes: Any) -> Job:
    spec = JobSpec(
        kind=JobKind.CLEAN,
        name="clean",
        account="fr",
        submitter="fr/amelie",
        purpose="language-model",
        inputs=(),
        resources=Resources(gpus=2, walltime_s=60),
        params={},
        code_digest="sha256:x",
        nonce=str(next(NUMBERS)),
    )
    base = Job(
        id=new_id("job"), spec=spec, signature="s", state=JobState.PENDING, created_ms=5, updated_ms=5, version=1
    )
    return replace(base, **changes)


def store(db: Database, job: Job) -> Job:
    with db.write() as connection:
        jobs.insert_job(connection, job)
    return job


def place(db: Database, job: Job, version: int = 1, sites: tuple[str, ...] = ("fr-1",)) -> Committed:
    legs = tuple(LegPlacement(site=site, flavor="h100-sxm", nodes={f"{site}-n1": 2}) for site in sites)
    plan = Plan(placements=(Placement(job=job.id, legs=legs),), reasons={})
    with db.write() as connection:
        return commit_plan(connection, plan, {job.id: version}, incarnation=7, now_ms=10, new_id=new_id)


def test_a_job_comes_back_as_it_went_in(db: Database) -> None:
    reason = Reason(code=ReasonCode.QUOTA, message="too much", numbers={"gpus": 3})
    job = store(db, make_job(reason=reason, target_sites=("fr-1",)))
    with db.read() as connection:
        assert jobs.find_job(connection, job.id) == job
        assert jobs.list_jobs(connection) == [job]
        assert jobs.list_jobs(connection, states=[JobState.RUNNING]) == []
        assert jobs.list_jobs(connection, account="de") == []
        with pytest.raises(NotFoundError):
            jobs.find_job(connection, "job-none")


def test_the_same_signed_spec_makes_no_second_job(db: Database) -> None:
    job = store(db, make_job())
    with pytest.raises(ConflictError, match="no second job"):
        store(db, replace(job, id=new_id("job")))


def test_a_placement_is_committed_once(db: Database) -> None:
    job = store(db, make_job())
    assert place(db, job, sites=("de-1", "fr-1")).placed == (job.id,)
    again = place(db, job)
    assert again.placed == ()
    with db.read() as connection:
        placed = jobs.find_job(connection, job.id)
        assert placed.state is JobState.STARTING
        assert placed.version == 2
        assert placed.attempt is not None
        legs = placed.attempt.legs
        assert [(leg.site, leg.epoch, leg.state) for leg in legs] == [
            ("de-1", Epoch(incarnation=7, counter=1), LegState.OFFERED),
            ("fr-1", Epoch(incarnation=7, counter=2), LegState.OFFERED),
        ]


def test_a_plan_from_an_older_view_is_stale_for_that_job_only(db: Database) -> None:
    moved, still = store(db, make_job()), store(db, make_job())
    with db.write() as connection:
        jobs.update_job(connection, moved, now_ms=6, state=JobState.CANCELLED)
    place_ = Placement(job=moved.id, legs=(LegPlacement(site="fr-1", flavor="h", nodes={"n": 1}),))
    plan = Plan(
        placements=(place_, replace(place_, job=still.id)),
        reasons={},
    )
    with db.write() as connection:
        done = commit_plan(connection, plan, {moved.id: 1, still.id: 1}, incarnation=7, now_ms=10, new_id=new_id)
    assert done == Committed(placed=(still.id,), evicted=())
    with db.read() as connection:
        assert jobs.find_job(connection, moved.id).attempts == ()


def test_two_changes_of_one_version_conflict(db: Database) -> None:
    job = store(db, make_job())
    with db.write() as connection:
        jobs.update_job(connection, job, now_ms=6, state=JobState.STARTING)
    with pytest.raises(ConflictError, match="meanwhile"), db.write() as connection:
        jobs.update_job(connection, job, now_ms=7, state=JobState.CANCELLED)


def test_a_final_job_never_changes_again(db: Database) -> None:
    job = store(db, make_job())
    with db.write() as connection:
        ended = jobs.update_job(connection, job, now_ms=6, state=JobState.CANCELLED)
        with pytest.raises(ConflictError, match="cannot become"):
            jobs.update_job(connection, ended, now_ms=7, state=JobState.RUNNING)


def test_a_waiting_reason_is_kept_without_a_new_version(db: Database) -> None:
    job = store(db, make_job())
    reason = Reason(code=ReasonCode.CAPACITY, message="busy")
    with db.write() as connection:
        plan = Plan(placements=(), reasons={job.id: reason})
        commit_plan(connection, plan, {job.id: 1}, incarnation=7, now_ms=10, new_id=new_id)
        found = jobs.find_job(connection, job.id)
    assert (found.reason, found.version) == (reason, 1)


def test_each_epoch_has_its_line_in_the_servers_book(db: Database) -> None:
    job = store(db, make_job())
    place(db, job)
    with db.write() as connection:
        attempt = jobs.find_job(connection, job.id).attempt
        assert attempt is not None
        leg = jobs.set_leg(connection, attempt.legs[0], LegState.HELD, 11)
        leg = jobs.set_leg(connection, leg, LegState.STARTING, 12)
        leg = jobs.set_leg(connection, leg, LegState.RUNNING, 13)
        leg = jobs.set_leg(connection, leg, LegState.RUNNING, 99)
        leg = jobs.set_leg(connection, leg, LegState.LOST, 20)
        again = jobs.new_epoch(connection, leg, Epoch(incarnation=8, counter=1), 30)
        book = jobs.epoch_row(connection, leg.id, leg.epoch)
        second = jobs.epoch_row(connection, leg.id, again.epoch)
    assert book is not None
    assert second is not None
    assert (book.offered_ms, book.held_ms, book.start_ms, book.running_ms, book.final_ms) == (10, 11, 12, 13, 20)
    assert (second.offered_ms, second.final_ms) == (30, 0)
    assert again.tries == 2
