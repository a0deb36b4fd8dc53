"""Sites added to trainings under way: amended specs that wait for a round boundary, and those that hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from consortium.domain.codec import from_json, to_json
from consortium.domain.job import Job, JobState, SignedSpec
from consortium.errors import ConflictError
from consortium.keys.canonical import digest_json
from consortium.state import jobs
from consortium.state import tables as t


@dataclass(frozen=True, slots=True, kw_only=True)
class Addition:
    """An amended spec of a job. `round` is the first round with the sites that it adds, 0 while it waits."""

    job: str
    number: int
    signed: SignedSpec
    round: int = 0


def of_job(connection: Connection, job: str) -> list[Addition]:
    """Return a job's amended specs, oldest first."""
    query = select(t.additions).where(t.additions.c.job == job).order_by(t.additions.c.number)
    return [_addition(row) for row in connection.execute(query)]


def waiting(connection: Connection) -> list[Addition]:
    """Return what waits for a boundary, of jobs that have not ended, by job."""
    going = t.jobs.c.state.not_in([state.value for state in JobState if state.final])
    query = select(t.additions).join(t.jobs, t.jobs.c.id == t.additions.c.job)
    query = query.where(going & (t.additions.c.round == 0))
    return [_addition(row) for row in connection.execute(query.order_by(t.additions.c.job))]


def put(connection: Connection, job: Job, signed: SignedSpec, now_ms: int) -> None:
    """Keep an amended spec. Raises ConflictError where one waits already."""
    if any(not one.round for one in of_job(connection, job.id)):
        raise ConflictError(
            "another site is being added to the job", where=job.id, fix="add this one after the next round has closed"
        )
    last = connection.execute(select(func.max(t.additions.c.number)).where(t.additions.c.job == job.id)).scalar() or 0
    connection.execute(
        t.additions.insert().values(
            job=job.id,
            number=last + 1,
            doc=to_json(signed),
            before_digest=digest_json(job.spec),
            round=0,
            at_ms=now_ms,
        )
    )


def take_effect(
    connection: Connection, job: Job, addition: Addition, sites: tuple[str, ...], number: int, now_ms: int
) -> None:
    """Put an amended spec in the place of the job's, from round `number` on. Raises ConflictError where it changed."""
    spec = addition.signed.spec
    jobs.update_job(connection, job, now_ms=now_ms)
    connection.execute(
        t.jobs.update()
        .where(t.jobs.c.id == job.id)
        .values(
            spec=to_json(spec), spec_digest=digest_json(spec), signature=addition.signed.signature, sites=list(sites)
        )
    )
    same = (t.additions.c.job == addition.job) & (t.additions.c.number == addition.number)
    connection.execute(t.additions.update().where(same).values(round=number))


def _addition(row: Any) -> Addition:
    return Addition(
        job=row.job, number=row.number, signed=from_json(SignedSpec, row.doc, where=row.job), round=row.round
    )
