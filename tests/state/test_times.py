"""A clock that was set back between two runs of the server: what goes on waits no longer for it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from consortium.state import Database, shares, times
from consortium.state import tables as t

HOUR, NOW = 3_600_000, 1_795_000_000_000
AHEAD = NOW + HOUR


def put_leg(connection: Connection, name: str, state: str, updated_ms: int, **more: Any) -> None:
    values = {"attempt": "att", "job": "job", "site": "fr-1", "flavor": "h100-sxm", "incarnation": 1, "counter": 1,
              "nodes": {}, "inputs": [], "tries": 1, "progress": {}}  # fmt: skip
    connection.execute(t.legs.insert().values(id=name, state=state, updated_ms=updated_ms, **(values | more)))


def put_job(connection: Connection, name: str, state: str, updated_ms: int, not_before_ms: int) -> None:
    values = {"kind": "clean", "account": "fr", "version": 1, "spec": {}, "spec_digest": name, "signature": "",
              "sites": [], "denials": [], "result": {}}  # fmt: skip
    connection.execute(
        t.jobs.insert().values(id=name, state=state, updated_ms=updated_ms, not_before_ms=not_before_ms, **values)
    )


def column(db: Database, column: Any) -> dict[str, int]:
    with db.read() as connection:
        return {row[0]: row[1] for row in connection.execute(select(column.table.c[0], column))}


def test_what_goes_on_counts_as_noted_now_and_waits_no_longer_than_it_should(db: Database) -> None:
    with db.write() as connection:
        put_leg(connection, "leg-runs", "running", AHEAD)
        put_leg(connection, "leg-waits", "failed", AHEAD - 5_000, retry_at_ms=AHEAD + 5_000)
        put_leg(connection, "leg-waits-for-a-window", "stopped", NOW - HOUR, retry_at_ms=NOW + 5 * HOUR)
        put_leg(connection, "leg-is-over", "succeeded", AHEAD)
        put_job(connection, "job-waits", "pending", AHEAD, AHEAD + 60_000)
        put_job(connection, "job-is-over", "failed", AHEAD, AHEAD + 60_000)
        book = {"job": "job", "site": "fr-1", "state": "running", "incarnation": 1, "counter": 1}
        connection.execute(t.epochs.insert().values(leg="leg-runs", offered_ms=NOW - 5, running_ms=AHEAD, **book))
        connection.execute(t.epochs.insert().values(leg="leg-is-over", running_ms=AHEAD, final_ms=AHEAD, **book))
        shares.save_history(connection, (), AHEAD)
    with db.write() as connection:
        assert times.bring_back(connection, NOW) == HOUR
        assert times.bring_back(connection, NOW) == 0
        assert shares.load_history(connection)[1] == NOW
    assert column(db, t.legs.c.updated_ms) == {
        "leg-runs": NOW, "leg-waits": NOW, "leg-waits-for-a-window": NOW - HOUR, "leg-is-over": AHEAD}  # fmt: skip
    waits = {"leg-runs": 0, "leg-waits": NOW + 5_000, "leg-waits-for-a-window": NOW + 5 * HOUR, "leg-is-over": 0}
    assert column(db, t.legs.c.retry_at_ms) == waits
    assert column(db, t.jobs.c.not_before_ms) == {"job-waits": NOW + 60_000, "job-is-over": AHEAD + 60_000}
    assert column(db, t.epochs.c.running_ms) == {"leg-runs": NOW, "leg-is-over": AHEAD}
    assert column(db, t.epochs.c.offered_ms)["leg-runs"] == NOW - 5


def test_times_in_the_past_stay_as_they_are(db: Database) -> None:
    with db.write() as connection:
        put_leg(connection, "leg-runs", "running", NOW - 1)
        put_job(connection, "job-waits", "pending", NOW - 1, NOW + 60_000)
        shares.save_history(connection, (), NOW)
        assert times.bring_back(connection, NOW) == 0
    assert column(db, t.jobs.c.not_before_ms) == {"job-waits": NOW + 60_000}
