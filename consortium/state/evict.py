"""Take GPUs back from a job: its legs are told to stop, and it waits again once all of them have.

Until then the attempt stays open, so that a leg which succeeds before it hears of it has succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, select

from consortium.domain.decision import Reason
from consortium.domain.job import JobState, Leg, LegState
from consortium.state import jobs
from consortium.state import tables as t


def evict(connection: Connection, job_id: str, reason: Reason, now_ms: int, *, for_job: str = "") -> tuple[str, ...]:
    """Tell all legs of a job to stop; return those that were told, none where the job holds nothing to be taken back.

    The job is `preempting`, or pending at once where its legs only waited for their next epochs. The legs remember
    `for_job`, the job that starts on what they leave; it is nominated. Raises ConflictError where the job changes
    meanwhile.
    """
    job, attempt = jobs.find_job(connection, job_id), jobs.open_attempt(connection, job_id)
    if attempt is None or job.state not in (JobState.PENDING, JobState.STARTING, JobState.RUNNING):
        return ()
    told, stopping = [], 0
    rows = connection.execute(select(t.legs).where(t.legs.c.attempt == attempt.id).order_by(t.legs.c.id))
    for row in list(rows):
        leg = jobs.leg_of(row)
        if leg.state in jobs.LIVE:
            stopping += 1
            if leg.state is not LegState.STOPPING:
                jobs.set_leg(connection, leg, LegState.STOPPING, now_ms, reason=reason.message)
            jobs.set_stopping_for(connection, leg.id, for_job)
            told.append(leg.id)
        elif row.retry_at_ms:
            told.append(leg.id)
    if not told:
        return ()
    if for_job:
        jobs.nominate(connection, for_job)
    jobs.forget_retries(connection, attempt.id)
    if stopping:
        state = None if job.state is JobState.PENDING else JobState.PREEMPTING
        jobs.update_job(connection, job, now_ms=now_ms, state=state, reason=reason)
    else:
        wait_again(connection, job_id, reason, now_ms)
    return tuple(told)


def wait_again(connection: Connection, job_id: str, reason: Reason | None, now_ms: int) -> None:
    """End the attempt of a job that was evicted: it waits for a new one, without any backoff."""
    attempt = jobs.open_attempt(connection, job_id)
    if attempt is not None:
        jobs.end_attempt(connection, attempt.id, now_ms)
    job = jobs.find_job(connection, job_id)
    state = None if job.state is JobState.PENDING else JobState.PENDING
    jobs.update_job(connection, job, now_ms=now_ms, state=state, reason=reason, not_before_ms=0)


def making_way(connection: Connection, told: Sequence[Leg]) -> set[str]:
    """Return the ids of those stopping legs whose attempt is not over: they were evicted, or make way at their site."""
    attempts = {leg.attempt for leg in told}
    query = select(t.attempts.c.id).where(t.attempts.c.id.in_(attempts) & (t.attempts.c.ended_ms == 0))
    going_on = set(connection.execute(query).scalars()) if attempts else set()
    return {leg.id for leg in told if leg.attempt in going_on}
