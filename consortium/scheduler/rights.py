"""Who may be evicted for a job, by which right, in whose turn, and what is lost with it.

A job may take back GPUs by one of three rights (`EvictionRule`): from a borrower, while that account is above its
nominal and the job's account stays within its own, both seen where their lines meet in the tree (so a partner never
reaches into how another divides its own); from a guest at its own partner's site; from its own account, if the victim
is of a lower class or could run elsewhere while the job cannot. A leg that ran for less than `min_run_s`, and one that
is stopping already or ends by itself in that time, are never victims. A class and `preemptible=false` are an account's
own affair: they protect what it holds from its own jobs, and what is on loan from nobody.

No loops: a job is evicted for one within its nominal, which can be evicted in turn only as a guest, by a job at home.
A job that may run anywhere starts at home where room was made there (`fit.find_legs`). Two gangs may each be guests
where the other is at home: of these only the earlier evicts the later, by class and then by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from consortium.domain.job import Priority
from consortium.scheduler.board import Board, Kind, Running
from consortium.scheduler.outlook import Case, Outlook
from consortium.scheduler.types import EvictionRule, HeldLeg, PendingJob, Settings

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


Right = tuple[EvictionRule, int, int]
"""By what right somebody may be evicted, the turn, and the turn as a guest."""


class Rights:
    """What the jobs of one cycle may take back. Remembers, per kind of leg and of job, what it found."""

    def __init__(self, board: Board, settings: Settings) -> None:
        self._board = board
        self._settings = settings
        self._latest_ms = board.now_ms - max(1, settings.min_run_s * 1000)
        """Legs that started later, such as those of this cycle, may not be evicted."""
        self._losers: dict[str, dict[Kind, list[Loser]]] = {}
        """Per site, of the kinds asked for, the jobs that may be evicted at all, but for their age."""
        self._rights: dict[Key, dict[Kind, Right | None]] = {}
        self._reach: dict[tuple[str, Key], int] = {}
        self._known: dict[tuple[str, Key], list[Victim]] = {}
        self._any_ripe: bool | None = None

    def forget(self, sites: Iterable[str] = ()) -> None:
        """Note that legs at the sites have started, or have been told to stop, or that something was reserved."""
        self._rights.clear()
        self._reach.clear()
        self._known.clear()
        for site in sites:
            self._losers.pop(site, None)

    def any_ripe(self) -> bool:
        """Whether any leg ran for `min_run_s`. What starts or stops in this cycle does not change it for the worse."""
        if self._any_ripe is None:
            self._any_ripe = any(item.held.started_ms <= self._latest_ms for item in self._board.running)
        return self._any_ripe

    def victims(self, case: Case, site: str, within: Mapping[str, tuple[bool, ...]]) -> list[Victim]:
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

    def reaches(self, case: Case, site: str, within: Mapping[str, tuple[bool, ...]]) -> bool:
        """Whether the GPUs of all that may be evicted at the site would be enough, if they were in the right place."""
        key = self._key(case, site, within)
        reach = self._reach.get((site, key))
        if reach is None:
            reach = self._reach[site, key] = case.outlook.use(site).free_total + sum(
                gpus for kind, gpus in self._board.kinds[site].items() if self._right(case, key, kind) is not None
            )
        return reach >= case.job.gpus

    def borrowers(self, case: Case, within: Mapping[str, tuple[bool, ...]]) -> list[Victim]:
        """Borrowers at any site, of the flavors the job needs: what they hold of its quota may be anywhere."""
        return [
            victim
            for site in self._board.sites
            if self._board.flavors[site] in case.need
            for victim in self.victims(case, site, within)
            if victim.rule is EvictionRule.BORROWER
        ]

    def _key(self, case: Case, site: str, within: Mapping[str, tuple[bool, ...]]) -> Key:
        job, flavor = case.job, self._board.flavors[site]
        home = self._board.sites[site].site.partner == case.partner
        return Key(
            case.outlook, job.account, job.priority, bool(job.sites), flavor, case.need[flavor], within[flavor], home
        )

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


def offered(victims: Iterable[Victim], job: PendingJob, *, ripe: bool) -> list[Victim]:
    """The victims, of `ripe` ones only if so asked; a gang has no guest's right against a gang before it."""
    there = [victim for victim in victims if victim.ripe or not ripe]
    if len(job.sites) < 2:
        return there
    mine = job.priority.rank, job.id
    theirs: list[Victim] = []
    for victim in there:
        if len(victim.legs) == 1 or mine < (victim.legs[0].held.priority.rank, victim.job):
            theirs.append(victim)
        elif victim.rule is not EvictionRule.GUEST:
            theirs.append(victim._replace(as_guest=NEVER))
    return theirs


def legs_of(victims: Iterable[Victim]) -> list[Running]:
    """All legs of the victims."""
    return [item for victim in victims for item in victim.legs]


def lost_ms(leg: HeldLeg, now_ms: int) -> int:
    """Run time since the leg's last training checkpoint."""
    kept_ms = max(leg.started_ms, leg.checkpoint_ms)
    if leg.checkpoint_every_s and now_ms > leg.started_ms:
        every_ms = leg.checkpoint_every_s * 1000
        kept_ms = max(kept_ms, now_ms - (now_ms - leg.started_ms) % every_ms)
    return max(0, now_ms - kept_ms)


def _turn(rule: EvictionRule, rank: int) -> int:
    """Borrowers, own jobs, guests; within these the lowest class (of the largest rank) first."""
    order = (EvictionRule.BORROWER, EvictionRule.OWN, EvictionRule.GUEST).index(rule)
    return order * len(Priority) + len(Priority) - 1 - rank
