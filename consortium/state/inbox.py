"""The inbox: what was acknowledged and awaits the scheduler loop, in order of arrival."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select

from consortium.domain.job import Epoch, LegState
from consortium.state import tables as t


def open_epochs(connection: Connection, site: str, legs: Iterable[str]) -> set[tuple[str, Epoch]]:
    """Return the epochs of these legs, as far as they are the site's, of which its word still changes something.

    That is until the epoch has ended; of a lost one, which may have succeeded unheard, until its attempt has.
    """
    named = sorted(set(legs))
    book, found = t.epochs.c, set()
    unheard = (t.legs.c.state == LegState.LOST.value) & (t.attempts.c.ended_ms == 0)
    tables = t.epochs.join(t.legs, t.legs.c.id == book.leg).join(t.attempts, t.attempts.c.id == t.legs.c.attempt)
    for start in range(0, len(named), 1000):  # a statement takes only so many values
        query = select(book.leg, book.incarnation, book.counter).select_from(tables)
        mine = (book.site == site) & book.leg.in_(named[start : start + 1000])
        for row in connection.execute(query.where(mine & ((book.final_ms == 0) | unheard))):
            found.add((row.leg, Epoch(incarnation=row.incarnation, counter=row.counter)))
    return found


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
