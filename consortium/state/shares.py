"""What the past says about accounts: fair-share history, run times, GPU time metered in a period."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, case, func, select

from consortium.accounting.budgets import Claim
from consortium.scheduler.estimate import RunTimes
from consortium.scheduler.types import History
from consortium.state import tables as t
from consortium.state.database import get_meta, put_meta

METERED_MS = func.sum(t.usage.c.end_ms - t.usage.c.start_ms)
"""Milliseconds over rows of equally many GPUs: multiplied outside the database, whose integers have an end."""
_SINCE = "history_ms"


def load_history(connection: Connection) -> tuple[tuple[History, ...], int]:
    """Return the fair-share history by account, and as of when it is; 0 where none was kept yet."""
    rows = connection.execute(select(t.history).order_by(t.history.c.account))
    found = tuple(History(account=row.account, borrowed=row.borrowed, lent=row.lent) for row in rows)
    return found, int(get_meta(connection, _SINCE, "0"))


def save_history(connection: Connection, history: Iterable[History], as_of_ms: int) -> None:
    """Replace the fair-share history."""
    connection.execute(t.history.delete())
    rows = [{"account": item.account, "borrowed": item.borrowed, "lent": item.lent} for item in history]
    if rows:
        connection.execute(t.history.insert(), rows)
    put_meta(connection, _SINCE, str(as_of_ms))


def load_run_times(connection: Connection) -> RunTimes:
    """Return what accounts' jobs were seen to run for."""
    rows = list(connection.execute(select(t.run_times).order_by(t.run_times.c.account)))
    return RunTimes.restored(
        {row.account: tuple(row.shares) for row in rows}, {row.account: tuple(row.errors) for row in rows}
    )


def save_run_times(connection: Connection, run_times: RunTimes) -> None:
    """Replace what accounts' jobs were seen to run for."""
    connection.execute(t.run_times.delete())
    rows = [
        {"account": account, "shares": list(counts), "errors": list(run_times.errors[account])}
        for account, counts in sorted(run_times.shares.items())
    ]
    if rows:
        connection.execute(t.run_times.insert(), rows)


def metered(connection: Connection, start_ms: int, end_ms: int) -> dict[tuple[str, str], int]:
    """Return GPU-milliseconds metered in [start_ms, end_ms) by account and site; rows in conflict do not count."""
    keys = (t.usage.c.account, t.usage.c.site, t.usage.c.gpus)
    inside = (t.usage.c.start_ms >= start_ms) & (t.usage.c.start_ms < end_ms) & (t.usage.c.conflict == "")
    query = select(*keys, METERED_MS).where(inside).group_by(*keys).order_by(*keys)
    found: dict[tuple[str, str], int] = {}
    for account, site, gpus, held_ms in connection.execute(query):
        found[account, site] = found.get((account, site), 0) + gpus * int(held_ms)
    return found


def metered_until(connection: Connection, sites: Mapping[str, str]) -> dict[str, int]:
    """Return until when each leg was metered by its site (`sites`, by leg); those of which nothing counts are left out.

    Rows in conflict do not count, nor what another site says of the leg.
    """
    names = sorted(sites)
    found: dict[str, int] = {}
    for start in range(0, len(names), 500):
        counts = t.usage.c.leg.in_(names[start : start + 500]) & (t.usage.c.conflict == "")
        keys = (t.usage.c.leg, t.usage.c.site)
        query = select(*keys, func.max(t.usage.c.end_ms)).where(counts).group_by(*keys)
        found |= {leg: int(until) for leg, site, until in connection.execute(query) if site == sites[leg]}
    return found


def unmetered(connection: Connection, since_ms: int) -> list[Claim]:
    """Return what legs used whose epochs ended after `since_ms`, as far as their sites have yet to report it.

    By the server's own book. A site's records are a chain: once it wrote one after the end of an epoch, all usage of
    the epoch is here. So nothing stays of a site that reports, and all of one that is away, or keeps its usage back.
    """
    last = (t.chains.c.origin == t.records.c.origin) & (t.records.c.seq == t.chains.c.next_seq - 1)
    written = select(t.records.c.origin, t.records.c.at_ms).join(t.chains, last).subquery()
    began = case((t.epochs.c.running_ms > 0, t.epochs.c.running_ms), else_=t.epochs.c.start_ms)
    unheard = t.epochs.c.final_ms > func.coalesce(written.c.at_ms, 0)
    query = (
        select(t.legs.c.id, t.legs.c.site, t.legs.c.nodes, t.jobs.c.account, began, t.epochs.c.final_ms)
        .join(t.legs, t.legs.c.id == t.epochs.c.leg)
        .join(t.jobs, t.jobs.c.id == t.epochs.c.job)
        .outerjoin(written, written.c.origin == t.epochs.c.site)
        .where((t.epochs.c.final_ms > since_ms) & (began > 0) & unheard)
        .order_by(t.epochs.c.leg, t.epochs.c.final_ms)
    )
    rows = list(connection.execute(query))
    until = metered_until(connection, {leg: site for leg, site, *_ in rows})
    claims = [
        Claim(account=account, site=site, gpus=sum(nodes.values()), start_ms=max(start_ms, until.get(leg, 0)),
              end_ms=end_ms)
        for leg, site, nodes, account, start_ms, end_ms in rows
    ]  # fmt: skip
    return [claim for claim in claims if claim.end_ms > claim.start_ms]
