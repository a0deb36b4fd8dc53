"""Commit a plan: placements become attempts with offered legs, evicted jobs' legs are told to stop.

Called by the scheduler loop alone. A placement or an eviction whose jobs moved on since the snapshot is left out and
named; the others are committed. All in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, bindparam, func, select

from consortium.domain.codec import to_json
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Epoch, JobState, Leg, LegState
from consortium.domain.units import gpu_hours
from consortium.scheduler.types import Eviction, EvictionRule, Placement, Plan
from consortium.state import jobs
from consortium.state import tables as t
from consortium.state.database import next_counters
from consortium.state.evict import evict

Item = TypeVar("Item")
SLICE = 500
"""Jobs per statement: databases bound the number of values in one."""
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


def commit_plan(
    connection: Connection,
    plan: Plan,
    versions: Mapping[str, int],
    *,
    incarnation: int,
    now_ms: int,
    new_id: Callable[[str], str],
) -> Committed:
    """Write placements, evictions and reasons of `plan`, made from a snapshot in which jobs had these `versions`.

    What is about jobs that changed since is left out: the next cycle decides on them anew.
    """
    placed, evicted = list[str](), list[str]()
    for some in _slices(plan.placements):
        placed += _place(connection, some, versions, incarnation, now_ms, new_id)
    for eviction in plan.evictions:
        fresh = all(_unchanged(connection, job, versions) for job in (eviction.job, eviction.for_job))
        reason = why_evicted(eviction)
        if fresh and evict(connection, eviction.job, reason, now_ms, for_job=eviction.for_job):
            evicted.append(eviction.job)
    told = [(job, reason) for job, reason in plan.reasons.items() if job in versions]
    for group in _slices(told):
        _note_reasons(connection, dict(group), versions)
    return Committed(placed=tuple(placed), evicted=tuple(evicted))


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
    placements: Sequence[Placement],
    versions: Mapping[str, int],
    incarnation: int,
    now_ms: int,
    new_id: Callable[[str], str],
) -> list[str]:
    """Write those placements whose jobs are as they were; return their jobs."""
    names = [placement.job for placement in placements]
    wanted = select(t.jobs.c.id, t.jobs.c.version, t.jobs.c.spec).where(
        t.jobs.c.id.in_(names) & (t.jobs.c.state == JobState.PENDING.value)
    )
    rows = {row.id: row for row in connection.execute(wanted.with_for_update())}
    ours = t.attempts.c.job.in_(names)
    busy = set(connection.execute(select(t.attempts.c.job).where(ours & (t.attempts.c.ended_ms == 0))).scalars())
    tries = select(t.attempts.c.job, func.max(t.attempts.c.number)).where(ours).group_by(t.attempts.c.job)
    last = {row[0]: row[1] for row in connection.execute(tries)}
    homes = _homes(connection, {name for row in rows.values() for name in row.spec.get("inputs", ())})
    fresh = [
        placement
        for placement in placements
        if placement.job in rows
        and placement.job not in busy
        and rows[placement.job].version == versions[placement.job]
    ]
    if not fresh:
        return []
    counter = next_counters(connection, sum(len(placement.legs) for placement in fresh))
    attempts, legs, flavors = [], [], []
    offered: dict[tuple[str, int], list[str]] = {}
    for placement in fresh:
        row, attempt = rows[placement.job], new_id("att")
        number = last.get(placement.job, 0) + 1
        attempts.append({
            "id": attempt, "job": placement.job, "number": number, "created_ms": now_ms, "started_ms": 0, "ended_ms": 0,
        })  # fmt: skip
        for place in placement.legs:
            legs.append(
                Leg(
                    id=new_id("leg"),
                    attempt=attempt,
                    job=placement.job,
                    site=place.site,
                    epoch=Epoch(incarnation=incarnation, counter=counter),
                    state=LegState.OFFERED,
                    nodes=dict(place.nodes),
                    inputs=tuple(item for item in row.spec.get("inputs", ()) if homes.get(item) == place.site),
                    updated_ms=now_ms,
                )
            )
            flavors.append(place.flavor)
            counter += 1
        where = ", ".join(place.site for place in placement.legs)
        offered.setdefault((where, placement.borrowed), []).append(placement.job)
    connection.execute(t.attempts.insert(), attempts)
    jobs.insert_legs(connection, legs, flavors, now_ms)
    for (where, borrowed), names in sorted(offered.items()):
        reason = Reason(code=ReasonCode.STARTING, message=f"offered to {where}", numbers={"borrowed_gpus": borrowed})
        connection.execute(
            t.jobs.update()
            .where(t.jobs.c.id.in_(names))
            .values(
                state=JobState.STARTING.value,
                version=t.jobs.c.version + 1,
                reason=to_json(reason),
                updated_ms=now_ms,
                nominated=False,
            )
        )
    return [placement.job for placement in fresh]


def _homes(connection: Connection, inputs: Collection[str]) -> dict[str, str]:
    """Dataset id to the site it lives at."""
    found: dict[str, str] = {}
    for some in _slices(sorted(inputs)):
        query = select(t.datasets.c.id, t.datasets.c.site).where(t.datasets.c.id.in_(some))
        found |= {row.id: row.site for row in connection.execute(query)}
    return found


def _note_reasons(connection: Connection, reasons: dict[str, Reason], versions: Mapping[str, int]) -> None:
    """Keep why jobs wait where that changed, but of jobs that changed meanwhile. A version counts no reasons."""
    query = select(t.jobs.c.id, t.jobs.c.version, t.jobs.c.reason).where(
        t.jobs.c.id.in_(list(reasons)) & (t.jobs.c.state == JobState.PENDING.value)
    )
    rows = {row.id: row for row in connection.execute(query) if row.version == versions[row.id]}
    shown = {name: to_json(reasons[name]) for name in rows}
    changed = [{"job_id": name, "new_reason": reason} for name, reason in shown.items() if reason != rows[name].reason]
    if changed:
        connection.execute(
            t.jobs.update().where(t.jobs.c.id == bindparam("job_id")).values(reason=bindparam("new_reason")), changed
        )


def _slices(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Parts of `items` that fit into one statement."""
    for start in range(0, len(items), SLICE):
        yield items[start : start + SLICE]
