"""Which nodes take new legs when: cordons, nodes that a job failed on, windows, recalls with notice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection

from consortium.domain.job import Resources
from consortium.domain.partner import Site
from consortium.domain.records import RecordType
from consortium.scheduler.types import Window, WindowKind
from consortium.server.core import Core
from consortium.state import nodes, windows
from consortium.state.nodes import FaultRow
from consortium.state.sites import SiteStatus

FOR_GOOD_MS = 100 * 366 * 86_400_000
"""How long a recalled site stays away, as far as the planner is concerned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shunned:
    """What is known of nodes at one moment."""

    sites: Mapping[str, Site]
    cordoned: Mapping[str, frozenset[str]]
    """By site."""
    faults: Mapping[str, tuple[FaultRow, ...]]
    """Faults of nodes by job, newest first."""

    def avoid(self, job: str, need: Resources) -> tuple[tuple[str, str], ...]:
        """Return the (site, node) pairs that a job is not to use again.

        The nodes it failed on, latest first, as long as the rest of their site can hold it: where it cannot, the job
        would never run again, and its backoff has to do.
        """
        found: set[tuple[str, str]] = set()
        for fault in self.faults.get(job, ()):
            site = self.sites.get(fault.site)
            if site is None:
                continue
            out = {node for where, node in found if where == site.id} | set(fault.nodes)
            if _room(site, out | self.cordoned.get(site.id, frozenset()), need) >= need.gpus:
                found |= {(site.id, node) for node in fault.nodes}
        return tuple(sorted(found))


def shunned(core: Core, connection: Connection) -> Shunned:
    """Read cordons and the faults that still count."""
    cordoned: dict[str, set[str]] = {}
    for item in nodes.cordons(connection):
        cordoned.setdefault(item.site, set()).add(item.node)
    by_job: dict[str, list[FaultRow]] = {}
    for fault in reversed(nodes.node_faults(connection, counts_since(core))):
        by_job.setdefault(fault.job, []).append(fault)
    return Shunned(
        sites=core.federation.sites,
        cordoned={site: frozenset(names) for site, names in cordoned.items()},
        faults={job: tuple(rows) for job, rows in by_job.items()},
    )


def counts_since(core: Core) -> int:
    """Return the moment from which on faults count."""
    return core.clock.now_ms() - core.settings.retry.window_s * 1000


def all_windows(core: Core, connection: Connection, stored: Mapping[str, SiteStatus]) -> tuple[Window, ...]:
    """Return the windows that are not over, and one for each recalled site, from the end of its notice on."""
    planned = [item.window for item in windows.standing(connection, core.clock.now_ms())]
    return tuple(planned) + tuple(recall(status) for status in stored.values() if status.withdraw_ms)


def recall(status: SiteStatus) -> Window:
    """Return the interval from the end of a recalled site's notice on."""
    return Window(
        id=f"withdrawal of {status.id}",
        kind=WindowKind.MAINTENANCE,
        site=status.id,
        nodes=(),
        start_ms=status.withdraw_ms,
        end_ms=status.withdraw_ms + FOR_GOOD_MS,
    )


def covers(window: Window, site: str, used: Iterable[str]) -> bool:
    """Whether a window sets any of the nodes that are used at a site aside."""
    return window.site == site and (not window.nodes or bool(set(window.nodes) & set(used)))


def cordon_failing(core: Core, connection: Connection, site: str, node: str, last: str) -> bool:
    """Cordon a node that failed too often; tells whether it did.

    A job that failed on another node as well says nothing of this one: it is likely to be the job.
    """
    retry = core.settings.retry
    sure = [fault for fault in nodes.node_faults(connection, counts_since(core)) if len(fault.nodes) == 1]
    places: dict[str, set[tuple[str, str]]] = {}
    for fault in sure:
        places.setdefault(fault.job, set()).add((fault.site, fault.nodes[0]))
    mine = [fault.job for fault in sure if places[fault.job] == {(site, node)}]
    if len(mine) < retry.cordon_faults or len(set(mine)) < retry.cordon_jobs:
        return False
    reason = f"{len(mine)} faults of {len(set(mine))} jobs within {retry.window_s // 60} minutes, last: {last}"
    if not nodes.cordon(connection, site, node, by="server", reason=reason, now_ms=core.clock.now_ms()):
        return False
    record_cordon(core, connection, site, node, "cordoned", by="server", reason=reason)
    return True


def record_cordon(
    core: Core, connection: Connection, site: str, node: str, state: str, *, by: str, reason: str
) -> None:
    """Write into the ledger that a node was cordoned, or that it is no longer."""
    body = {"site": site, "node": node, "state": state, "by": by, "reason": reason}
    core.record(connection, RecordType.DOWNTIME, body)


def _room(site: Site, out: set[str], need: Resources) -> int:
    worker = need.gpus_per_worker
    return sum(node.gpus - node.gpus % worker for node in site.nodes if node.id not in out)
