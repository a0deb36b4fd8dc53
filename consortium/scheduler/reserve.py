"""Reservations: when a blocked job fits at the latest, and the picture of that instant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from consortium.domain import ids
from consortium.scheduler.board import Board, Running, Shadow, SiteUse, held_leg
from consortium.scheduler.fit import demand, lay_out
from consortium.scheduler.quota import QuotaTree
from consortium.scheduler.types import LegPlacement, PendingJob

Earliest = tuple[int, dict[str, int]] | None
"""The end after which a job fits at a site, and the nodes it takes then; None: not even when all legs have ended."""


class Planner:
    """Finds the earliest fit of blocked jobs. Keeps answers per site until the site changes."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._known: dict[str, tuple[int, dict[tuple[object, ...], Earliest]]] = {}

    def earliest_fit(
        self, job: PendingJob, sites: Sequence[str], ahead: Sequence[Shadow], *, binding: bool
    ) -> Shadow | None:
        """Return when and where the job fits first if every held leg ends by its walltime, with the job in the picture.

        `sites` are those the job may use (all of them, where it names its sites). Jobs `ahead` that hold reservations
        count against quota from now on; `binding` says whether quota can bind at all. None: it does not fit even when
        all legs have ended.
        """
        board = self._board
        since_ms = board.now_ms
        while True:
            found = self._places(job, sites, since_ms)
            if not found:
                return None
            start_ms = max(item[0] for item in found)
            if binding:
                need = demand(job, {site: board.flavors[site] for _, site, _ in found})
                free_ms = self._quota(job, need, ahead)
                if free_ms is None:
                    return None
                start_ms = max(start_ms, free_ms)
            if start_ms == since_ms or not any(board.windows(site) for _, site, _ in found):
                break
            since_ms = start_ms  # a window may have begun where it fits earlier than it fits everywhere
        legs = tuple(
            LegPlacement(site=site, flavor=board.flavors[site], nodes=nodes) for _, site, nodes in sorted(found)
        )
        return Reserved(board, job, start_ms, legs, ahead, binding=binding)

    def _places(self, job: PendingJob, sites: Sequence[str], since_ms: int) -> list[tuple[int, str, dict[str, int]]]:
        """Where it fits from which instant on, not before `since_ms`, on which nodes: all its sites or the first."""
        found = []
        for site in sites:
            earliest = self._at(job, site, since_ms)
            if earliest is not None:
                found.append((max(earliest[0], since_ms), site, earliest[1]))
            elif job.sites:
                return []
        if job.sites or not found:
            return found
        home = self._board.sites
        return [min(found, key=lambda item: (item[0], home[item[1]].site.partner != job.account[:2], item[1]))]

    def _at(self, job: PendingJob, site: str, since_ms: int) -> Earliest:
        use = self._board.sites[site]
        if self._board.windows(site) or job.avoid:
            return self._between_windows(job, site, since_ms)
        tenant = use.tenant(job.id, ids.partner_of(job.account))
        key = (tenant, job.gpus_per_worker, job.gpus)
        version, answers = self._known.get(site, (-1, {}))
        if version != use.version:
            answers = {}
            self._known[site] = use.version, answers
        if key not in answers:
            answers[key] = self._search(job, site, tenant)
        return answers[key]

    def _search(self, job: PendingJob, site: str, tenant: str) -> Earliest:
        """Let the legs at the site end one after the other until the job fits."""
        use, worker = self._board.sites[site], job.gpus_per_worker
        rooms = dict(use.rooms(tenant, worker))
        room = sum(rooms.values())
        if room >= job.gpus:
            nodes = lay_out(rooms, job.gpus)
            return None if nodes is None else (0, nodes)
        free: dict[str, int] = {}
        tenants: dict[str, dict[str, int]] = {}
        for item in self._board.at[site]:
            holder = use.tenant(item.held.job, item.held.partner)
            for node, gpus in item.held.nodes.items():
                if node not in use.free or use.cordoned(node):
                    continue
                if node not in free:
                    free[node] = use.free[node]
                    tenants[node] = dict(use.tenants(node))
                free[node] += gpus
                others = tenants[node]
                others[holder] -= 1
                if not others[holder]:
                    del others[holder]
                if not others or (len(others) == 1 and tenant in others):
                    now = free[node] - free[node] % worker
                    room += now - rooms.get(node, 0)
                    rooms[node] = now
            if room >= job.gpus:
                nodes = lay_out({node: gpus for node, gpus in rooms.items() if gpus}, job.gpus)
                return None if nodes is None else (max(item.ends_ms, 1), nodes)
        return None

    def _between_windows(self, job: PendingJob, site: str, since_ms: int) -> Earliest:
        """The same where nodes are set aside at times: try each instant from `since_ms` on at which something ends."""
        board = self._board
        now_ms, use = board.now_ms, board.sites[site].copy()
        tenant = use.tenant(job.id, ids.partner_of(job.account))
        ends = [max(item.ends_ms, now_ms + 1) for item in board.at[site]]
        later = (*ends, *(window.end_ms for window in board.windows(site)))
        instants = {since_ms, *(instant_ms for instant_ms in later if instant_ms > since_ms)}
        waiting = list(zip(ends, board.at[site], strict=True))
        for instant_ms in sorted(instants):
            while waiting and waiting[0][0] <= instant_ms:
                leg = waiting.pop(0)[1].held
                use.release(leg.nodes, use.tenant(leg.job, leg.partner))
            barred = board.barred(job, site, instant_ms)
            rooms = {node: room for node, room in use.rooms(tenant, job.gpus_per_worker).items() if node not in barred}
            if (nodes := lay_out(rooms, job.gpus)) is not None:
                return instant_ms, nodes
        return None

    def _quota(self, job: PendingJob, need: dict[str, int], ahead: Sequence[Shadow]) -> int | None:
        """The instant from which quota allows the job; None: not even when all legs have ended."""
        board = self._board
        tree = board.quota.copy()
        for shadow in ahead:
            for placed in shadow.legs:
                tree.charge(shadow.job.account, placed.flavor, placed.gpus)
        if _allows(tree, job, need):
            return board.now_ms
        for item in board.running:
            if item.held.flavor in need:
                tree.release(item.held.account, item.held.flavor, item.gpus)
                if _allows(tree, job, need):
                    return max(item.ends_ms, board.now_ms + 1)
        return None


def _allows(tree: QuotaTree, job: PendingJob, need: dict[str, int]) -> bool:
    return all(tree.available(job.account, flavor).gpus >= gpus for flavor, gpus in need.items())


class Reserved(Shadow):
    """A shadow that draws its sites, and its quota where that can bind, only when somebody looks at them."""

    __slots__ = ("_ahead", "_binding", "_board")

    def __init__(
        self,
        board: Board,
        job: PendingJob,
        start_ms: int,
        legs: tuple[LegPlacement, ...],
        ahead: Sequence[Shadow],
        *,
        binding: bool,
    ) -> None:
        super().__init__({}, None, job, start_ms, legs)
        self._board = board
        self._ahead = tuple(ahead)
        self._binding = binding

    def use(self, site: str) -> SiteUse | None:
        """The site at the start of the reserved job, with the job in it; None for sites that are not reserved."""
        drawn = self.sites.get(site)
        if drawn is None and (mine := next((leg for leg in self.legs if leg.site == site), None)) is not None:
            drawn = self._board.sites[site].copy()
            for item in self._ended(self._board.at[site]):
                drawn.release(item.held.nodes, drawn.tenant(item.held.job, item.held.partner))
            leg = held_leg(self.job, mine, self.start_ms)
            drawn.take(leg.nodes, drawn.tenant(leg.job, leg.partner))
            self.sites[site] = drawn
        return drawn

    def limits(self) -> QuotaTree | None:
        """The quota at the start of the reserved job, with the job and those that reserved before it in it."""
        if self.quota is None and self._binding:
            tree = self._board.quota.copy()
            for item in self._ended(self._board.running):
                tree.release(item.held.account, item.held.flavor, item.gpus)
            for shadow in (*self._ahead, self):
                for placed in shadow.legs:
                    tree.charge(shadow.job.account, placed.flavor, placed.gpus)
            self.quota = tree
        return self.quota

    def _ended(self, items: Sequence[Running]) -> Iterator[Running]:
        """The legs that have ended by the start of the reserved job."""
        for item in items:
            if max(item.ends_ms, self._board.now_ms + 1) > self.start_ms:
                return
            yield item
