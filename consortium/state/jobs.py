"""Jobs, attempts, legs and the book of their epochs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from consortium.domain.codec import from_json, to_json
from consortium.domain.decision import Denial, Reason
from consortium.domain.job import (
    JOB_TRANSITIONS,
    Attempt,
    Epoch,
    Fault,
    Job,
    JobSpec,
    JobState,
    Leg,
    LegState,
)
from consortium.errors import ConflictError, NotFoundError
from consortium.keys.canonical import digest_json
from consortium.state import tables as t

LIVE = (LegState.OFFERED, LegState.HELD, LegState.STARTING, LegState.RUNNING, LegState.STOPPING)
"""Leg states that hold capacity and quota."""


def insert_job(connection: Connection, job: Job) -> None:
    """Store a new job. Raises ConflictError where the same signed spec was submitted before."""
    spec_digest = digest_json(job.spec)
    known = connection.execute(select(t.jobs.c.id).where(t.jobs.c.spec_digest == spec_digest)).scalar()
    amended = select(t.additions.c.job).where(t.additions.c.before_digest == spec_digest)
    known = known or connection.execute(amended).scalar()
    if known is not None:
        raise ConflictError(
            "this signed spec was submitted before and starts no second job",
            where=str(known),
            fix="sign a new spec (with a new nonce), or give an idempotency key to repeat a submission safely",
        )
    connection.execute(
        t.jobs.insert().values(
            id=job.id,
            state=job.state.value,
            kind=job.spec.kind.value,
            account=job.spec.account,
            submitter=job.spec.submitter,
            created_ms=job.created_ms,
            updated_ms=job.updated_ms,
            version=job.version,
            spec=to_json(job.spec),
            spec_digest=spec_digest,
            signature=job.signature,
            sites=list(job.target_sites),
            reason=None if job.reason is None else to_json(job.reason),
            denials=to_json(list(job.denials)),
            result={},
            array=job.spec.array.id if job.spec.array else "",
            array_index=job.spec.array.index if job.spec.array else 0,
            start_by_ms=start_by_ms(job.spec),
        )
    )
    if job.spec.after:
        connection.execute(t.dependencies.insert(), [{"job": job.id, "after": other} for other in job.spec.after])


def start_by_ms(spec: JobSpec, done_ms: int = 0) -> int:
    """Return the latest start after which a job cannot be done by its deadline; 0 where it has none."""
    left_ms = max(0, spec.resources.walltime_s * 1000 - done_ms)
    return max(1, spec.deadline_ms - left_ms) if spec.deadline_ms else 0


def find_job(connection: Connection, job_id: str) -> Job:
    """Return a job with its attempts; raises NotFoundError."""
    row = connection.execute(select(t.jobs).where(t.jobs.c.id == job_id)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no job {job_id!r}", fix="list them with: consortium jobs")
    return _job(connection, [row])[0]


def list_jobs(
    connection: Connection, *, states: Iterable[JobState] = (), account: str = "", array: str = "", limit: int = 1000
) -> list[Job]:
    """Return jobs, oldest first (the newest `limit` of them), of any array or of one.

    An account includes the projects below it.
    """
    age = (t.jobs.c.created_ms, t.jobs.c.array, t.jobs.c.array_index, t.jobs.c.id)
    query = select(t.jobs).order_by(*(column.desc() for column in age)).limit(limit)
    wanted = [state.value for state in states]
    if wanted:
        query = query.where(t.jobs.c.state.in_(wanted))
    if account:
        query = query.where((t.jobs.c.account == account) | t.jobs.c.account.startswith(account + "/"))
    if array:
        query = query.where(t.jobs.c.array == array)
    return _job(connection, list(connection.execute(query))[::-1])


def update_job(
    connection: Connection,
    job: Job,
    *,
    now_ms: int,
    state: JobState | None = None,
    reason: Reason | None = None,
    clear_reason: bool = False,
    result: dict[str, Any] | None = None,
    denials: Iterable[Denial] | None = None,
    not_before_ms: int | None = None,
) -> Job:
    """Change a job if nobody changed it since `job` was read (compare-and-swap on its version); return it as it is now.

    Raises ConflictError where its version moved or the state machine has no such transition.
    """
    target = job.state if state is None else state
    if target is not job.state and target not in JOB_TRANSITIONS[job.state]:
        raise ConflictError(f"a {job.state.value} job cannot become {target.value}", where=job.id)
    new_reason = None if clear_reason else (reason or job.reason)
    changed = replace(
        job,
        state=target,
        reason=new_reason,
        result=job.result if result is None else result,
        version=job.version + 1,
        updated_ms=now_ms,
    )
    values: dict[str, Any] = {
        "state": target.value,
        "reason": None if new_reason is None else to_json(new_reason),
        "result": to_json(changed.result),
        "version": changed.version,
        "updated_ms": now_ms,
    }
    if denials is not None:
        values["denials"] = to_json(list(denials))
    if not_before_ms is not None:
        values["not_before_ms"] = not_before_ms
    same = (t.jobs.c.id == job.id) & (t.jobs.c.version == job.version)
    if not connection.execute(t.jobs.update().where(same).values(**values)).rowcount:
        raise ConflictError("the job changed meanwhile", where=job.id, fix="read it again and repeat")
    return changed


def leave_site(connection: Connection, job: Job, site: str, now_ms: int) -> None:
    """Take a site off those that a job is to run at."""
    update_job(connection, job, now_ms=now_ms)
    left = [name for name in job.target_sites if name != site]
    connection.execute(t.jobs.update().where(t.jobs.c.id == job.id).values(sites=left))


def set_tracking_run(connection: Connection, *, job: str = "", leg: str = "", run: str) -> None:
    """Note the tracking server's run of a job or a leg."""
    if leg:
        connection.execute(t.legs.update().where(t.legs.c.id == leg).values(tracking_run=run))
    else:
        connection.execute(t.jobs.update().where(t.jobs.c.id == job).values(tracking_run=run))


def find_leg(connection: Connection, leg_id: str) -> Leg | None:
    """Return a leg in its current epoch, or None."""
    row = connection.execute(select(t.legs).where(t.legs.c.id == leg_id)).one_or_none()
    return None if row is None else _leg(row)


def legs_in(connection: Connection, states: Iterable[LegState], *, site: str = "") -> list[Leg]:
    """Return legs whose current epoch is in one of `states`, by id."""
    query = select(t.legs).where(t.legs.c.state.in_([state.value for state in states])).order_by(t.legs.c.id)
    if site:
        query = query.where(t.legs.c.site == site)
    return [_leg(row) for row in connection.execute(query)]


def leg_row(connection: Connection, leg_id: str) -> Row[Any]:
    """Return all columns of a leg."""
    return connection.execute(select(t.legs).where(t.legs.c.id == leg_id)).one()


def job_row(connection: Connection, job_id: str) -> Row[Any]:
    """Return all columns of a job."""
    return connection.execute(select(t.jobs).where(t.jobs.c.id == job_id)).one()


def attempt_row(connection: Connection, attempt_id: str) -> Row[Any]:
    """Return all columns of an attempt."""
    return connection.execute(select(t.attempts).where(t.attempts.c.id == attempt_id)).one()


def open_attempt(connection: Connection, job_id: str) -> Row[Any] | None:
    """Return the attempt of a job that goes on, if any."""
    query = select(t.attempts).where((t.attempts.c.job == job_id) & (t.attempts.c.ended_ms == 0))
    return connection.execute(query).one_or_none()


def end_attempt(connection: Connection, attempt_id: str, now_ms: int) -> None:
    """Note that an attempt is over: no further epoch of its legs follows."""
    connection.execute(t.attempts.update().where(t.attempts.c.id == attempt_id).values(ended_ms=now_ms))
    forget_retries(connection, attempt_id)


def start_attempt(connection: Connection, attempt_id: str, now_ms: int) -> None:
    """Note that the whole gang was told to start."""
    connection.execute(t.attempts.update().where(t.attempts.c.id == attempt_id).values(started_ms=now_ms))


_MARKS = {
    LegState.OFFERED: "offered_ms",
    LegState.HELD: "held_ms",
    LegState.STARTING: "start_ms",
    LegState.RUNNING: "running_ms",
}


def insert_legs(connection: Connection, legs: Sequence[Leg], flavors: Sequence[str], now_ms: int) -> None:
    """Store new legs, each in its first epoch, on nodes of these flavors."""
    rows = [
        _leg_values(leg) | {"id": leg.id, "flavor": flavor, "created_ms": now_ms, "retry_at_ms": 0, "progress": {}}
        for leg, flavor in zip(legs, flavors, strict=True)
    ]
    if not rows:
        return
    connection.execute(t.legs.insert(), rows)
    connection.execute(t.epochs.insert(), [_epoch_values(leg, now_ms) for leg in legs])


def new_epoch(
    connection: Connection, leg: Leg, epoch: Epoch, now_ms: int, *, nodes: dict[str, int] | None = None
) -> Leg:
    """Offer a leg again under a new epoch, on other nodes where they are given."""
    again = replace(
        leg,
        epoch=epoch,
        state=LegState.OFFERED,
        nodes=leg.nodes if nodes is None else nodes,
        tries=leg.tries + 1,
        fault=None,
        reason="",
        updated_ms=now_ms,
    )
    values = _leg_values(again) | {"retry_at_ms": 0, "progress": {}}
    connection.execute(t.legs.update().where(t.legs.c.id == leg.id).values(**values))
    _insert_epoch(connection, again, now_ms)
    return again


def set_leg(
    connection: Connection,
    leg: Leg,
    state: LegState,
    now_ms: int,
    *,
    reason: str = "",
    fault: Fault | None = None,
    retry_at_ms: int = 0,
) -> Leg:
    """Move a leg's current epoch to `state` and note it in the server's book."""
    changed = replace(leg, state=state, reason=reason or leg.reason, fault=fault, updated_ms=now_ms)
    values = _leg_values(changed) | {"retry_at_ms": retry_at_ms}
    connection.execute(t.legs.update().where(t.legs.c.id == leg.id).values(**values))
    note_epoch(connection, leg.id, leg.epoch, state, now_ms, reason)
    return changed


def note_epoch(connection: Connection, leg: str, epoch: Epoch, state: LegState, now_ms: int, reason: str = "") -> None:
    """Note in the server's book when a state of an epoch was first heard of."""
    same = _same_epoch(leg, epoch)
    row = connection.execute(select(t.epochs).where(same)).one_or_none()
    if row is None:
        return
    values: dict[str, Any] = {"state": state.value}
    mark = "final_ms" if state.final else _MARKS.get(state)
    if mark is not None and not getattr(row, mark):
        values[mark] = now_ms
    if reason:
        values["reason"] = reason
    connection.execute(t.epochs.update().where(same).values(**values))


def epoch_row(connection: Connection, leg: str, epoch: Epoch) -> Row[Any] | None:
    """Return the server's book of one epoch."""
    return connection.execute(select(t.epochs).where(_same_epoch(leg, epoch))).one_or_none()


def set_progress(connection: Connection, leg: Leg, progress: dict[str, Any], now_ms: int) -> None:
    """Keep a leg's latest progress, and in the book of its epoch when it last moved.

    Where the progress says by `kept` what would not be lost, it counts as moved when that does.
    """
    known = connection.execute(select(t.legs.c.progress).where(t.legs.c.id == leg.id)).scalar()
    if known == progress:
        return
    connection.execute(t.legs.update().where(t.legs.c.id == leg.id).values(progress=progress))
    if "kept" not in progress or progress["kept"] != (known or {}).get("kept"):
        connection.execute(t.epochs.update().where(_same_epoch(leg.id, leg.epoch)).values(kept_ms=now_ms))


def set_stopping_for(connection: Connection, leg: str, job: str) -> None:
    """Note the job that a leg's GPUs are taken back for."""
    connection.execute(t.legs.update().where(t.legs.c.id == leg).values(stopping_for=job))


def nominate(connection: Connection, job: str) -> None:
    """Note that GPUs are taken back for a waiting job: it is served first until it is placed.

    The job's version stays, since one plan may evict several jobs for it.
    """
    connection.execute(t.jobs.update().where(t.jobs.c.id == job).values(nominated=True))


def forget_retries(connection: Connection, attempt_id: str) -> None:
    """Let no further epoch of an attempt's legs follow."""
    connection.execute(t.legs.update().where(t.legs.c.attempt == attempt_id).values(retry_at_ms=0))


def set_retry(connection: Connection, leg: str, retry_at_ms: int) -> None:
    """Let the next epoch of an ended leg follow at `retry_at_ms`."""
    connection.execute(t.legs.update().where(t.legs.c.id == leg).values(retry_at_ms=retry_at_ms))


def waiting_legs(connection: Connection) -> list[Row[Any]]:
    """Return the legs whose next epoch is awaited (`retry_at_ms` above 0), by id."""
    return list(connection.execute(select(t.legs).where(t.legs.c.retry_at_ms > 0).order_by(t.legs.c.id)))


def leg_of(row: Row[Any]) -> Leg:
    """Return the leg in a row of the legs table."""
    return _leg(row)


def _same_epoch(leg: str, epoch: Epoch) -> ColumnElement[bool]:
    of_leg = t.epochs.c.leg == leg
    return of_leg & (t.epochs.c.incarnation == epoch.incarnation) & (t.epochs.c.counter == epoch.counter)


def _insert_epoch(connection: Connection, leg: Leg, now_ms: int) -> None:
    connection.execute(t.epochs.insert().values(**_epoch_values(leg, now_ms)))


def _epoch_values(leg: Leg, now_ms: int) -> dict[str, Any]:
    return {
        "leg": leg.id,
        "incarnation": leg.epoch.incarnation,
        "counter": leg.epoch.counter,
        "job": leg.job,
        "site": leg.site,
        "state": leg.state.value,
        "offered_ms": now_ms,
    }


def _leg_values(leg: Leg) -> dict[str, Any]:
    return {
        "attempt": leg.attempt,
        "job": leg.job,
        "site": leg.site,
        "incarnation": leg.epoch.incarnation,
        "counter": leg.epoch.counter,
        "state": leg.state.value,
        "nodes": leg.nodes,
        "inputs": list(leg.inputs),
        "tries": leg.tries,
        "fault": "" if leg.fault is None else leg.fault.value,
        "reason": leg.reason,
        "updated_ms": leg.updated_ms,
    }


def _leg(row: Row[Any]) -> Leg:
    return Leg(
        id=row.id,
        attempt=row.attempt,
        job=row.job,
        site=row.site,
        epoch=Epoch(incarnation=row.incarnation, counter=row.counter),
        state=LegState(row.state),
        nodes=dict(row.nodes),
        inputs=tuple(row.inputs),
        tries=row.tries,
        fault=Fault(row.fault) if row.fault else None,
        reason=row.reason,
        updated_ms=row.updated_ms,
    )


def _job(connection: Connection, rows: list[Row[Any]]) -> list[Job]:
    job_ids = [row.id for row in rows]
    legs: dict[str, list[Leg]] = {}
    progress: dict[str, dict[str, Any]] = {}
    for part in _parts(job_ids):
        for row in connection.execute(select(t.legs).where(t.legs.c.job.in_(part)).order_by(t.legs.c.id)):
            legs.setdefault(row.attempt, []).append(_leg(row))
            progress[row.id] = dict(row.progress)
    attempts: dict[str, list[Attempt]] = {}
    for part in _parts(job_ids):
        for row in connection.execute(
            select(t.attempts).where(t.attempts.c.job.in_(part)).order_by(t.attempts.c.number)
        ):
            attempts.setdefault(row.job, []).append(
                Attempt(
                    id=row.id,
                    job=row.job,
                    number=row.number,
                    started_ms=row.started_ms,
                    legs=tuple(sorted(legs.get(row.id, ()), key=lambda leg: leg.site)),
                )
            )
    return [_one_job(row, tuple(attempts.get(row.id, ())), progress) for row in rows]


def _one_job(row: Row[Any], attempts: tuple[Attempt, ...], progress: dict[str, dict[str, Any]]) -> Job:
    latest = attempts[-1].legs if attempts else ()
    return Job(
        id=row.id,
        spec=from_json(JobSpec, row.spec, where=row.id),
        signature=row.signature,
        state=JobState(row.state),
        created_ms=row.created_ms,
        updated_ms=row.updated_ms,
        version=row.version,
        reason=None if row.reason is None else from_json(Reason, row.reason, where=row.id),
        attempts=attempts,
        result=dict(row.result),
        tracking_run=row.tracking_run,
        target_sites=tuple(row.sites),
        denials=from_json(tuple[Denial, ...], row.denials, where=row.id),
        progress={leg.site: progress[leg.id] for leg in latest},
    )


def _parts(items: list[str], size: int = 500) -> Iterable[list[str]]:
    return (items[start : start + size] for start in range(0, len(items), size))
