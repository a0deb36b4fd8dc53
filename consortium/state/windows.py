"""Intervals in which nodes of a site are set aside: maintenance, and reservations for an account."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from consortium.scheduler.types import Window, WindowKind
from consortium.state import tables as t


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWindow:
    """A window with who planned it."""

    window: Window
    by: str
    created_ms: int


def add(connection: Connection, window: Window, *, by: str, now_ms: int) -> None:
    """Store a window."""
    connection.execute(
        t.windows.insert().values(
            id=window.id,
            site=window.site,
            kind=window.kind.value,
            nodes=sorted(window.nodes),
            start_ms=window.start_ms,
            end_ms=window.end_ms,
            account=window.account,
            by=by,
            created_ms=now_ms,
            removed_ms=0,
        )
    )


def standing(connection: Connection, now_ms: int, *, site: str = "") -> list[PlannedWindow]:
    """Return the windows that are not over and were not called off, by start and id."""
    lasting = (t.windows.c.removed_ms == 0) & (t.windows.c.end_ms > now_ms)
    query = select(t.windows).where(lasting).order_by(t.windows.c.start_ms, t.windows.c.id)
    if site:
        query = query.where(t.windows.c.site == site)
    return [_planned(row) for row in connection.execute(query)]


def find(connection: Connection, window: str, now_ms: int) -> PlannedWindow | None:
    """Return a window that is not over and was not called off."""
    return next((item for item in standing(connection, now_ms) if item.window.id == window), None)


def remove(connection: Connection, window: str, now_ms: int) -> None:
    """Call a window off."""
    connection.execute(t.windows.update().where(t.windows.c.id == window).values(removed_ms=now_ms))


def _planned(row: Row[Any]) -> PlannedWindow:
    window = Window(
        id=row.id,
        kind=WindowKind(row.kind),
        site=row.site,
        nodes=tuple(row.nodes),
        start_ms=row.start_ms,
        end_ms=row.end_ms,
        account=row.account,
    )
    return PlannedWindow(window=window, by=row.by, created_ms=row.created_ms)
