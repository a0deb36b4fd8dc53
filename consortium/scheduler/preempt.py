"""Taking back what was lent: which running jobs make room for one that is within its own.

A job may take back GPUs by one of three rights (`EvictionRule`): from a borrower, while that account is above its
nominal and the job's account stays within its own, both seen where their lines meet in the tree (so a partner never
reaches into how another divides its own); from a guest at its own partner's site; from its own account, if the victim
is of a lower class or could run elsewhere while the job cannot. A leg that ran for less than `min_run_s`, one that is
stopping already, and a job of a higher class are never victims.

At each site the cheapest nodes are cleared, then every victim is spared that is not needed after all (the reverse
pass). The site with the least loss wins. Loss is the work since the last training checkpoint plus the time to stop,
over all legs of the victim. A disruption budget bounds evicted against requested GPUs; one victim is always allowed,
and the budget gives way once the job has waited for `min_run_s` and `stop_s`: nominal is available within that grace.

No loops: a job is evicted for one within its nominal, which can be evicted in turn only as a guest, by a job at home.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from consortium.domain import ids
from consortium.domain.job import Priority
from consortium.scheduler.board import Board, Running, SiteUse
from consortium.scheduler.fit import nodes_at
from consortium.scheduler.queue import Line
from consortium.scheduler.types import Eviction, EvictionRule, HeldLeg, PendingJob, Settings


class Victim(NamedTuple):
    """A running job that may be evicted, with all its legs. Sorts by what its eviction costs."""

    cost: int
    """GPU-milliseconds done again or spent on stopping."""
    newest_ms: int
    """Minus its start: of equal losses the newest goes first."""
    job: str
    rule: EvictionRule
    legs: tuple[Running, ...]
    gpus: int
    lost_gpu_ms: int


class Choice(NamedTuple):
    """Victims whose end lets the job start at the site. Sorts by loss."""

    cost: int
    gpus: int
    site: str
    victims: tuple[Victim, ...]


def lost_ms(leg: HeldLeg, now_ms: int) -> int:
    """Run time since the leg's last training checkpoint."""
    kept_ms = max(leg.started_ms, leg.checkpoint_ms)
    if leg.checkpoint_every_s and now_ms > leg.started_ms:
        every_ms = leg.checkpoint_every_s * 1000
        kept_ms = max(kept_ms, now_ms - (now_ms - leg.started_ms) % every_ms)
    return max(0, now_ms - kept_ms)


def within_nominal(board: Board, job: PendingJob, flavor: str, gpus: int) -> bool:
    """Whether the job keeps its account, and every account above it, within nominal."""
    return not any(board.quota.above(node, flavor, gpus) for node in board.quota.path(job.account)[:-1])


class Evictor:
    """Finds victims for the jobs of one cycle."""

    def __init__(self, board: Board, settings: Settings) -> None:
        self._board = board
        self._settings = settings
        self._ripe: dict[str, list[Running]] = {}
        """Per site the legs that may be evicted at all."""
        self._known: dict[tuple[str, str, Priority, bool, bool], list[Victim]] = {}

    def choose(self, job: PendingJob, line: Line) -> Choice | None:
        """Return whom to evict so that the job can start; None where nobody may be, or all would not suffice."""
        if not self._settings.preemption:
            return None
        nominal = {flavor: within_nominal(self._board, job, flavor, gpus) for flavor, gpus in line.need}
        if not job.sites and not any(nominal.values()):
            return None
        if len(job.sites) > 1:
            return self._everywhere(job, line, nominal) if all(nominal.values()) else None
        best: Choice | None = None
        for site in line.usable:
            found = self._at(job, site, nominal=nominal[self._board.flavors[site]])
            if found is not None and (best is None or found < best) and not self._too_many(job, found, job.gpus):
                best = found
        return best

    def forget(self) -> None:
        """Note that legs have been told to stop."""
        self._known.clear()
        self._ripe.clear()

    def _everywhere(self, job: PendingJob, line: Line, nominal: dict[str, bool]) -> Choice | None:
        """Make room at every site of a gang that has none; all of them or nothing."""
        board = self._board
        chosen: dict[str, Victim] = {}
        sites = []
        for site in line.usable:
            if nodes_at(job, site, (board,), barred=board.barred(job, site, board.now_ms)) is not None:
                continue
            found = self._at(job, site, nominal=nominal[board.flavors[site]])
            if found is None:
                return None
            sites.append(site)
            chosen |= {victim.job: victim for victim in found.victims}
        if not chosen:
            return None
        cost, count = sum(victim.cost for victim in chosen.values()), sum(victim.gpus for victim in chosen.values())
        choice = Choice(cost, count, ", ".join(sites), tuple(chosen.values()))
        return None if self._too_many(job, choice, job.gpus * len(job.sites)) else choice

    def _too_many(self, job: PendingJob, choice: Choice, gpus: int) -> bool:
        """Whether the disruption budget forbids the choice."""
        waited_ms = self._board.now_ms - job.created_ms
        patient = waited_ms < (self._settings.min_run_s + self._settings.stop_s) * 1000
        over = choice.gpus * 100 > self._settings.disruption_percent * gpus
        return patient and over and len(choice.victims) > 1

    def _at(self, job: PendingJob, site: str, *, nominal: bool) -> Choice | None:
        if not nominal and not job.sites:
            return None
        known = self._victims(job, site, nominal=nominal)
        if sum(victim.gpus for victim in known) + self._board.sites[site].free_total < job.gpus:
            return None
        victims = self._down_to_nominal(job, known, self._board.flavors[site])
        chosen = self._clear(job, site, victims) if victims else None
        if chosen is None:
            return None
        chosen = self._spare(job, site, chosen)
        if not chosen:
            return None
        return Choice(
            sum(victim.cost for victim in chosen),
            sum(victim.gpus for victim in chosen),
            site,
            tuple(chosen),
        )

    def _victims(self, job: PendingJob, site: str, *, nominal: bool) -> list[Victim]:
        """Jobs with a leg at the site that may be evicted for the job, borrowers first, cheapest first."""
        key = site, job.account, job.priority, bool(job.sites), nominal
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._look(job, site, nominal=nominal)
        return found

    def _look(self, job: PendingJob, site: str, *, nominal: bool) -> list[Victim]:
        board, settings = self._board, self._settings
        latest_ms = board.now_ms - settings.min_run_s * 1000
        ripe = self._ripe.get(site)
        if ripe is None:
            ripe = self._ripe[site] = [
                item
                for item in board.at[site]
                if item.held.started_ms <= latest_ms and item.held.preemptible and not item.held.stopping_for
            ]
        flavor = board.flavors[site]
        home = board.sites[site].site.partner == ids.partner_of(job.account)
        rules: dict[tuple[str, bool, bool], EvictionRule | None] = {}
        found: list[Victim] = []
        for item in ripe:
            leg = item.held
            lower = leg.priority.rank - job.priority.rank
            if lower < 0:
                continue
            case = leg.account, lower > 0, leg.anywhere
            if case not in rules:
                rules[case] = self._right(job, leg, flavor, nominal=nominal, alone=bool(job.sites), home=home)
            rule = rules[case]
            if rule is None:
                continue
            legs = tuple(board.by_job[leg.job].values())
            if len(legs) > 1 and any(other.held.stopping_for or other.held.started_ms > latest_ms for other in legs):
                continue
            lost = sum(lost_ms(other.held, board.now_ms) * other.gpus for other in legs)
            taken = sum(other.gpus for other in legs)
            cost = lost + settings.stop_s * 1000 * taken
            found.append(Victim(cost, -leg.started_ms, leg.job, rule, legs, taken, lost))
        found.sort(key=lambda victim: (victim.rule is not EvictionRule.BORROWER, victim[:3]))
        return found

    def _right(
        self, job: PendingJob, leg: HeldLeg, flavor: str, *, nominal: bool, alone: bool, home: bool
    ) -> EvictionRule | None:
        if leg.account == job.account:
            lower = leg.priority.rank > job.priority.rank
            return EvictionRule.OWN if (lower and nominal) or (alone and leg.anywhere) else None
        if not nominal:
            return None
        if self._board.quota.above(self._branch(leg.account, job.account), flavor):
            return EvictionRule.BORROWER
        if home and leg.partner != ids.partner_of(job.account):
            return EvictionRule.GUEST
        return None

    def _branch(self, account: str, other: str) -> str:
        """The highest account above `account` that is not above `other` as well."""
        shared = set(self._board.quota.path(other))
        line = [node for node in self._board.quota.path(account) if node not in shared]
        return line[-1] if line else account

    def _down_to_nominal(self, job: PendingJob, victims: list[Victim], flavor: str) -> dict[str, Victim]:
        """Leave out borrowers beyond those whose end brings their account to its nominal."""
        left: dict[str, int] = {}
        kept: dict[str, Victim] = {}
        for victim in victims:
            if victim.rule is EvictionRule.BORROWER:
                branch = self._branch(victim.legs[0].held.account, job.account)
                above = left.setdefault(branch, self._board.quota.above(branch, flavor))
                if above <= 0:
                    continue
                left[branch] = above - victim.gpus
            kept[victim.job] = victim
        return kept

    def _clear(self, job: PendingJob, site: str, victims: dict[str, Victim]) -> list[Victim] | None:
        """Choose victims node by node, cheapest node per GPU first, until the job fits."""
        use, worker = self._board.sites[site], job.gpus_per_worker
        tenant = use.tenant(job.id, ids.partner_of(job.account))
        barred = self._board.barred(job, site, self._board.now_ms)
        on_node: dict[str, list[HeldLeg]] = {}
        for item in self._board.at[site]:
            for node in item.held.nodes:
                on_node.setdefault(node, []).append(item.held)
        offers: list[tuple[int, int, str, tuple[str, ...]]] = []
        for node in use.free:
            if node in barred or use.cordoned(node):
                continue
            offer = self._clear_node(job, use, node, on_node.get(node, ()), victims, tenant)
            if offer is not None:
                room, cost, names = offer
                room -= room % worker
                if room:
                    offers.append((cost * 8 // room, room, node, names))
        offers.sort(key=lambda offer: (offer[0], -offer[1], offer[2]))
        chosen: dict[str, Victim] = {}
        room = 0
        for _, here, _, names in offers:
            if room >= job.gpus:
                break
            room += here
            chosen |= {name: victims[name] for name in names}
        return list(chosen.values()) if room >= job.gpus else None

    @staticmethod
    def _clear_node(
        job: PendingJob, use: SiteUse, node: str, legs: Sequence[HeldLeg], victims: dict[str, Victim], tenant: str
    ) -> tuple[int, int, tuple[str, ...]] | None:
        """Room on the node after the cheapest evictions there, their cost (a victim's share on this node), and whom.

        Whoever does not share the node with the job has to go; None where somebody of these may not be evicted.
        """
        room, cost = use.free[node], 0
        names: list[str] = []
        rest: list[tuple[int, str, int]] = []
        for leg in legs:
            victim, here = victims.get(leg.job), leg.nodes[node]
            share = victim.cost * here // victim.gpus if victim is not None else 0
            if use.tenant(leg.job, leg.partner) != tenant:
                if victim is None:
                    return None
                names.append(leg.job)
                room, cost = room + here, cost + share
            elif victim is not None:
                rest.append((share // here, leg.job, here))
        for each, name, here in sorted(rest):
            if room >= job.gpus:
                break
            names.append(name)
            room, cost = room + here, cost + each * here
        return room, cost, tuple(names)

    def _spare(self, job: PendingJob, site: str, chosen: list[Victim]) -> list[Victim]:
        """Spare, dearest first, each victim without whose end the job fits as well; empty where it never does."""
        if not self._fits(job, site, chosen):
            return []
        needed = sorted(chosen, reverse=True)
        for victim in list(needed):
            rest = [item for item in needed if item is not victim]
            if self._fits(job, site, rest):
                needed = rest
        return needed

    def _fits(self, job: PendingJob, site: str, victims: Sequence[Victim]) -> bool:
        board = self._board
        use, quota = board.sites[site].copy(), board.quota
        legs = [item for victim in victims for item in victim.legs]
        for item in legs:
            if item.site == site:
                use.release(item.held.nodes, use.tenant(item.held.job, item.held.partner))
            quota.release(item.held.account, item.held.flavor, item.gpus)
        allowed = quota.available(job.account, board.flavors[site]).gpus >= job.gpus
        for item in reversed(legs):
            quota.charge(item.held.account, item.held.flavor, item.gpus)
        if not allowed:
            return False
        barred = board.barred(job, site, board.now_ms)
        rooms = use.rooms(use.tenant(job.id, ids.partner_of(job.account)), job.gpus_per_worker)
        return sum(room for node, room in rooms.items() if node not in barred) >= job.gpus


def evictions(job: PendingJob, choice: Choice) -> list[Eviction]:
    """What the plan says of a choice."""
    return [
        Eviction(
            job=victim.job,
            for_job=job.id,
            rule=victim.rule,
            gpus=victim.gpus,
            lost_gpu_ms=victim.lost_gpu_ms,
        )
        for victim in sorted(choice.victims, key=lambda victim: victim.job)
    ]
