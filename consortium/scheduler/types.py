"""What the scheduler reads and what it answers. All of it is values; times are UTC Unix milliseconds.

The functions over these types (`schedule`, `apply`, `explain`, `never_fits`, `violations`) are exported by the room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from consortium.domain.decision import Reason
from consortium.domain.job import Priority
from consortium.domain.partner import Site, SiteState
from consortium.domain.quota import Account


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the scheduler weighs and what it may do. `configs/server/` holds the values a consortium agreed on."""

    preemption: bool = True
    """Whether what was lent may be taken back from running legs."""
    min_run_s: int = 1800
    """A leg is not evicted before it ran that long; with `stop_s` the longest a partner waits for what is its own."""
    stop_s: int = 120
    """How long a leg may take to stop after it was told to."""
    disruption_percent: int = 200
    """The most GPUs evicted for a job, in per cent of the GPUs it asked for (one whole leg is always allowed)."""
    ageing_s: int = 172_800
    """Waiting that long counts like half the expected remaining work."""
    half_life_s: int = 604_800
    """What was borrowed or lent that long ago counts half."""
    credit_percent: int = 100
    """What a GPU-hour lent is worth against one borrowed."""
    reservations: int = 8
    """The most jobs that hold a reservation at one time."""
    backfill_depth: int = 200
    """Jobs of one shape that are tried behind a blocked one, because they end sooner."""


class WindowKind(StrEnum):
    """Why GPUs are set aside for an interval."""

    MAINTENANCE = "maintenance"
    RESERVATION = "reservation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """An interval in which nodes of a site are set aside: nobody starts what would still run then.

    A reservation is for one account: its jobs may run there from `start_ms` to `end_ms`.
    """

    id: str
    kind: WindowKind
    site: str
    nodes: tuple[str, ...]
    """Empty: every node of the site."""
    start_ms: int
    end_ms: int
    account: str = ""
    """Of a reservation: the account, with those below it, that may use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """A site and whether it takes new legs; its capacity is its nodes but those cordoned."""

    __left_out__ = frozenset({"why"})

    site: Site
    state: SiteState
    cordoned: tuple[str, ...] = ()
    """Nodes that take no new legs."""
    why: str = ""
    """Why it counts as lost, where that is not its silence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What an account borrowed and lent, decayed by half-life: reference GPU-milliseconds as of the snapshot's time."""

    account: str
    borrowed: int = 0
    lent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLeg:
    """A leg that holds capacity and quota: its epoch is offered, held, starting, running or stopping."""

    leg: str
    job: str
    account: str
    partner: str
    """The account's partner: who holds the GPUs."""
    site: str
    flavor: str
    nodes: dict[str, int]
    """GPUs taken per node id."""
    priority: Priority
    started_ms: int
    walltime_s: int
    checkpoint_ms: int = 0
    """When it last kept its progress, as far as it is known; 0: never, it would start again from nothing."""
    checkpoint_every_s: int = 0
    """How often it keeps its progress by itself; 0: not known."""
    preemptible: bool = True
    expected_s: int = 0
    """How long it was expected to run when it started; 0: its walltime."""
    anywhere: bool = False
    """Whether the job named no site: it may start again elsewhere."""
    stopping_for: str = ""
    """The job that its GPUs are taken back for, while it stops; empty where it does not stop."""

    @property
    def gpus(self) -> int:
        """GPUs the leg holds."""
        return sum(self.nodes.values())

    @property
    def ends_ms(self) -> int:
        """When its walltime is over: the latest it should end."""
        return self.started_ms + self.walltime_s * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingJob:
    """A job that waits, with the verdicts of the rules that are decided elsewhere."""

    id: str
    account: str
    priority: Priority
    created_ms: int
    gpus: int
    """GPUs of each leg, that is, per site."""
    gpus_per_worker: int
    """GPUs of one worker; all of a worker's are on one node."""
    flavors: tuple[str, ...]
    """Acceptable flavors, preferred first; empty means any."""
    walltime_s: int
    sites: tuple[str, ...]
    """The exact sites it must run at, all together (from its data); empty: any one site."""
    min_sites: int = 1
    done_ms: int = 0
    """Run time that a training checkpoint of an earlier attempt keeps."""
    expected_s: int = 0
    """How long it is still expected to run, estimated when it began to wait; 0: its walltime."""
    checkpoint_every_s: int = 0
    """How often it will keep its progress; 0: not known."""
    preemptible: bool = True
    not_before_ms: int = 0
    """Waits out a backoff until then."""
    not_before_reason: str = ""
    """Why it waits until then: a sentence for people."""
    nominated: bool = False
    """GPUs have been taken back for it: it is served first."""
    waits_for: Reason | None = None
    """Why it is not in line at all yet: a dependency, a budget that is used up, its array's limit."""
    avoid: tuple[tuple[str, str], ...] = ()
    """(site, node) pairs it must not use again, because it failed there by their fault."""
    denied: dict[str, Reason] = field(default_factory=dict)
    """Sites where a partner's policy denies the job, with the clause. Jobs of one class may share one dict."""
    unfit: dict[str, Reason] = field(default_factory=dict)
    """Sites that are out for another reason found elsewhere, such as a refused offer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a decision rests on. The same snapshot always gives the same plan, byte for byte."""

    now_ms: int
    sites: tuple[SiteView, ...]
    accounts: tuple[Account, ...]
    """The quota tree. The root cohort, id `""`, may be left out; an account whose parent is None shares with nobody."""
    held: tuple[HeldLeg, ...]
    pending: tuple[PendingJob, ...]
    windows: tuple[Window, ...] = ()
    history: tuple[History, ...] = ()
    settings: Settings = Settings()


@dataclass(frozen=True, slots=True, kw_only=True)
class LegPlacement:
    """Where one leg goes: GPUs per node id."""

    site: str
    flavor: str
    nodes: dict[str, int]

    @property
    def gpus(self) -> int:
        """GPUs of the leg."""
        return sum(self.nodes.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A job that starts: all its legs, sorted by site, together or not at all."""

    job: str
    legs: tuple[LegPlacement, ...]
    borrowed: int = 0
    """How many of its GPUs are above what is nominal to its account (with the accounts below it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """GPUs kept for a job that is first in line at its sites; no backfilled job may delay it."""

    job: str
    start_ms: int
    """When it fits at the latest, if every held leg ends by its walltime."""
    legs: tuple[LegPlacement, ...]


class EvictionRule(StrEnum):
    """By what right GPUs are taken back."""

    BORROWER = "borrower"
    """The victim's account holds more than its nominal; the job that starts is within its own."""
    GUEST = "guest"
    """The victim runs on another partner's site, and that partner's own job, within its nominal, needs it."""
    OWN = "own"
    """Both are the same account's: the victim is of a lower class, or may run elsewhere while the other may not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """A job that is told to stop: all its legs, wherever they are. It waits again, with its last checkpoint."""

    job: str
    for_job: str
    """The job that starts on what becomes free."""
    rule: EvictionRule
    gpus: int
    lost_gpu_ms: int
    """GPU-milliseconds since its last training checkpoint: work that is done again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer of a cycle: jobs that start, jobs that are evicted, and for every other pending job why it waits."""

    placements: tuple[Placement, ...]
    """In order of service."""
    reasons: Mapping[str, Reason]
    """Job id to reason; jobs of one shape may share one `Reason` object."""
    reservations: tuple[Reservation, ...] = ()
    evictions: tuple[Eviction, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A site that a rule took out of the funnel, and why."""

    site: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class FunnelStep:
    """One rule: the sites that passed it, those it dropped, and its numbers."""

    rule: str
    sites_left: tuple[str, ...]
    dropped: tuple[Drop, ...] = ()
    numbers: dict[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRange:
    """When a waiting job should start, if running legs take their whole walltime and nothing new comes ahead of it.

    `earliest_ms` is when it fits if nobody else in line is served before; `latest_ms` is when it starts if everybody
    ahead is served first and runs for its whole walltime. None: beyond the horizon of the estimate.
    """

    earliest_ms: int
    latest_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Funnel:
    """Why a job does not start now (or that it does), over all sites and all rules."""

    job: str
    reason: Reason
    """Why it waits, seen at its turn; code `starting` where it starts in this cycle or holds its capacity already."""
    steps: tuple[FunnelStep, ...]
    position: int
    """1 is first in line among jobs that wait for GPUs or quota; 0 where the job is not in line."""
    holders: dict[str, int]
    """Partner to GPUs it holds at the sites the job may use."""
    estimated_start: StartRange | None
    fix: str
    """One concrete change after which the job would start now, or the next best step; empty where there is none."""
