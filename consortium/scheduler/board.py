"""The picture of the federation: free GPUs and tenants per node, quota, ends of legs. Changed leg by leg."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from consortium.domain import ids
from consortium.domain.job import Priority
from consortium.domain.partner import Cotenancy, Site, SiteState
from consortium.domain.quota import Account
from consortium.scheduler.quota import QuotaTree
from consortium.scheduler.types import HeldLeg, LegPlacement, PendingJob, SiteView, Snapshot, Window, WindowKind

NOBODY: frozenset[str] = frozenset()


class Kind(NamedTuple):
    """What of a held leg decides who may evict it."""

    account: str
    partner: str
    priority: Priority
    anywhere: bool
    preemptible: bool


class Running(NamedTuple):
    """A leg that holds GPUs until `ends_ms` at the latest. Sorts by its end."""

    ends_ms: int
    site: str
    leg: str
    held: HeldLeg
    gpus: int
    kind: Kind


class SiteUse:
    """Free GPUs and tenants of one site's nodes.

    A node's tenants are counted under a key that says who may share it: the partner, the job (`exclusive`), or nobody
    in particular (`open`). A node takes a leg if it is empty or all its tenants have the leg's key.
    """

    __slots__ = ("_cordoned", "_rooms", "_sums", "_tenants", "free", "free_total", "site", "version")

    def __init__(self, site: Site, cordoned: Iterable[str] = ()) -> None:
        self.site = site
        self.free: dict[str, int] = {node.id: node.gpus for node in sorted(site.nodes, key=lambda node: node.id)}
        self._cordoned = frozenset(cordoned)
        self._tenants: dict[str, dict[str, int]] = {node: {} for node in self.free}
        self.free_total = site.gpus
        self.version = 0
        self._rooms: dict[tuple[str | None, int], dict[str, int]] = {}  # answers, kept up to date
        self._sums: dict[tuple[str | None, int], int] = {}

    def copy(self) -> SiteUse:
        """Return a picture of its own."""
        twin = object.__new__(SiteUse)
        twin.site = self.site
        twin.free = dict(self.free)
        twin._cordoned = self._cordoned
        twin._tenants = {node: dict(tenants) for node, tenants in self._tenants.items()}
        twin.free_total = self.free_total
        twin.version = self.version
        twin._rooms, twin._sums = {}, {}
        return twin

    def tenant(self, job: str, partner: str) -> str:
        """The key under which a job of `partner` would be counted here."""
        if self.site.cotenancy is Cotenancy.PARTNER:
            return partner
        return job if self.site.cotenancy is Cotenancy.EXCLUSIVE else "*"

    def tenants(self, node: str) -> dict[str, int]:
        """How many legs of each tenant key the node holds. Not to be changed."""
        return self._tenants[node]

    def cordoned(self, node: str) -> bool:
        """Whether the node takes no new legs."""
        return node in self._cordoned

    def take(self, nodes: dict[str, int], tenant: str) -> None:
        """Take GPUs; nodes that the site no longer has are not counted."""
        for node, gpus in nodes.items():
            if node in self.free:
                self.free[node] -= gpus
                self.free_total -= gpus
                tenants = self._tenants[node]
                tenants[tenant] = tenants.get(tenant, 0) + 1
                self._recount(node)
        self.version += 1

    def release(self, nodes: dict[str, int], tenant: str) -> None:
        """Undo a `take`."""
        for node, gpus in nodes.items():
            if node in self.free:
                self.free[node] += gpus
                self.free_total += gpus
                tenants = self._tenants[node]
                tenants[tenant] -= 1
                if not tenants[tenant]:
                    del tenants[tenant]
                self._recount(node)
        self.version += 1

    def rooms(self, tenant: str | None, worker: int) -> dict[str, int]:
        """GPUs per node that workers of `worker` GPUs can take; a tenant of None looks past cotenancy.

        Not to be changed, nor kept: it follows the nodes.
        """
        rooms = self._rooms.get((tenant, worker))
        if rooms is None:
            rooms = self._rooms[tenant, worker] = self._count(tenant, worker)
            self._sums[tenant, worker] = sum(rooms.values())
        return rooms

    def room(self, tenant: str | None, worker: int) -> int:
        """The sum of `rooms`."""
        if (tenant, worker) not in self._sums:
            self.rooms(tenant, worker)
        return self._sums[tenant, worker]

    def _recount(self, node: str) -> None:
        """Bring the kept answers up to date with one node."""
        if not self._rooms or node in self._cordoned:
            return
        free, tenants = self.free[node], self._tenants[node]
        for key, rooms in self._rooms.items():
            tenant, worker = key
            shared = not tenants or tenant is None or (len(tenants) == 1 and tenant in tenants)
            room = free - free % worker if shared and free >= worker else 0
            before = rooms.get(node, 0)
            if room != before:
                self._sums[key] += room - before
                if room:
                    rooms[node] = room
                else:
                    del rooms[node]

    def _count(self, tenant: str | None, worker: int) -> dict[str, int]:
        rooms = {}
        for node, free in self.free.items():
            if free >= worker and node not in self._cordoned:
                tenants = self._tenants[node]
                if not tenants or tenant is None or (len(tenants) == 1 and tenant in tenants):
                    rooms[node] = free - free % worker
        return rooms


class Layer:
    """Sites and quota at one instant: now, or when a reserved job is to start.

    A `quota` of None binds nobody: no limit of the tree can be reached before the GPUs are used up.
    """

    __slots__ = ("quota", "sites")

    def __init__(self, sites: dict[str, SiteUse], quota: QuotaTree | None) -> None:
        self.sites = sites
        self.quota = quota

    def use(self, site: str) -> SiteUse | None:
        """The site as this layer shows it; None where it does not."""
        return self.sites.get(site)

    def limits(self) -> QuotaTree | None:
        """The quota as this layer shows it."""
        return self.quota

    def take(self, leg: HeldLeg, gpus: int) -> None:
        """Count a leg: its GPUs where the site is in the picture, its quota always."""
        if (use := self.sites.get(leg.site)) is not None:
            use.take(leg.nodes, use.tenant(leg.job, leg.partner))
        if self.quota is not None:
            self.quota.charge(leg.account, leg.flavor, gpus)

    def release(self, leg: HeldLeg, gpus: int) -> None:
        """Undo a `take`."""
        if (use := self.sites.get(leg.site)) is not None:
            use.release(leg.nodes, use.tenant(leg.job, leg.partner))
        if self.quota is not None:
            self.quota.release(leg.account, leg.flavor, gpus)


class Shadow(Layer):
    """The picture at the start of a reserved job, with the job in it. A job that still runs then must fit in too."""

    __slots__ = ("job", "legs", "start_ms")

    def __init__(
        self,
        sites: dict[str, SiteUse],
        quota: QuotaTree | None,
        job: PendingJob,
        start_ms: int,
        legs: tuple[LegPlacement, ...],
    ) -> None:
        super().__init__(sites, quota)
        self.job = job
        self.start_ms = start_ms
        self.legs = legs


class Board(Layer):
    """The present: all sites, all held legs, in order of their ends."""

    __slots__ = (
        "_largest",
        "_windows",
        "accounts",
        "at",
        "by_job",
        "claimed",
        "flavors",
        "items",
        "kinds",
        "now_ms",
        "quota",
        "running",
        "views",
    )

    quota: QuotaTree

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__({}, None)
        self.now_ms = snapshot.now_ms
        self.running: list[Running] = []
        """Every held leg, by its end."""
        self.at: dict[str, list[Running]] = {}
        """The same per site."""
        self.by_job: dict[str, dict[str, Running]] = {}
        """Job to leg id to leg."""
        self.items: dict[str, Running] = {}
        """Leg id to leg."""
        self.kinds: dict[str, dict[Kind, int]] = {}
        """Per site the GPUs held by legs of each kind."""
        self.views: dict[str, SiteView] = {}
        self.flavors: dict[str, str] = {}
        """Site to the id of its flavor."""
        self.claimed: dict[str, str] = {}
        """In a cycle: site to the job that waits there for what is its own; nothing on loan starts there before it."""
        self._windows: dict[str, list[Window]] = {}
        self._largest: dict[tuple[str, int], int] = {}
        self.lay(snapshot.sites, snapshot.accounts, snapshot.held, snapshot.windows)

    def lay(
        self,
        views: Iterable[SiteView],
        accounts: Iterable[Account],
        held: Iterable[HeldLeg],
        windows: Iterable[Window],
    ) -> None:
        """Draw the picture anew."""
        ordered = sorted(views, key=lambda view: view.site.id)
        self.accounts = tuple(sorted(accounts, key=lambda account: account.id))
        self.sites = {view.site.id: SiteUse(view.site, view.cordoned) for view in ordered}
        self.quota = QuotaTree(self.accounts)
        self.views = {view.site.id: view for view in ordered}
        self.flavors = {view.site.id: view.site.flavor.id for view in ordered}
        self._largest = {}
        self.set_windows(windows)
        self.running, self.at, self.by_job, self.items = [], {site: [] for site in self.sites}, {}, {}
        self.kinds = {site: {} for site in self.sites}
        for leg in held:
            self.hold(leg)

    def set_windows(self, windows: Iterable[Window]) -> None:
        """Set the intervals in which nodes are set aside."""
        self._windows = {}
        for window in sorted(windows, key=lambda item: (item.start_ms, item.id)):
            self._windows.setdefault(window.site, []).append(window)

    def windows(self, site: str) -> Sequence[Window]:
        """The intervals that set nodes of the site aside."""
        return self._windows.get(site, ())

    def open(self, site: str) -> bool:
        """Whether the site takes new legs."""
        return self.views[site].state is SiteState.ACTIVE

    def largest_leg(self, site: Site, worker: int) -> int:
        """GPUs of the largest leg the empty site can hold, in workers of `worker` GPUs."""
        largest = self._largest.get((site.id, worker))
        if largest is None:
            largest = self._largest[site.id, worker] = sum(node.gpus - node.gpus % worker for node in site.nodes)
        return largest

    def barred(self, job: PendingJob, site: str, start_ms: int) -> frozenset[str]:
        """Nodes of the site that a job starting at `start_ms` may not use: set aside in that time, or to be avoided."""
        if not job.avoid and site not in self._windows:
            return NOBODY
        nodes = {node for where, node in job.avoid if where == site}
        ends_ms = start_ms + job.walltime_s * 1000
        for window in self._windows.get(site, ()):
            if window.start_ms < ends_ms and window.end_ms > start_ms and not may_use(window, job):
                nodes |= set(window.nodes or self.sites[site].free)
        return frozenset(nodes)

    def hold(self, leg: HeldLeg) -> Running:
        """Let a leg hold its GPUs and quota from now on."""
        gpus = leg.gpus
        kind = Kind(leg.account, leg.partner, leg.priority, leg.anywhere, leg.preemptible)
        item = Running(leg.ends_ms, leg.site, leg.leg, leg, gpus, kind)
        insort(self.running, item)
        insort(self.at.setdefault(leg.site, []), item)
        self.by_job.setdefault(leg.job, {})[leg.leg] = item
        self.items[leg.leg] = item
        kinds = self.kinds.setdefault(leg.site, {})
        kinds[kind] = kinds.get(kind, 0) + gpus
        self.take(leg, gpus)
        return item

    def end(self, item: Running) -> None:
        """Let a leg's GPUs and quota be free."""
        self._forget(item)
        kinds = self.kinds[item.site]
        kinds[item.kind] -= item.gpus
        if not kinds[item.kind]:
            del kinds[item.kind]
        self.release(item.held, item.gpus)

    def mark(self, item: Running, leg: HeldLeg) -> None:
        """Put `leg` in the place of `item`: the same GPUs, another end or another purpose."""
        self._forget(item)
        changed = Running(leg.ends_ms, leg.site, leg.leg, leg, item.gpus, item.kind)
        insort(self.running, changed)
        insort(self.at[leg.site], changed)
        if (use := self.sites.get(leg.site)) is not None:
            use.version += 1
        self.by_job.setdefault(leg.job, {})[leg.leg] = changed
        self.items[leg.leg] = changed

    def legs(self) -> tuple[HeldLeg, ...]:
        """Every held leg, by its end."""
        return tuple(item.held for item in self.running)

    def start(self, job: PendingJob, legs: Sequence[LegPlacement], shadows: Iterable[Shadow]) -> list[HeldLeg]:
        """Let a job hold its legs from now on, in the present and in every shadow it reaches."""
        held = [held_leg(job, placed, self.now_ms) for placed in legs]
        for leg in held:
            item = self.hold(leg)
            for shadow in shadows:
                shadow.take(leg, item.gpus)
        return held

    def _forget(self, item: Running) -> None:
        for items in (self.running, self.at[item.site]):
            del items[bisect_left(items, item[:3])]
        del self.items[item.leg]
        legs = self.by_job[item.held.job]
        del legs[item.leg]
        if not legs:
            del self.by_job[item.held.job]


def may_use(window: Window, job: PendingJob) -> bool:
    """Whether the interval is a reservation of the job's own account, or of one above it."""
    if window.kind is not WindowKind.RESERVATION:
        return False
    return job.account == window.account or job.account.startswith(f"{window.account}/")


def held_leg(job: PendingJob, placed: LegPlacement, start_ms: int) -> HeldLeg:
    """The leg that starts at `start_ms`; its id is the job's and the site's until the server gives it one."""
    return HeldLeg(
        leg=leg_name(job.id, placed.site),
        job=job.id,
        account=job.account,
        partner=ids.partner_of(job.account),
        site=placed.site,
        flavor=placed.flavor,
        nodes=placed.nodes,
        priority=job.priority,
        started_ms=start_ms,
        walltime_s=job.walltime_s,
        checkpoint_every_s=job.checkpoint_every_s,
        preemptible=job.preemptible,
        expected_s=job.expected_s,
        anywhere=not job.sites,
    )


def stopping(leg: HeldLeg, for_job: str, now_ms: int, stop_s: int) -> HeldLeg:
    """The leg once it has been told to stop: it ends within `stop_s`."""
    walltime_s = max(1, -(-(now_ms + stop_s * 1000 - leg.started_ms) // 1000))
    return replace(leg, stopping_for=for_job, walltime_s=min(walltime_s, leg.walltime_s))


def leg_name(job: str, site: str) -> str:
    """The stand-in id of a leg that has none yet."""
    return f"{job}@{site}"
