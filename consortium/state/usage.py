"""What sites metered, beside what the server leased them.

A row that is not of a lease as the server knows it stays in the ledger and in the table, marked with what differs. It
counts in no budget. It is not refused: the server may have lost the lease (a backup was restored), and a refusal would
hold up the site's whole chain.
"""

from __future__ import annotations

from sqlalchemy import Connection, select

from consortium.domain.codec import to_json
from consortium.domain.job import Epoch
from consortium.domain.records import Record, UsageRow
from consortium.state import tables as t

SKEW_MS = 600_000
"""How far a site's clock may be from the server's (the most that `max_skew_ms` may be), and how long a leg may take to
stop once its lease is over."""


def take_usage(connection: Connection, record: Record, row: UsageRow, now_ms: int) -> None:
    """Store a row of a site's usage record; the same row metered again is passed over.

    `now_ms` is when the record came in: nothing can have been metered after it.
    """
    values = to_json(row)
    same = [t.usage.c[name] == value for name, value in values.items()]
    if connection.execute(select(t.usage.c.seq).where(*same)).first() is not None:
        return
    conflict = _not_leased(connection, row, now_ms) or _metered_before(connection, row)
    connection.execute(t.usage.insert().values(**values, origin=record.origin, seq=record.seq, conflict=conflict[:255]))


def _not_leased(connection: Connection, row: UsageRow, now_ms: int) -> str:
    """Return in what a row differs from the lease that it names; empty where it is of it."""
    query = (
        select(t.legs.c.site, t.legs.c.flavor, t.legs.c.job, t.jobs.c.account, t.legs.c.nodes)
        .join(t.jobs, t.jobs.c.id == t.legs.c.job)
        .where(t.legs.c.id == row.leg)
    )
    leg = connection.execute(query).one_or_none()
    if leg is None:
        return "leg: there is none of this id"
    for name in ("site", "job", "account", "flavor"):
        if getattr(row, name) != getattr(leg, name):
            return f"{name}: the leg's is {getattr(leg, name)}"
    gpus = sum(leg.nodes.values())
    if row.gpus > gpus:
        return f"gpus: the leg has {gpus}"
    lease = _lease(connection, row)
    if lease is None:
        return "epoch: the leg had none of this number"
    offered_ms, final_ms = lease
    if row.start_ms < offered_ms - SKEW_MS:
        return f"start_ms: it was offered at {offered_ms}"
    if row.end_ms > now_ms + SKEW_MS:
        return f"end_ms: it came in at {now_ms}"
    if final_ms and row.end_ms > final_ms + SKEW_MS:
        return f"end_ms: it was over at {final_ms}"
    return ""


def _lease(connection: Connection, row: UsageRow) -> tuple[int, int] | None:
    """Return when the epoch that a row names was offered and over (0 while it goes on); None where there was none."""
    query = select(t.epochs.c.incarnation, t.epochs.c.counter, t.epochs.c.offered_ms, t.epochs.c.final_ms)
    for incarnation, counter, offered_ms, final_ms in connection.execute(query.where(t.epochs.c.leg == row.leg)):
        if str(Epoch(incarnation=incarnation, counter=counter)) == row.epoch:
            return offered_ms, final_ms
    return None


def _metered_before(connection: Connection, row: UsageRow) -> str:
    """Return the record with which the site metered a part of the same stretch of the leg; empty where none did."""
    same = (t.usage.c.site == row.site) & (t.usage.c.leg == row.leg) & (t.usage.c.conflict == "")
    overlap = same & (t.usage.c.start_ms < row.end_ms) & (t.usage.c.end_ms > row.start_ms)
    other = connection.execute(select(t.usage.c.origin, t.usage.c.seq).where(overlap).limit(1)).one_or_none()
    return "" if other is None else f"{other.origin}:{other.seq}"
