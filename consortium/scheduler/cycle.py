"""One scheduling cycle, its effect on a snapshot, and the question whether a job could ever fit.

Pure semantics of a cycle: jobs are looked at once, in order of service (priority class, then age, then id). A job
that fits in what is free, and in the picture of every reservation that its walltime reaches, starts. The first job
that does not fit but would with time gets a reservation: the earliest instant at which it fits if every held leg runs
for its whole walltime, with the nodes and the quota it takes then. So do later blocked jobs, at sites nobody ahead has
reserved. A job behind may start only if it ends before a reservation or fits beside it, so that it never delays the
first in line (EASY backfill; Lifka 1995, "The ANL/IBM SP scheduling system").

Within a cycle GPUs and quota are only taken, never freed. So once a job is blocked, so is every later job of the same
shape that does not end sooner: it shares the verdict and its `Reason` object, at the cost of one look-up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from consortium.domain import ids
from consortium.domain.decision import Reason
from consortium.scheduler.board import Board, Layer, Shadow, leg_name
from consortium.scheduler.fit import find_legs
from consortium.scheduler.fixes import suggest
from consortium.scheduler.reasons import Case, describe, instant, waits_out
from consortium.scheduler.reserve import earliest_fit
from consortium.scheduler.rules import Rule, decisive, obstacles, permanent_obstacle, site_demand, standing
from consortium.scheduler.types import HeldLeg, LegPlacement, PendingJob, Placement, Plan, Reservation, Snapshot

Shape = tuple[object, ...]


def schedule(snapshot: Snapshot) -> Plan:
    """Decide which pending jobs start now and where, and why every other one does not."""
    cycle = Cycle(snapshot)
    for job in cycle.order:
        cycle.serve(job)
    return cycle.plan()


def apply(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """Return the snapshot after the plan: placed jobs are no longer pending, their legs hold capacity and quota."""
    jobs = {job.id: job for job in snapshot.pending}
    placed = {placement.job for placement in plan.placements}
    started = [
        _held(jobs[placement.job], leg, snapshot.now_ms) for placement in plan.placements for leg in placement.legs
    ]
    return replace(
        snapshot,
        held=snapshot.held + tuple(started),
        pending=tuple(job for job in snapshot.pending if job.id not in placed),
    )


def never_fits(snapshot: Snapshot, job: PendingJob) -> Reason | None:
    """Say why the job could never start, whatever ends and whatever policies permit; None where it could.

    Codes: `quota_never`, `gang_size`, `flavor`, `territory` (it names a site that is not in the consortium).
    """
    board = Board(replace(snapshot, held=(), pending=()))
    need = site_demand(board, job)
    answer: dict[str, Rule | None] = {site: Rule.TERRITORY for site in job.sites if site not in board.views}
    for site, view in board.views.items():
        answer[site] = permanent_obstacle(board, job, view.site, need)
    site = decisive(job, answer)
    rule = answer[site]
    return None if rule is None else describe(Case(board, job, site, (board,), answer), rule)


def order_of_service(job: PendingJob) -> tuple[int, int, str]:
    """The sort key of the queue: priority class, then age, then id."""
    return job.priority.rank, job.created_ms, job.id


class Blocked(NamedTuple):
    """The verdict on a shape: jobs of it with at least this walltime do not start."""

    walltime_s: int
    reason: Reason
    waits: bool
    """Whether it goes away when legs end: such jobs are in line."""


class Cycle:
    """A cycle under way. `serve` jobs in the order given; then `plan`."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.board = Board(snapshot)
        self.order = sorted(snapshot.pending, key=order_of_service)
        self.shadows: list[Shadow] = []
        self.line: list[str] = []
        """Ids of jobs that wait for GPUs or quota, in order."""
        self._placements: list[Placement] = []
        self._reasons: dict[str, Reason] = {}
        self._blocked: dict[Shape, Blocked] = {}
        self._standing: dict[Shape, dict[str, Rule | None]] = {}
        self._verdicts: dict[int, Shape] = {}

    def plan(self) -> Plan:
        """What has been decided so far."""
        reservations = tuple(
            Reservation(job=shadow.job.id, start_ms=shadow.start_ms, legs=shadow.legs) for shadow in self.shadows
        )
        return Plan(placements=tuple(self._placements), reasons=self._reasons, reservations=reservations)

    def serve(self, job: PendingJob) -> None:
        """Start the job or note why not."""
        if job.not_before_ms > self.board.now_ms:
            self._reasons[job.id] = waits_out(job)
            return
        shape = self._shape(job)
        blocked = self._blocked.get(shape)
        if blocked is not None and job.walltime_s >= blocked.walltime_s:
            self._reasons[job.id] = blocked.reason
            if blocked.waits:
                self.line.append(job.id)
            return
        layers, sites = self.layers(job), self.usable(job)
        legs = find_legs(job, sites, layers) if sites else None
        if legs is None:
            self._block(job, shape, layers)
        else:
            self._start(job, legs, layers)

    def usable(self, job: PendingJob) -> tuple[str, ...]:
        """Sites the job may use, whatever is free there; empty where a gang misses one."""
        answer = self.standing(job)
        if job.sites:
            return () if any(answer[site] for site in job.sites) else tuple(sorted(set(job.sites)))
        return tuple(site for site, rule in answer.items() if rule is None)

    def standing(self, job: PendingJob) -> dict[str, Rule | None]:
        """`rules.standing`, computed once per shape."""
        shape = self._shape(job)
        if shape not in self._standing:
            self._standing[shape] = standing(self.board, job)
        return self._standing[shape]

    def layers(self, job: PendingJob) -> tuple[Layer, ...]:
        """The present, and every reservation that the job would still run into if it started now."""
        ends_ms = self.board.now_ms + job.walltime_s * 1000
        return (self.board, *(shadow for shadow in self.shadows if shadow.start_ms < ends_ms))

    def verdict(self, job: PendingJob, layers: tuple[Layer, ...]) -> tuple[dict[str, Rule | None], Reason]:
        """Every site's obstacle, and the reason that stands for the job. Only for a job that does not start."""
        answer = obstacles(self.board, job, self.standing(job), layers)
        site = decisive(job, answer)
        rule = answer[site]
        assert rule is not None  # it does not start, so some rule keeps it from the decisive site
        reason = describe(Case(self.board, job, site, layers, answer), rule)
        if rule.passes_with_time:
            reason = replace(reason, fix=suggest(self.board, job, self.usable(job), layers))
        return answer, reason

    def _start(self, job: PendingJob, legs: tuple[LegPlacement, ...], layers: tuple[Layer, ...]) -> None:
        need: dict[str, int] = {}
        for leg in legs:
            need[leg.flavor] = need.get(leg.flavor, 0) + leg.gpus
        borrowed = sum(self.board.quota.borrowed(job.account, flavor, gpus) for flavor, gpus in need.items())
        self._placements.append(Placement(job=job.id, legs=legs, borrowed=borrowed))
        self.board.start(job, legs, [layer for layer in layers if isinstance(layer, Shadow)])

    def _block(self, job: PendingJob, shape: Shape, layers: tuple[Layer, ...]) -> None:
        answer, reason = self.verdict(job, layers)
        sites = self.usable(job)
        whatever_its_length = len(layers) == 1 or not sites or find_legs(job, sites, layers[:1]) is None
        rule = answer[decisive(job, answer)]
        waits = rule is not None and rule.passes_with_time
        self._blocked[shape] = Blocked(0 if whatever_its_length else job.walltime_s, reason, waits)
        self._reasons[job.id] = reason
        if waits:
            self.line.append(job.id)
            self._reserve(job, sites)

    def _reserve(self, job: PendingJob, sites: tuple[str, ...]) -> None:
        taken = {leg.site for shadow in self.shadows for leg in shadow.legs}
        free = tuple(site for site in sites if site not in taken)
        if not free or (job.sites and len(free) < len(sites)):
            return
        shadow = earliest_fit(self.board, job, free, self.shadows)
        if shadow is None:
            return
        self.shadows.append(shadow)
        reason = self._reasons[job.id]
        where = ", ".join(leg.site for leg in shadow.legs)
        self._reasons[job.id] = replace(
            reason,
            message=f"{reason.message}; reserved for it at {where} by {instant(shadow.start_ms)}",
            numbers={**reason.numbers, "reserved_start_ms": shadow.start_ms, "reserved_at": where},
        )

    def _shape(self, job: PendingJob) -> Shape:
        """What decides whether a job fits, but for its walltime."""
        return (
            job.account, job.gpus, job.gpus_per_worker, job.flavors, job.sites, job.min_sites,
            self._key(job.denied) if job.denied else None, self._key(job.unfit) if job.unfit else None,
        )  # fmt: skip

    def _key(self, verdicts: dict[str, Reason]) -> Shape:
        """A hashable value of a dict of verdicts; jobs often share one dict, so it is made once per object."""
        known = self._verdicts.get(id(verdicts))
        if known is None:
            known = tuple((site, reason.code, reason.message) for site, reason in sorted(verdicts.items()))
            self._verdicts[id(verdicts)] = known
        return known


def _held(job: PendingJob, leg: LegPlacement, now_ms: int) -> HeldLeg:
    return HeldLeg(
        leg=leg_name(job.id, leg.site),
        job=job.id,
        account=job.account,
        partner=ids.partner_of(job.account),
        site=leg.site,
        flavor=leg.flavor,
        nodes=leg.nodes,
        priority=job.priority,
        started_ms=now_ms,
        walltime_s=job.walltime_s,
    )
