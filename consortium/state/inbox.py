"""The inbox: what was acknowledged and awaits the scheduler loop, in order of arrival."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select

from consortium.state import tables as t


def put(connection: Connection, kind: str, payload: dict[str, Any], now_ms: int) -> int:
    """Store an item in the caller's transaction, the one whose commit acknowledges it; return its number."""
    result = connection.execute(t.inbox.insert().values(kind=kind, payload=payload, received_ms=now_ms))
    key = result.inserted_primary_key
    if key is None:
        raise RuntimeError("the database gave no number to an inbox item")
    return int(key[0])


def take(connection: Connection, limit: int = 200) -> list[tuple[int, str, dict[str, Any], int]]:
    """Return (number, kind, payload, received_ms) of the oldest items."""
    rows = connection.execute(select(t.inbox).order_by(t.inbox.c.id).limit(limit))
    return [(row.id, row.kind, row.payload, row.received_ms) for row in rows]


def done(connection: Connection, number: int) -> None:
    """Delete a folded item, in the transaction that folded it."""
    connection.execute(t.inbox.delete().where(t.inbox.c.id == number))
