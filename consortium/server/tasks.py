"""What the tracking server is to be told. Written in the transaction of the change; a worker tells it, in order."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from consortium.domain.job import Job, Leg, LegState
from consortium.state import tables as t

_STATUS = {LegState.SUCCEEDED: "FINISHED", LegState.STOPPED: "KILLED", LegState.LOST: "FAILED"}


def job_started(connection: Connection, job: str, legs: list[str]) -> None:
    """A job was placed: make its run if it has none, and one below it for each leg."""
    _put(connection, "job_started", job)
    for leg in legs:
        _put(connection, "leg_started", job, leg)


def leg_ended(connection: Connection, leg: Leg, state: LegState) -> None:
    """A leg will have no further epoch."""
    _put(connection, "leg_ended", leg.job, leg.id, {"status": _STATUS.get(state, "FAILED")})


def job_ended(connection: Connection, job: Job) -> None:
    """A job reached a final state."""
    status = {"succeeded": "FINISHED", "cancelled": "KILLED"}.get(job.state.value, "FAILED")
    _put(connection, "job_ended", job.id, payload={"status": status})


def _put(connection: Connection, kind: str, job: str, leg: str = "", payload: dict[str, Any] | None = None) -> None:
    connection.execute(t.tracking_tasks.insert().values(kind=kind, job=job, leg=leg, payload=payload or {}, tries=0))
