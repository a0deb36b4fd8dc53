"""Faults of sites and nodes, and the nodes that are cordoned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select

from consortium.domain.job import Fault, Leg
from consortium.state import tables as t


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """An epoch of a leg that ended by the fault of its site or of a node."""

    job: str
    leg: str
    epoch: str
    site: str
    nodes: tuple[str, ...]
    """The nodes that it may have been: one where it is sure."""
    fault: Fault
    reason: str
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cordon:
    """A node that takes no new legs."""

    site: str
    node: str
    since_ms: int
    by: str
    """Who cordoned it: a person, or `server` where it failed too often."""
    reason: str


def add_fault(
    connection: Connection, leg: Leg, fault: Fault, reason: str, now_ms: int, *, nodes: tuple[str, ...]
) -> None:
    """Note that a leg's epoch ended by a fault that is not its program's."""
    connection.execute(
        t.faults.insert().values(
            job=leg.job,
            leg=leg.id,
            epoch=str(leg.epoch),
            site=leg.site,
            nodes=sorted(nodes),
            fault=fault.value,
            reason=reason,
            at_ms=now_ms,
        )
    )


def count_faults(connection: Connection, leg: Leg, since_ms: int) -> int:
    """Return how often the leg's job failed at the leg's site by no fault of its program since then."""
    same = (t.faults.c.job == leg.job) & (t.faults.c.site == leg.site) & (t.faults.c.at_ms >= since_ms)
    return int(connection.execute(select(func.count()).select_from(t.faults).where(same)).scalar_one())


def node_faults(connection: Connection, since_ms: int) -> list[FaultRow]:
    """Return the faults of nodes since then, oldest first, but those of a node before its last cordon ended."""
    query = select(t.faults).where((t.faults.c.fault == Fault.NODE.value) & (t.faults.c.at_ms >= since_ms))
    mended = _mended(connection)
    found = [_fault(row) for row in connection.execute(query.order_by(t.faults.c.id))]
    return [row for row in found if any(row.at_ms >= mended.get((row.site, node), 0) for node in row.nodes)]


def cordons(connection: Connection, *, site: str = "") -> list[Cordon]:
    """Return the nodes that are cordoned now, by site and node."""
    query = select(t.cordons).where(t.cordons.c.ended_ms == 0).order_by(t.cordons.c.site, t.cordons.c.node)
    if site:
        query = query.where(t.cordons.c.site == site)
    return [
        Cordon(site=row.site, node=row.node, since_ms=row.since_ms, by=row.by, reason=row.reason)
        for row in connection.execute(query)
    ]


def cordon(connection: Connection, site: str, node: str, *, by: str, reason: str, now_ms: int) -> bool:
    """Cordon a node; False where it is cordoned already."""
    if any(item.node == node for item in cordons(connection, site=site)):
        return False
    connection.execute(
        t.cordons.insert().values(site=site, node=node, since_ms=now_ms, ended_ms=0, by=by, reason=reason)
    )
    return True


def uncordon(connection: Connection, site: str, node: str, now_ms: int) -> bool:
    """End a node's cordon; False where it has none. Its earlier faults count no more."""
    same = (t.cordons.c.site == site) & (t.cordons.c.node == node) & (t.cordons.c.ended_ms == 0)
    return bool(connection.execute(t.cordons.update().where(same).values(ended_ms=now_ms)).rowcount)


def _mended(connection: Connection) -> dict[tuple[str, str], int]:
    """When the last cordon of each node ended."""
    query = select(t.cordons.c.site, t.cordons.c.node, func.max(t.cordons.c.ended_ms).label("ended_ms"))
    rows = connection.execute(query.group_by(t.cordons.c.site, t.cordons.c.node))
    return {(row.site, row.node): int(row.ended_ms) for row in rows}


def _fault(row: Row[Any]) -> FaultRow:
    return FaultRow(
        job=row.job,
        leg=row.leg,
        epoch=row.epoch,
        site=row.site,
        nodes=tuple(row.nodes),
        fault=Fault(row.fault),
        reason=row.reason,
        at_ms=row.at_ms,
    )
