"""Taking back what was lent: which running jobs make room for one that is within its own.

A job may take back GPUs by one of three rights (`EvictionRule`): from a borrower, while that account is above its
nominal and the job's account stays within its own, both seen where their lines meet in the tree (so a partner never
reaches into how another divides its own); from a guest at its own partner's site; from its own account, if the victim
is of a lower class or could run elsewhere while the job cannot. A leg that ran for less than `min_run_s`, and one that
is stopping already or ends by itself in that time, are never victims. A class and `preemptible=false` are an account's
own affair: they protect what it holds from its own jobs, and what is on loan from nobody.

What is judged is the `Outlook`: what stops has stopped, and what it stops for holds it. So two jobs of an account do
not take back its nominal twice, no borrower is pushed below its own, and nothing that is reserved for a job ahead that
is within its own is taken from it.

Borrowers go before own jobs of the account and those before guests, and within these the lowest class first. Of them
the cheapest nodes are cleared, then every victim is spared that is not needed after all (the reverse pass). The site
with the least loss wins. Loss is the work since the last training checkpoint plus the time to stop, over all legs of
the victim. A disruption budget bounds evicted against requested GPUs: what stays within it goes first. One whole leg
is always allowed, and the budget doubles once the job has waited for `min_run_s`: nominal is available within that
time and twice `stop_s` wherever it does not take a crowd.

No loops: a job is evicted for one within its nominal, which can be evicted in turn only as a guest, by a job at home.
A job that may run anywhere starts at home where room was made there (`fit.find_legs`). Two gangs may each be guests
where the other is at home: of these only the earlier evicts the later, by class and then by id.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from consortium.domain.job import Priority
from consortium.scheduler.board import Board, Kind, Running, Shadow
from consortium.scheduler.outlook import Case, Outlook
from consortium.scheduler.queue import Line
from consortium.scheduler.types import Eviction, EvictionRule, HeldLeg, PendingJob, Settings

NEVER = 1 << 30


class Victim(NamedTuple):
    """A running job that may be evicted, with all its legs. Sorts by whose turn it is, then by what it costs."""

    turn: int
    """Borrowers, then own jobs, then guests; within these the lowest class first."""
    cost: int
    """GPU-milliseconds done again or spent on stopping."""
    newest_ms: int
    """Minus its start: of equal losses the newest goes first."""
    job: str
    rule: EvictionRule
    account: str
    flavor: str
    as_guest: int
    """The turn at which it may be evicted as a guest as well; `NEVER` where it may not."""
    legs: tuple[Running, ...]
    gpus: int
    lost_gpu_ms: int
    ripe: bool
    """Whether all its legs ran for `min_run_s`."""


class Loser(NamedTuple):
    """A running job that loses its legs if somebody may evict it."""

    cost: int
    newest_ms: int
    job: str
    legs: tuple[Running, ...]
    gpus: int
    lost_gpu_ms: int
    ripe: bool


class Key(NamedTuple):
    """What of a job decides whom it may evict at a site."""

    outlook: Outlook
    account: str
    priority: Priority
    names_sites: bool
    flavor: str
    need: int
    within: tuple[bool, ...]
    home: bool


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


def lost_ms(leg: HeldLeg, now_ms: int) -> int:
    """Run time since the leg's last training checkpoint."""
    kept_ms = max(leg.started_ms, leg.checkpoint_ms)
    if leg.checkpoint_every_s and now_ms > leg.started_ms:
        every_ms = leg.checkpoint_every_s * 1000
        kept_ms = max(kept_ms, now_ms - (now_ms - leg.started_ms) % every_ms)
    return max(0, now_ms - kept_ms)


Right = tuple[EvictionRule, int, int]
"""By what right somebody may be evicted, the turn, and the turn as a guest."""


class Evictor:
    """Finds victims for the jobs of one cycle."""

    def __init__(self, board: Board, settings: Settings) -> None:
        self._board = board
        self._settings = settings
        self._latest_ms = board.now_ms - settings.min_run_s * 1000
        """Legs that started later may not be evicted."""
        self._losers: dict[str, dict[Kind, list[Loser]]] = {}
        """Per site, of the kinds asked for, the jobs that may be evicted at all, but for their age."""
        self._rights: dict[Key, dict[Kind, Right | None]] = {}
        self._reach: dict[tuple[str, Key], int] = {}
        self._known: dict[tuple[str, Key], list[Victim]] = {}
        self._outlooks: dict[tuple[Shadow, ...], Outlook] = {}
        self._parents: frozenset[str] | None = None
        self._any_ripe: bool | None = None

    def forget(self, sites: Iterable[str] = ()) -> None:
        """Note that legs at the sites have started, or have been told to stop, or that something was reserved."""
        self._outlooks.clear()
        self._rights.clear()
        self._reach.clear()
        self._known.clear()
        for site in sites:
            self._losers.pop(site, None)

    def prospects(
        self, job: PendingJob, line: Line, ahead: Sequence[Shadow] = (), *, but: Container[str] = ()
    ) -> list[Prospect]:
        """Return where room could be made for the job; nowhere, if it only has to wait for what ends by itself.

        Sites in `but` are of no interest by themselves. `ahead` are the reservations that must not suffer: of jobs that
        GPUs are being taken back for, and of those that are served before and are within their nominal.
        """
        if not self._settings.preemption or not self._board.running:
            return []
        nominated = tuple(shadow for shadow in ahead if shadow.job.nominated)
        outlook = self._outlooks.get(nominated)
        if outlook is None:
            outlook = self._outlooks[nominated] = Outlook(self._board, self._settings.stop_s, nominated)
        within = {flavor: outlook.within(job.account, flavor, gpus) for flavor, gpus in line.need}
        if not job.sites and not any(any(nodes) for nodes in within.values()) and not self._shares_below(job.account):
            return []
        kept = [shadow for shadow in ahead if not shadow.job.nominated]
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
            and all(case.fits(site, ()) or self._reaches(case, site, within) for site in sites)
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
        if self._any_ripe is None:
            self._any_ripe = any(item.held.started_ms <= self._latest_ms for item in self._board.running)
        return self._any_ripe

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
            here = _offered(self._victims(case, site, within), case.job, ripe=ripe)
            if sum(victim.gpus for victim in here) + case.outlook.use(site).free_total < case.job.gpus:
                return None
            everybody |= {victim.job: victim for victim in here}
            full.append(site)
        going = [item for victim in everybody.values() for item in victim.legs]
        if not all(case.fits(site, going) for site in full):
            return None
        if not case.allowed(going):
            borrowers = _offered(self._borrowers(case, within), case.job, ripe=ripe)
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

    def _key(self, case: Case, site: str, within: Mapping[str, tuple[bool, ...]]) -> Key:
        job, flavor = case.job, self._board.flavors[site]
        home = self._board.sites[site].site.partner == case.partner
        return Key(
            case.outlook, job.account, job.priority, bool(job.sites), flavor, case.need[flavor], within[flavor], home
        )

    def _victims(self, case: Case, site: str, within: Mapping[str, tuple[bool, ...]]) -> list[Victim]:
        """Jobs with a leg at the site that may be evicted for the job, were they old enough."""
        key = self._key(case, site, within)
        found = self._known.get((site, key))
        if found is None:
            found = self._known[site, key] = [
                Victim(
                    right[1], loser.cost, loser.newest_ms, loser.job, right[0], kind.account,
                    self._board.flavors[site], right[2], loser.legs, loser.gpus, loser.lost_gpu_ms, loser.ripe,
                )
                for kind in self._board.kinds[site]
                if (right := self._right(case, key, kind)) is not None
                for loser in self._of_kind(site, kind, case.outlook)
            ]  # fmt: skip
        return found

    def _reaches(self, case: Case, site: str, within: Mapping[str, tuple[bool, ...]]) -> bool:
        """Whether the GPUs of all that may be evicted at the site would be enough, if they were in the right place."""
        key = self._key(case, site, within)
        reach = self._reach.get((site, key))
        if reach is None:
            reach = self._reach[site, key] = case.outlook.use(site).free_total + sum(
                gpus for kind, gpus in self._board.kinds[site].items() if self._right(case, key, kind) is not None
            )
        return reach >= case.job.gpus

    def _borrowers(self, case: Case, within: Mapping[str, tuple[bool, ...]]) -> list[Victim]:
        """Borrowers at any site, of the flavors the job needs: what they hold of its quota may be anywhere."""
        return [
            victim
            for site in self._board.sites
            if self._board.flavors[site] in case.need
            for victim in self._victims(case, site, within)
            if victim.rule is EvictionRule.BORROWER
        ]

    def _of_kind(self, site: str, kind: Kind, outlook: Outlook) -> list[Loser]:
        """Whoever of the kind may be evicted at the site at all, but for their age."""
        losers = self._losers.setdefault(site, {})
        if kind not in losers:
            legs = (item for item in outlook.legs(site) if item.kind == kind)
            losers[kind] = [loser for item in legs if (loser := self._loser(item)) is not None]
        return losers[kind]

    def _loser(self, item: Running) -> Loser | None:
        """The leg's job, unless it stops already."""
        legs = tuple(self._board.by_job[item.held.job].values())
        if any(other.held.stopping_for for other in legs):
            return None
        lost = sum(lost_ms(other.held, self._board.now_ms) * other.gpus for other in legs)
        gpus = sum(other.gpus for other in legs)
        ripe = all(other.held.started_ms <= self._latest_ms for other in legs)
        cost = lost + self._settings.stop_s * 1000 * gpus
        return Loser(cost, -item.held.started_ms, item.held.job, legs, gpus, lost, ripe)

    def _right(self, case: Case, key: Key, kind: Kind) -> Right | None:
        """The rule by which legs of the kind may be evicted, their turn, and their turn as guests."""
        known = self._rights.get(key)
        if known is None:
            known = self._rights[key] = {}
        if kind not in known:
            known[kind] = self._judge(case, kind, key)
        return known[kind]

    def _judge(self, case: Case, leg: Kind, key: Key) -> Right | None:
        job, rank = case.job, leg.priority.rank if leg.preemptible else 0  # who asked not to be goes last
        flavor, entitled = key.flavor, key.within[-1:] == (True,)
        if leg.account == job.account:
            lower = rank > job.priority.rank and entitled
            mine = lower or (bool(job.sites) and leg.anywhere and rank == job.priority.rank)
            mine = mine and leg.preemptible
            return (EvictionRule.OWN, _turn(EvictionRule.OWN, rank), NEVER) if mine else None
        guest = entitled and key.home and leg.partner != case.partner
        as_guest = _turn(EvictionRule.GUEST, rank) if guest else NEVER
        within = not case.outlook.over(job.account, leg.account, flavor, key.need)
        if within and case.outlook.over(leg.account, job.account, flavor):
            return EvictionRule.BORROWER, _turn(EvictionRule.BORROWER, rank), as_guest
        return (EvictionRule.GUEST, as_guest, as_guest) if as_guest < NEVER else None

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


class Allowance:
    """How much each borrower may still lose before it is down to its nominal."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._left: dict[tuple[str, str], int] = {}

    def take(self, victims: Sequence[Victim]) -> list[Victim] | None:
        """Return the victims with the right by which each goes; None, and nothing is taken, where one has to stay."""
        left, taken = dict(self._left), []
        for victim in victims:
            if victim.rule is EvictionRule.BORROWER:
                mine = self._case.job.account
                key = self._case.outlook.branch(victim.account, mine), victim.flavor
                if key not in left:
                    left[key] = self._case.outlook.over(victim.account, mine, victim.flavor)
                if left[key] <= 0:
                    if victim.as_guest == NEVER:
                        return None
                    victim = victim._replace(rule=EvictionRule.GUEST, turn=victim.as_guest)
                left[key] -= sum(item.gpus for item in victim.legs if item.held.flavor == victim.flavor)
            taken.append(victim)
        self._left = left
        return taken


def _offered(victims: Iterable[Victim], job: PendingJob, *, ripe: bool) -> list[Victim]:
    """The victims, of `ripe` ones only if so asked; a gang has no guest's right against a gang before it."""
    offered = [victim for victim in victims if victim.ripe or not ripe]
    if len(job.sites) < 2:
        return offered
    mine = job.priority.rank, job.id
    theirs: list[Victim] = []
    for victim in offered:
        if len(victim.legs) == 1 or mine < (victim.legs[0].held.priority.rank, victim.job):
            theirs.append(victim)
        elif victim.rule is not EvictionRule.GUEST:
            theirs.append(victim._replace(as_guest=NEVER))
    return theirs


def legs_of(victims: Iterable[Victim]) -> list[Running]:
    """All legs of the victims."""
    return [item for victim in victims for item in victim.legs]


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


def _turn(rule: EvictionRule, rank: int) -> int:
    """Borrowers, own jobs, guests; within these the lowest class (of the largest rank) first."""
    order = (EvictionRule.BORROWER, EvictionRule.OWN, EvictionRule.GUEST).index(rule)
    return order * len(Priority) + len(Priority) - 1 - rank
