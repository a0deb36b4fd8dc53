"""Jobs that wait for others: what they come after, and their places in their arrays."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, Row, select

from consortium.domain.job import JobState
from consortium.state import tables as t

_ENDED = [state.value for state in JobState if state.final]
_HOPELESS = [state for state in _ENDED if state != JobState.SUCCEEDED.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unmet:
    """A job that another one comes after, and that has not succeeded."""

    job: str
    after: str
    name: str
    state: JobState


def unmet(connection: Connection, *, hopeless: bool = False) -> list[Unmet]:
    """Return what pending jobs come after and has not succeeded yet, or, where `hopeless`, never will; by job."""
    other = t.jobs.alias("other")
    state = other.c.state.in_(_HOPELESS) if hopeless else other.c.state != JobState.SUCCEEDED.value
    query = (
        select(t.dependencies.c.job, t.dependencies.c.after, other.c.spec["name"], other.c.state)
        .join(t.jobs, t.jobs.c.id == t.dependencies.c.job)
        .join(other, other.c.id == t.dependencies.c.after)
        .where((t.jobs.c.state == JobState.PENDING.value) & state)
        .order_by(t.dependencies.c.job, t.dependencies.c.after)
    )
    rows = connection.execute(query)
    return [Unmet(job=job, after=after, name=str(name), state=JobState(value)) for job, after, name, value in rows]


def members_at_large(connection: Connection) -> dict[str, list[str]]:
    """Return the members that have not ended of every array that has one pending, in order of their index."""
    waiting = select(t.jobs.c.array).where((t.jobs.c.state == JobState.PENDING.value) & (t.jobs.c.array != ""))
    query = (
        select(t.jobs.c.array, t.jobs.c.id)
        .where(t.jobs.c.array.in_(waiting) & t.jobs.c.state.not_in(_ENDED))
        .order_by(t.jobs.c.array, t.jobs.c.array_index, t.jobs.c.id)
    )
    found: dict[str, list[str]] = {}
    for array, job in connection.execute(query):
        found.setdefault(array, []).append(job)
    return found


def array_members(connection: Connection, array: str) -> list[str]:
    """Return the jobs of an array, in order of their index."""
    query = select(t.jobs.c.id).where(t.jobs.c.array == array).order_by(t.jobs.c.array_index, t.jobs.c.id)
    return list(connection.execute(query).scalars())


def past_start(connection: Connection, now_ms: int) -> list[Row[tuple[str, int]]]:
    """Return id and latest start of the pending jobs that were to start before now to meet their deadline."""
    late = (t.jobs.c.start_by_ms > 0) & (t.jobs.c.start_by_ms < now_ms)
    query = select(t.jobs.c.id, t.jobs.c.start_by_ms).where((t.jobs.c.state == JobState.PENDING.value) & late)
    return list(connection.execute(query.order_by(t.jobs.c.id)))


def unobserved(connection: Connection, limit: int) -> list[str]:
    """Return at most `limit` jobs that ended, and whose run time is not counted yet, by when they ended."""
    ended = t.jobs.c.state.in_([state for state in _ENDED if state != JobState.DENIED.value])
    query = select(t.jobs.c.id).where(~t.jobs.c.observed & ended).order_by(t.jobs.c.updated_ms, t.jobs.c.id)
    return list(connection.execute(query.limit(limit)).scalars())


def set_observed(connection: Connection, job: str) -> None:
    """Note that a job's run time is counted."""
    connection.execute(t.jobs.update().where(t.jobs.c.id == job).values(observed=True))
