"""The mutable picture of the federation inside one cycle: free GPUs and tenants per node, quota, ends of legs."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from typing import NamedTuple

from consortium.domain import ids
from consortium.domain.partner import Cotenancy, Site, SiteState
from consortium.scheduler.quota import QuotaTree
from consortium.scheduler.types import HeldLeg, LegPlacement, PendingJob, SiteView, Snapshot


class Running(NamedTuple):
    """A leg that holds GPUs until `ends_ms` at the latest. Sorts by its end."""

    ends_ms: int
    site: str
    leg: str
    account: str
    partner: str
    job: str
    flavor: str
    nodes: dict[str, int]
    gpus: int


class SiteUse:
    """Free GPUs and tenants of one site's nodes.

    A node's tenants are counted under a key that says who may share it: the partner, the job (`exclusive`), or nobody
    in particular (`open`). A node takes a leg if it is empty or all its tenants have the leg's key.
    """

    __slots__ = ("_rooms", "_tenants", "free", "free_total", "site")

    def __init__(self, site: Site) -> None:
        self.site = site
        self.free: dict[str, int] = {node.id: node.gpus for node in sorted(site.nodes, key=lambda node: node.id)}
        self._tenants: dict[str, dict[str, int]] = {node: {} for node in self.free}
        self.free_total = site.gpus
        self._rooms: dict[tuple[str | None, int], dict[str, int]] = {}  # answers until the next change

    def copy(self) -> SiteUse:
        """Return a picture of its own."""
        twin = object.__new__(SiteUse)
        twin.site = self.site
        twin.free = dict(self.free)
        twin._tenants = {node: dict(tenants) for node, tenants in self._tenants.items()}
        twin.free_total = self.free_total
        twin._rooms = dict(self._rooms)
        return twin

    def tenant(self, job: str, partner: str) -> str:
        """The key under which a job of `partner` would be counted here."""
        if self.site.cotenancy is Cotenancy.PARTNER:
            return partner
        return job if self.site.cotenancy is Cotenancy.EXCLUSIVE else "*"

    def take(self, nodes: dict[str, int], tenant: str) -> None:
        """Take GPUs; nodes that the site no longer has are not counted."""
        self._rooms = {}
        for node, gpus in nodes.items():
            if node in self.free:
                self.free[node] -= gpus
                self.free_total -= gpus
                tenants = self._tenants[node]
                tenants[tenant] = tenants.get(tenant, 0) + 1

    def release(self, nodes: dict[str, int], tenant: str) -> None:
        """Undo a `take`."""
        self._rooms = {}
        for node, gpus in nodes.items():
            if node in self.free:
                self.free[node] += gpus
                self.free_total += gpus
                tenants = self._tenants[node]
                tenants[tenant] -= 1
                if not tenants[tenant]:
                    del tenants[tenant]

    def rooms(self, tenant: str | None, worker: int) -> dict[str, int]:
        """GPUs per node that workers of `worker` GPUs can take; a tenant of None looks past cotenancy."""
        rooms = self._rooms.get((tenant, worker))
        if rooms is None:
            rooms = self._rooms[tenant, worker] = self._count(tenant, worker)
        return rooms

    def _count(self, tenant: str | None, worker: int) -> dict[str, int]:
        rooms = {}
        for node, free in self.free.items():
            if free >= worker:
                tenants = self._tenants[node]
                if not tenants or tenant is None or (len(tenants) == 1 and tenant in tenants):
                    rooms[node] = free - free % worker
        return rooms


class Layer:
    """Sites and quota at one instant: now, or when a reserved job is to start."""

    __slots__ = ("quota", "sites")

    def __init__(self, sites: dict[str, SiteUse], quota: QuotaTree) -> None:
        self.sites = sites
        self.quota = quota

    def take(self, leg: Running) -> None:
        """Count a leg: its GPUs where the site is in the picture, its quota always."""
        if (use := self.sites.get(leg.site)) is not None:
            use.take(leg.nodes, use.tenant(leg.job, leg.partner))
        self.quota.charge(leg.account, leg.flavor, leg.gpus)

    def release(self, leg: Running) -> None:
        """Undo a `take`."""
        if (use := self.sites.get(leg.site)) is not None:
            use.release(leg.nodes, use.tenant(leg.job, leg.partner))
        self.quota.release(leg.account, leg.flavor, leg.gpus)


class Shadow(Layer):
    """The picture at the start of a reserved job, with the job in it. A job that still runs then must fit in too."""

    __slots__ = ("job", "legs", "start_ms")

    def __init__(self, layer: Layer, job: PendingJob, start_ms: int, legs: tuple[LegPlacement, ...]) -> None:
        super().__init__(layer.sites, layer.quota)
        self.job = job
        self.start_ms = start_ms
        self.legs = legs


class Board(Layer):
    """The present: all sites, all held legs, in order of their ends."""

    __slots__ = ("_largest", "now_ms", "running", "views")

    def __init__(self, snapshot: Snapshot) -> None:
        ordered = sorted(snapshot.sites, key=lambda view: view.site.id)
        super().__init__({view.site.id: SiteUse(view.site) for view in ordered}, QuotaTree(snapshot.accounts))
        self._largest: dict[tuple[str, int], int] = {}
        self.now_ms = snapshot.now_ms
        self.views: dict[str, SiteView] = {view.site.id: view for view in ordered}
        self.running: list[Running] = sorted((self._of(leg) for leg in snapshot.held), key=lambda leg: leg[:3])
        for leg in self.running:
            self.take(leg)

    def open(self, site: str) -> bool:
        """Whether the site takes new legs."""
        return self.views[site].state is SiteState.ACTIVE

    def largest_leg(self, site: Site, worker: int) -> int:
        """GPUs of the largest leg the empty site can hold, in workers of `worker` GPUs."""
        largest = self._largest.get((site.id, worker))
        if largest is None:
            largest = self._largest[site.id, worker] = sum(node.gpus - node.gpus % worker for node in site.nodes)
        return largest

    def start(self, job: PendingJob, legs: Sequence[LegPlacement], shadows: Sequence[Shadow]) -> None:
        """Let a job hold its legs from now on, in the present and in every shadow it reaches."""
        for placed in legs:
            leg = running_leg(job, placed, self.now_ms)
            insort(self.running, leg, key=lambda item: item[:3])
            self.take(leg)
            for shadow in shadows:
                shadow.take(leg)

    def _of(self, leg: HeldLeg) -> Running:
        ends_ms = max(leg.ends_ms, self.now_ms + 1)  # overdue: it may end any moment
        return Running(
            ends_ms, leg.site, leg.leg, leg.account, leg.partner, leg.job, leg.flavor, leg.nodes, leg.gpus
        )  # fmt: skip


def running_leg(job: PendingJob, placed: LegPlacement, start_ms: int) -> Running:
    """The leg that starts at `start_ms`; its id is the job's and the site's until the server gives it one."""
    return Running(
        start_ms + job.walltime_s * 1000,
        placed.site,
        leg_name(job.id, placed.site),
        job.account,
        ids.partner_of(job.account),
        job.id,
        placed.flavor,
        placed.nodes,
        placed.gpus,
    )


def leg_name(job: str, site: str) -> str:
    """The stand-in id of a leg that has none yet."""
    return f"{job}@{site}"
