"""Commit a plan: placements become attempts with offered legs, evicted jobs' legs are told to stop.

Called by the scheduler loop alone. A placement or an eviction whose jobs moved on since the snapshot is left out and
named; the others are committed. All in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from consortium.domain.codec import to_json
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Epoch, JobState, Leg, LegState
from consortium.domain.units import gpu_hours
from consortium.errors import ConflictError
from consortium.scheduler.types import Eviction, EvictionRule, Placement, Plan
from consortium.state import jobs
from consortium.state import tables as t
from consortium.state.database import next_counter
from consortium.state.evict import evict

_RIGHTS = {
    EvictionRule.BORROWER: "its account holds more than its nominal, and that job is within its own",
    EvictionRule.GUEST: "it is a guest at a site whose own partner needs the GPUs",
    EvictionRule.OWN: "both are of one account, and that job cannot wait or go elsewhere as this one can",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What became of a plan."""

    placed: tuple[str, ...]
    """Jobs placed."""
    evicted: tuple[str, ...]
    """Jobs whose legs were told to stop."""
    stale: tuple[str, ...]
    """Jobs that changed between snapshot and commit; the next cycle decides on them anew."""


def commit_plan(
    connection: Connection,
    plan: Plan,
    versions: Mapping[str, int],
    *,
    incarnation: int,
    now_ms: int,
    new_id: Callable[[str], str],
) -> Committed:
    """Write placements, evictions and reasons of `plan`, made from a snapshot in which jobs had these `versions`."""
    placed, evicted, stale = [], [], []
    for placement in plan.placements:
        try:
            _place(connection, placement, versions[placement.job], incarnation, now_ms, new_id)
            placed.append(placement.job)
        except ConflictError:
            stale.append(placement.job)
    for eviction in plan.evictions:
        fresh = all(_unchanged(connection, job, versions) for job in (eviction.job, eviction.for_job))
        reason = why_evicted(eviction)
        if fresh and evict(connection, eviction.job, reason, now_ms, for_job=eviction.for_job):
            evicted.append(eviction.job)
        else:
            stale.append(eviction.job)
    for job_id, reason in plan.reasons.items():
        if (
            job_id in versions
            and job_id not in placed
            and not _note_reason(connection, job_id, versions[job_id], reason)
        ):
            stale.append(job_id)
    return Committed(placed=tuple(placed), evicted=tuple(evicted), stale=tuple(dict.fromkeys(stale)))


def why_evicted(eviction: Eviction) -> Reason:
    """Return what an evicted job is told: for which job, by what right, and what it loses."""
    lost = f"{gpu_hours(eviction.lost_gpu_ms, 2)} GPU-hours since its last training checkpoint"
    return Reason(
        code=ReasonCode.PREEMPTED,
        message=f"its {eviction.gpus} GPUs are taken back for {eviction.for_job}: {_RIGHTS[eviction.rule]}; {lost} "
        "are done again",
        numbers={
            "for_job": eviction.for_job,
            "rule": eviction.rule.value,
            "gpus": eviction.gpus,
            "lost_gpu_ms": eviction.lost_gpu_ms,
        },
    )


def _unchanged(connection: Connection, job_id: str, versions: Mapping[str, int]) -> bool:
    version = connection.execute(select(t.jobs.c.version).where(t.jobs.c.id == job_id)).scalar()
    return version is not None and version == versions.get(job_id)


def _place(
    connection: Connection,
    placement: Placement,
    version: int,
    incarnation: int,
    now_ms: int,
    new_id: Callable[[str], str],
) -> None:
    job = jobs.find_job(connection, placement.job)
    if job.version != version or job.state is not JobState.PENDING or jobs.open_attempt(connection, job.id) is not None:
        raise ConflictError("the job changed since the plan was made", where=job.id)
    last = connection.execute(select(func.max(t.attempts.c.number)).where(t.attempts.c.job == job.id)).scalar()
    attempt = new_id("att")
    connection.execute(
        t.attempts.insert().values(
            id=attempt, job=job.id, number=(last or 0) + 1, created_ms=now_ms, started_ms=0, ended_ms=0
        )
    )
    homes = {
        row.id: row.site
        for row in connection.execute(
            select(t.datasets.c.id, t.datasets.c.site).where(t.datasets.c.id.in_(job.spec.inputs))
        )
    }
    for place in placement.legs:
        leg = Leg(
            id=new_id("leg"),
            attempt=attempt,
            job=job.id,
            site=place.site,
            epoch=Epoch(incarnation=incarnation, counter=next_counter(connection)),
            state=LegState.OFFERED,
            nodes=dict(place.nodes),
            inputs=tuple(item for item in job.spec.inputs if homes.get(item) == place.site),
            updated_ms=now_ms,
        )
        jobs.insert_leg(connection, leg, flavor=place.flavor, now_ms=now_ms)
    where = ", ".join(place.site for place in placement.legs)
    reason = Reason(
        code=ReasonCode.STARTING, message=f"offered to {where}", numbers={"borrowed_gpus": placement.borrowed}
    )
    jobs.update_job(connection, job, now_ms=now_ms, state=JobState.STARTING, reason=reason)


def _note_reason(connection: Connection, job_id: str, version: int, reason: Reason) -> bool:
    """Keep why a job waits. The reason alone does not count as a change: its version stays."""
    same = (t.jobs.c.id == job_id) & (t.jobs.c.version == version) & (t.jobs.c.state == JobState.PENDING.value)
    return bool(connection.execute(t.jobs.update().where(same).values(reason=to_json(reason))).rowcount)
