"""Taking back what was lent: which running jobs make room for one that is within its own.

Whom a job may evict at all, `rights` says. What is judged is the `Outlook`: what stops has stopped, and what it stops
for holds it. So two jobs of an account do not take back its nominal twice, no borrower is pushed below its own, and
nothing that is reserved for a job ahead that is within its own is taken from it.

Borrowers go before own jobs of the account and those before guests, and within these the lowest class first. Of them
the cheapest nodes are cleared, then every victim is spared that is not needed after all (the reverse pass). The site
with the least loss wins. Loss is the work since the last training checkpoint plus the time to stop, over all legs of
the victim. A disruption budget bounds evicted against requested GPUs: what stays within it goes first. One whole leg
is always allowed, and the budget doubles once the job has waited for `min_run_s`: nominal is available within that
time and twice `stop_s` wherever it does not take a crowd.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from consortium.scheduler.board import Board, Shadow
from consortium.scheduler.outlook import Case, Outlook
from consortium.scheduler.queue import Line
from consortium.scheduler.rights import NEVER, Allowance, Rights, Victim, legs_of, offered
from consortium.scheduler.types import Eviction, EvictionRule, HeldLeg, PendingJob, Settings


class Prospect(NamedTuple):
    """Sites where room could be made for a job, if all that may be evicted had run for `min_run_s`."""

    sites: tuple[str, ...]
    case: Case
    within: Mapping[str, tuple[bool, ...]]
    """By flavor: whether its account, and each above it but the root, stays within nominal with the job."""


class Choice(NamedTuple):
    """Victims whose end lets the job start at the sites. Sorts by the budget, whose turn it is, and what is lost."""

    over: bool
    """Whether it exceeds the disruption budget."""
    turn: int
    cost: int
    gpus: int
    sites: tuple[str, ...]
    victims: tuple[Victim, ...]


class Evictor:
    """Finds victims for the jobs of one cycle."""

    def __init__(self, board: Board, settings: Settings, jobs: Mapping[str, PendingJob]) -> None:
        self._board = board
        self._settings = settings
        self._jobs = jobs
        """Those that wait, by id."""
        self._rights = Rights(board, settings)
        self._outlooks: dict[tuple[Shadow, ...], Outlook] = {}
        self._parents: frozenset[str] | None = None

    @property
    def soon_ms(self) -> int:
        """By when whoever is evicted now has stopped."""
        return self._board.now_ms + self._settings.stop_s * 1000 + 1000

    def forget(self, sites: Iterable[str] = ()) -> None:
        """Note that legs at the sites have started, or have been told to stop, or that something was reserved."""
        self._outlooks.clear()
        self._rights.forget(sites)

    def prospects(
        self, job: PendingJob, line: Line, ahead: Sequence[Shadow] = (), *, but: Container[str] = ()
    ) -> list[Prospect]:
        """Return where room could be made for the job; nowhere, if it only has to wait for what ends by itself.

        Sites in `but` are of no interest by themselves. `ahead` are the reservations that must not suffer: of jobs that
        GPUs are being taken back for, and of those that are served before and are within their nominal.
        """
        if not self._settings.preemption or not self._board.running:
            return []
        soon = tuple(shadow for shadow in ahead if shadow.job.nominated and shadow.start_ms <= self.soon_ms)
        outlook = self._outlooks.get(soon)
        if outlook is None:
            outlook = self._outlooks[soon] = Outlook(self._board, self._settings.stop_s, soon, self._jobs)
        within = {flavor: outlook.within(job.account, flavor, gpus) for flavor, gpus in line.need}
        if not job.sites and not any(any(nodes) for nodes in within.values()) and not self._shares_below(job.account):
            return []
        kept = [shadow for shadow in ahead if shadow not in soon]
        if len(job.sites) > 1:
            if not all(all(nodes[-1:]) for nodes in within.values()):
                return []
            tries = [(line.usable, Case(self._board, outlook, kept, job, dict(line.need)))]
        else:
            cases = {flavor: Case(self._board, outlook, kept, job, {flavor: gpus}) for flavor, gpus in line.need}
            tries = [((site,), cases[self._board.flavors[site]]) for site in line.usable]
        if any(case.allowed(()) and all(case.fits(site, ()) for site in sites) for sites, case in tries):
            return []
        return [
            Prospect(sites, case, within)
            for sites, case in tries
            if any(site not in but for site in sites)
            and all(case.fits(site, ()) or self._rights.reaches(case, site, within) for site in sites)
        ]

    def choose(self, prospects: Iterable[Prospect], *, ripe: bool = True) -> Choice | None:
        """Return whom to evict so that the job can start; None where nobody may be, or all would not suffice.

        With `ripe` false the legs that ran for less than `min_run_s` count as well, and the budget that it will have by
        then: whom it could evict in a while.
        """
        if ripe and not self.any_ripe():
            return None
        found = [choice for prospect in prospects if (choice := self._choice(prospect, ripe=ripe)) is not None]
        return min(found) if found else None

    def any_ripe(self) -> bool:
        """Whether any leg ran for `min_run_s`. What starts or stops in this cycle does not change it for the worse."""
        return self._rights.any_ripe()

    def _shares_below(self, account: str) -> bool:
        """Whether accounts below it may hold what is its own alone."""
        if self._parents is None:
            self._parents = frozenset(item.parent for item in self._board.accounts if item.parent)
        return account in self._parents

    def _choice(self, prospect: Prospect, *, ripe: bool) -> Choice | None:
        """Victims that make room at all its sites: within the budget if they can be, and those whose turn it is."""
        sites, case, within = prospect
        everybody: dict[str, Victim] = {}
        full = []
        for site in sites:
            if case.fits(site, ()):
                continue  # only quota is in the way there
            here = offered(self._rights.victims(case, site, within), case.job, ripe=ripe)
            if sum(victim.gpus for victim in here) + case.outlook.use(site).free_total < case.job.gpus:
                return None
            everybody |= {victim.job: victim for victim in here}
            full.append(site)
        going = [item for victim in everybody.values() for item in victim.legs]
        if not all(case.fits(site, going) for site in full):
            return None
        if not case.allowed(going):
            borrowers = offered(self._rights.borrowers(case, within), case.job, ripe=ripe)
            everybody |= {victim.job: victim for victim in borrowers}
        asked = case.job.gpus * max(1, len(case.job.sites))
        waited_ms = self._board.now_ms - case.job.created_ms
        patient = ripe and waited_ms < self._settings.min_run_s * 1000
        first: Choice | None = None
        for pool in self._pools(list(everybody.values()), asked):
            chosen = self._pick(case, full, pool)
            if not chosen:
                continue
            count = sum(victim.gpus for victim in chosen)
            legs = sum(len(victim.legs) for victim in chosen)
            choice = Choice(
                count * 100 > self._settings.disruption_percent * asked,
                max(victim.turn for victim in chosen),
                sum(victim.cost for victim in chosen),
                count,
                sites,
                tuple(sorted(chosen)),
            )
            if not choice.over:
                return choice
            crowd = count * 100 > 2 * self._settings.disruption_percent * asked
            if first is None and (legs == 1 or not (patient or crowd)):
                first = choice
        return first

    def _pools(self, victims: list[Victim], asked: int) -> Iterator[dict[str, Victim]]:
        """Growing sets of victims: those whose turn it is first; of these the ones within the budget by themselves.

        Then those of one leg, which is always allowed, and then everybody.
        """
        most = self._settings.disruption_percent * asked // 100
        before: list[Victim] = []
        for turn in sorted({victim.turn for victim in victims} | {victim.as_guest for victim in victims}):
            pool = [
                victim if victim.as_guest <= turn else victim._replace(as_guest=NEVER)
                for victim in victims
                if victim.turn <= turn
            ]
            small = [victim for victim in pool if victim.gpus <= most]
            single = [victim for victim in pool if victim.gpus <= most or len(victim.legs) == 1]
            for part in (small, single, pool):
                if part and part != before:
                    yield {victim.job: victim for victim in part}
                    before = part

    def _pick(self, case: Case, sites: Sequence[str], pool: dict[str, Victim]) -> list[Victim]:
        """Victims of the pool after the reverse pass; empty where all that may be evicted would not suffice."""
        allowance = Allowance(case)
        chosen: dict[str, Victim] = {}
        for site in sites:
            if not case.fits(site, legs_of(chosen.values())) and not self._clear(case, site, pool, allowance, chosen):
                return []
        if not case.allowed(legs_of(chosen.values())):
            for victim in sorted(pool.values()):
                if victim.job in chosen or victim.rule is not EvictionRule.BORROWER:
                    continue
                if taken := allowance.take([victim]):
                    chosen[victim.job] = taken[0]
                    if case.allowed(legs_of(chosen.values())):
                        break
        return self._spare(case, sites, list(chosen.values()))

    def _spare(self, case: Case, sites: Sequence[str], chosen: list[Victim]) -> list[Victim]:
        """Spare, dearest first, each victim without whose end the job fits as well; empty where it never does."""

        def suffices(victims: Sequence[Victim]) -> bool:
            legs = legs_of(victims)
            return all(case.fits(site, legs) for site in sites) and case.allowed(legs)

        if not suffices(chosen):
            return []
        needed = sorted(chosen, reverse=True)
        for victim in list(needed):
            rest = [item for item in needed if item is not victim]
            if suffices(rest):
                needed = rest
        return needed

    def _clear(
        self, case: Case, site: str, pool: Mapping[str, Victim], allowance: Allowance, chosen: dict[str, Victim]
    ) -> bool:
        """Choose victims node by node, cheapest node per GPU first, of equals the newest, until the job fits."""
        on_node: dict[str, list[HeldLeg]] = {}
        for item in case.outlook.legs(site):
            for node in item.held.nodes:
                on_node.setdefault(node, []).append(item.held)
        most = case.rooms(site, legs_of(pool.values()))
        offers: list[tuple[int, int, int, str, tuple[str, ...]]] = []
        for node in most:
            offer = self._clear_node(case, site, node, on_node.get(node, ()), pool)
            if offer is not None:
                room, cost, names = offer
                room = min(room - room % case.job.gpus_per_worker, most[node])
                if room:
                    oldest = max((pool[name].newest_ms for name in names), default=0)
                    offers.append((cost * 8 // room, -room, oldest, node, names))
        offers.sort()
        room = 0
        for _, less, _, _, names in offers:
            if room >= case.job.gpus:
                break
            taken = allowance.take([pool[name] for name in names if name not in chosen])
            if taken is not None:
                room -= less
                chosen |= {victim.job: victim for victim in taken}
        return room >= case.job.gpus

    @staticmethod
    def _clear_node(
        case: Case, site: str, node: str, legs: Sequence[HeldLeg], pool: Mapping[str, Victim]
    ) -> tuple[int, int, tuple[str, ...]] | None:
        """Room on the node after the cheapest evictions there, their cost (a victim's share on this node), and whom.

        Whoever does not share the node with the job has to go; None where somebody of these may not be evicted.
        """
        use = case.outlook.use(site)
        tenant = use.tenant(case.job.id, case.partner)
        room, cost = use.free[node], 0
        names: list[str] = []
        rest: list[tuple[int, str, int]] = []
        for leg in legs:
            victim, here = pool.get(leg.job), leg.nodes[node]
            share = victim.cost * here // victim.gpus if victim is not None else 0
            if use.tenant(leg.job, leg.partner) != tenant:
                if victim is None:
                    return None
                names.append(leg.job)
                room, cost = room + here, cost + share
            elif victim is not None:
                rest.append((share // here, leg.job, here))
        for each, name, here in sorted(rest):
            if room >= case.job.gpus:
                break
            names.append(name)
            room, cost = room + here, cost + each * here
        return room, cost, tuple(names)


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
