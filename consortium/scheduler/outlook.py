"""What room there will be once everything that is about to end has ended, and what it is promised to has started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from consortium.domain import ids
from consortium.scheduler.board import Board, Running, Shadow, SiteUse, held_leg
from consortium.scheduler.quota import ROOT, QuotaTree
from consortium.scheduler.types import PendingJob


class Outlook:
    """The board in `stop_s`: without the legs that stop or end by then, with the nominated jobs that wait for them.

    Whoever looks for room there neither takes back what comes free by itself nor counts what is promised already. A job
    that legs stop for counts against its quota also where it has no reservation by then: it was taken back for it.
    """

    def __init__(self, board: Board, stop_s: int, nominated: Sequence[Shadow], jobs: Mapping[str, PendingJob]) -> None:
        stop_ms = stop_s * 1000
        self._board = board
        self._nominated = nominated
        self._soon: list[Running] = []
        for item in board.running:
            if item.ends_ms > board.now_ms + stop_ms + 1000:
                break
            if item.held.stopping_for or item.ends_ms > board.now_ms - stop_ms:
                self._soon.append(item)
        self._going = frozenset(item.leg for item in self._soon)
        self._promised = self._charges(jobs)
        changes = bool(self._soon or nominated)
        self._over: dict[tuple[str, str, str, int], int] = {}
        self._alone: dict[tuple[str, str], int] | None = None
        self._sites: dict[str, SiteUse] = {} if changes else board.sites
        self.start_ms = board.now_ms + stop_ms
        self.quota = board.quota.copy() if changes else board.quota
        for item in self._soon:
            self.quota.release(item.held.account, item.held.flavor, item.gpus)
        for (account, flavor), gpus in self._promised.items():
            self.quota.charge(account, flavor, gpus)

    def use(self, site: str) -> SiteUse:
        """The site in this picture. Not to be changed."""
        drawn = self._sites.get(site)
        if drawn is None:
            drawn = self._sites[site] = self._board.sites[site].copy()
            for item in self._soon:
                if item.site == site:
                    drawn.release(item.held.nodes, drawn.tenant(item.held.job, item.held.partner))
            for shadow in self._nominated:
                for placed in shadow.legs:
                    if placed.site == site:
                        leg = held_leg(shadow.job, placed, self.start_ms)
                        drawn.take(leg.nodes, drawn.tenant(leg.job, leg.partner))
        return drawn

    def legs(self, site: str) -> list[Running]:
        """The legs that still hold GPUs of the site in this picture."""
        return [item for item in self._board.at[site] if item.leg not in self._going]

    def still(self, items: Sequence[Running]) -> list[Running]:
        """Those of the legs that this picture shows."""
        return [item for item in items if item.leg not in self._going]

    def within(self, account: str, flavor: str, gpus: int) -> tuple[bool, ...]:
        """Whether the account, and each above it but the root, stays within nominal with `gpus` more."""
        counted = self.quota.passes(account, flavor, gpus)
        return tuple(not (more and self.quota.above(node, flavor, more)) for node, more in counted if node != ROOT)

    def over(self, account: str, other: str, flavor: str, gpus: int = 0) -> int:
        """GPUs above nominal, with `gpus` more, of the highest account above `account` that is not above `other` too.

        Where `account` itself is above `other`, what counts is what it holds by itself against what is its own alone.
        """
        key = account, other, flavor, gpus
        known = self._over.get(key)
        if known is None:
            known = self._over[key] = self._count_over(account, other, flavor, gpus)
        return known

    def _count_over(self, account: str, other: str, flavor: str, gpus: int) -> int:
        shared = set(self.quota.path(other))
        branch = [node for node in self.quota.path(account) if node not in shared]
        if branch and gpus:
            more = dict(self.quota.passes(account, flavor, gpus))[branch[-1]]
            return self.quota.above(branch[-1], flavor, more) if more else 0
        if branch:
            return self.quota.above(branch[-1], flavor)
        own = self.quota.quota(account, flavor)
        if self._alone is None:
            self._alone = self._count_alone()
        return max(0, self._alone.get((account, flavor), 0) + gpus - (own.nominal if own else 0))

    def _count_alone(self) -> dict[tuple[str, str], int]:
        """GPUs per account and flavor, without what accounts below it hold."""
        alone: dict[tuple[str, str], int] = {}
        for item in self._board.running:
            if item.leg not in self._going:
                key = item.held.account, item.held.flavor
                alone[key] = alone.get(key, 0) + item.gpus
        for key, gpus in self._promised.items():
            alone[key] = alone.get(key, 0) + gpus
        return alone

    def _charges(self, jobs: Mapping[str, PendingJob]) -> dict[tuple[str, str], int]:
        """GPUs by account and flavor of the nominated jobs: as reserved, else at their sites.

        Of a job that may run anywhere they are of the flavor of which most GPUs stop for it.
        """
        legs = [(shadow.job.account, leg.flavor, leg.gpus) for shadow in self._nominated for leg in shadow.legs]
        reserved = {shadow.job.id for shadow in self._nominated}
        stopping: dict[str, Counter[str]] = {}
        for item in self._soon:
            if item.held.stopping_for in jobs and item.held.stopping_for not in reserved:
                stopping.setdefault(item.held.stopping_for, Counter())[item.held.flavor] += item.gpus
        for name, flavors in sorted(stopping.items()):
            job = jobs[name]
            mostly = max(sorted(flavors), key=lambda flavor: flavors[flavor])
            there = [self._board.flavors[site] for site in job.sites if site in self._board.flavors]
            legs += [(job.account, flavor, job.gpus) for flavor in there or [mostly]]
        charges: dict[tuple[str, str], int] = {}
        for account, flavor, gpus in legs:
            charges[account, flavor] = charges.get((account, flavor), 0) + gpus
        return charges

    def branch(self, account: str, other: str) -> str:
        """The account that `over` counts for; with a mark where it is that account alone."""
        shared = set(self.quota.path(other))
        branch = [node for node in self.quota.path(account) if node not in shared]
        return branch[-1] if branch else f"{account}/."


class Case:
    """A job that room is to be made for, and every picture in which there has to be room for it."""

    def __init__(
        self, board: Board, outlook: Outlook, kept: Sequence[Shadow], job: PendingJob, need: Mapping[str, int]
    ) -> None:
        self._board = board
        self._kept = kept
        """Reservations of jobs ahead that it would run into."""
        self.outlook = outlook
        self.job = job
        self.need = need
        self.partner = ids.partner_of(job.account)
        self._fits: dict[str, bool] = {}
        self._allowed: bool | None = None

    def barred(self, site: str) -> frozenset[str]:
        """Nodes that it may not use, were it to start when what stops has stopped."""
        return self._board.barred(self.job, site, self.outlook.start_ms)

    def rooms(self, site: str, going: Sequence[Running]) -> dict[str, int]:
        """GPUs per node it could take at the site, had the legs `going` ended, in every picture."""
        home = self._board.sites[site].site.partner == self.partner
        use = self._without(self.outlook.use(site), site, self.outlook.still(going))
        rooms = dict(use.rooms(use.tenant(self.job.id, self.partner), self.job.gpus_per_worker))
        for shadow in self._kept:
            if home and ids.partner_of(shadow.job.account) != self.partner:
                continue  # at home no guest is waited for
            if (shown := shadow.use(site)) is not None:
                later = self._without(shown, site, [item for item in going if item.ends_ms > shadow.start_ms])
                there = later.rooms(later.tenant(self.job.id, self.partner), self.job.gpus_per_worker)
                rooms = {node: min(room, there[node]) for node, room in rooms.items() if node in there}
        barred = self.barred(site)
        return {node: room for node, room in rooms.items() if node not in barred}

    def fits(self, site: str, going: Sequence[Running]) -> bool:
        """Whether there is room for its leg at the site, had the legs `going` ended."""
        if going:
            return self._has_room(site, going)
        known = self._fits.get(site)
        if known is None:
            known = self._fits[site] = self._has_room(site, going)
        return known

    def _has_room(self, site: str, going: Sequence[Running]) -> bool:
        free = self.outlook.use(site).free_total + sum(item.gpus for item in going if item.site == site)
        return free >= self.job.gpus and sum(self.rooms(site, going).values()) >= self.job.gpus

    def allowed(self, going: Sequence[Running]) -> bool:
        """Whether quota allows it, had the legs `going` ended."""
        if self._allowed is None:
            self._allowed = self._allowed_without(())
        return self._allowed or (bool(going) and self._allowed_without(going))

    def _allowed_without(self, going: Sequence[Running]) -> bool:
        trees: list[tuple[QuotaTree, list[Running]]] = [(self.outlook.quota, self.outlook.still(going))]
        for shadow in self._kept:
            if (tree := shadow.limits()) is not None:
                trees.append((tree, [item for item in going if item.ends_ms > shadow.start_ms]))
        return all(self._allows(tree, legs) for tree, legs in trees)

    def _allows(self, tree: QuotaTree, legs: Sequence[Running]) -> bool:
        for item in legs:
            tree.release(item.held.account, item.held.flavor, item.gpus)
        allowed = all(tree.available(self.job.account, flavor).gpus >= gpus for flavor, gpus in self.need.items())
        for item in reversed(legs):
            tree.charge(item.held.account, item.held.flavor, item.gpus)
        return allowed

    @staticmethod
    def _without(use: SiteUse, site: str, legs: Sequence[Running]) -> SiteUse:
        here = [item for item in legs if item.site == site]
        if not here:
            return use
        use = use.copy()
        for item in here:
            use.release(item.held.nodes, use.tenant(item.held.job, item.held.partner))
        return use
