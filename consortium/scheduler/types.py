"""What the scheduler reads and what it answers. All of it is values; times are UTC Unix milliseconds.

The functions over these types (`schedule`, `apply`, `explain`, `never_fits`, `violations`) are exported by the room.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from consortium.domain.decision import Reason
from consortium.domain.job import Priority
from consortium.domain.partner import Site, SiteState
from consortium.domain.quota import Account


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView:
    """A site and whether it takes new legs; its capacity is its nodes."""

    site: Site
    state: SiteState


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
    not_before_ms: int = 0
    """Waits out a backoff until then."""
    not_before_reason: str = ""
    """Why it waits until then: a sentence for people."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The answer of a cycle: jobs that start, and for every other pending job why it does not."""

    placements: tuple[Placement, ...]
    """In order of service."""
    reasons: dict[str, Reason]
    """Job id to reason, in order of service; jobs of one shape may share one `Reason` object."""
    reservations: tuple[Reservation, ...] = ()


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
