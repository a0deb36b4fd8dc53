"""Why a job waits: a funnel over all sites and all rules, its place in line, and when it should start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from consortium.domain.decision import Reason, ReasonCode
from consortium.errors import NotFoundError
from consortium.scheduler.board import Board, Layer
from consortium.scheduler.cycle import Cycle, Scheduler, schedule
from consortium.scheduler.fit import quota_for, rooms_at
from consortium.scheduler.fixes import suggestions
from consortium.scheduler.forecast import forecast
from consortium.scheduler.reasons import Case, describe, gpus, waits_out
from consortium.scheduler.reserve import Planner
from consortium.scheduler.rules import RULES, Rule, obstacles, site_demand
from consortium.scheduler.types import (
    Drop,
    Funnel,
    FunnelStep,
    HeldLeg,
    PendingJob,
    Snapshot,
    StartRange,
)

HORIZON_JOBS = 2_000
"""Waiting jobs beyond which the latest start is not estimated."""
_IN_LINE = (
    ReasonCode.WINDOW,
    ReasonCode.COTENANCY,
    ReasonCode.CAPACITY,
    ReasonCode.QUOTA,
    ReasonCode.PRIORITY,
    ReasonCode.MAKING_ROOM,
)


def explain(snapshot: Snapshot, job: str) -> Funnel:
    """Say why the job does not start, judged at its turn in the cycle, or where it starts or runs.

    Raises NotFoundError where the job neither waits nor holds anything.
    """
    waiting = next((item for item in snapshot.pending if item.id == job), None)
    if waiting is None:
        return _holding(snapshot, job)
    aside = waiting.waits_for is not None or waiting.not_before_ms > snapshot.now_ms
    scheduler = Scheduler(snapshot if not aside else _in_line(snapshot, waiting))
    cycle = Cycle(scheduler)
    cycle.run(until=scheduler.queue.jobs[job])
    line = scheduler.queue.line_of(job)
    usable = line.usable
    position = cycle.position(scheduler.queue.jobs[job])
    layers = cycle.layers(waiting)
    board = scheduler.board
    answer = obstacles(board, waiting, line.standing, layers)
    steps = _steps(board, waiting, layers, answer)
    holders = _holders(board, waiting, line.usable)
    usable = line.usable
    tried = () if aside or not usable else tuple(suggestions(board, waiting, usable, layers))
    reason = (waiting.waits_for or waits_out(waiting)) if aside else _outcome(cycle, waiting, layers, answer)
    if any(one.fix == reason.fix for one in tried):
        reason = replace(reason, fix=next((one.fix for one in tried if _starts(snapshot, one.changed)), ""))
    return Funnel(
        job=job,
        reason=reason,
        steps=steps,
        position=position if reason.code in _IN_LINE else 0,
        holders=holders,
        estimated_start=_estimate(snapshot, waiting, usable) if usable and waiting.waits_for is None else None,
        fix=reason.fix,
    )


def _starts(snapshot: Snapshot, changed: PendingJob) -> bool:
    """Whether the job starts at once if it is changed so."""
    pending = tuple(changed if item.id == changed.id else item for item in snapshot.pending)
    plan = schedule(replace(snapshot, pending=pending))
    return any(placement.job == changed.id for placement in plan.placements)


def _in_line(snapshot: Snapshot, job: PendingJob) -> Snapshot:
    """The snapshot in which a job that is kept apart stands in line."""
    lined_up = replace(job, waits_for=None, not_before_ms=0)
    return replace(snapshot, pending=tuple(lined_up if item.id == job.id else item for item in snapshot.pending))


def _outcome(cycle: Cycle, job: PendingJob, layers: tuple[Layer, ...], answer: dict[str, Rule | None]) -> Reason:
    line = cycle.queue.line_of(job.id)
    starts = not any(answer[site] for site in job.sites) if job.sites else None in answer.values()
    fresh = None if starts else cycle.verdict(line, job, layers)[1]
    plan = cycle.serve(job)
    if fresh is not None:
        own = plan.reasons[job.id]
        return own if "reserved_at" in own.numbers or own.code is ReasonCode.MAKING_ROOM else fresh
    legs = plan.placements[-1].legs
    total, where = sum(leg.gpus for leg in legs), ", ".join(leg.site for leg in legs)
    return Reason(
        code=ReasonCode.STARTING,
        message=f"starts in this cycle with {gpus(total)} at {where}",
        numbers={"gpus": total, "sites": where},
    )


def _holding(snapshot: Snapshot, job: str) -> Funnel:
    legs = sorted((leg for leg in snapshot.held if leg.job == job), key=lambda leg: leg.site)
    if not legs:
        raise NotFoundError(f"no job {job} waits or holds capacity", where=job, fix="list them with `consortium jobs`")
    total, where = sum(leg.gpus for leg in legs), ", ".join(leg.site for leg in legs)
    return Funnel(
        job=job,
        reason=Reason(
            code=ReasonCode.STARTING,
            message=f"holds {gpus(total)} at {where}",
            numbers={"gpus": total, "sites": where},
        ),
        steps=(),
        position=0,
        holders=_by_partner(snapshot.held, {leg.site for leg in legs}),
        estimated_start=None,
        fix="",
    )


def _steps(
    board: Board, job: PendingJob, layers: tuple[Layer, ...], answer: dict[str, Rule | None]
) -> tuple[FunnelStep, ...]:
    left = list(answer)
    steps = []
    for rule in RULES:
        numbers = _numbers(board, job, layers, left, rule)
        dropped = tuple(
            Drop(site=site, reason=describe(Case(board, job, site, layers, answer), rule))
            for site in left
            if answer[site] is rule
        )
        left = [site for site in left if answer[site] is not rule]
        steps.append(FunnelStep(rule=rule.value, sites_left=tuple(left), dropped=dropped, numbers=numbers))
    return tuple(steps)


def _numbers(
    board: Board, job: PendingJob, layers: tuple[Layer, ...], sites: list[str], rule: Rule
) -> dict[str, int | str]:
    """The numbers of a step, over the sites that reached it."""
    numbers: dict[str, int | str] = {"sites": len(sites)}
    known = [site for site in sites if site in board.views]
    need = site_demand(board, job)
    flavors = sorted({board.views[site].site.flavor.id for site in known})
    if rule is Rule.GANG_SIZE:
        numbers |= {"needed_per_site": job.gpus, "gpus_per_worker": job.gpus_per_worker}
        numbers |= {f"gpus_{site}": board.views[site].site.gpus for site in known}
    elif rule is Rule.QUOTA_LIMIT:
        for flavor in flavors:
            numbers |= {f"needed_{flavor}": need[flavor]}
            numbers |= {f"most_{flavor}": board.quota.potential(job.account, flavor).gpus}
    elif rule in (Rule.COTENANCY, Rule.CAPACITY):
        numbers |= {"needed_per_site": job.gpus}
        shared = rule is Rule.CAPACITY
        numbers |= {f"free_{site}": sum(rooms_at(job, site, layers[:1], cotenancy=shared).values()) for site in known}
    elif rule is Rule.QUOTA:
        for flavor in flavors:
            numbers |= {f"needed_{flavor}": need[flavor], f"held_{flavor}": board.quota.used(job.account, flavor)}
            numbers |= {f"available_{flavor}": quota_for(job, flavor, layers[:1])}
    elif rule is Rule.PRIORITY:
        numbers |= {"reservations": len(layers) - 1, "walltime_s": job.walltime_s}
    return numbers


def _holders(board: Board, job: PendingJob, usable: tuple[str, ...]) -> dict[str, int]:
    """Partner to GPUs it holds, at the job's turn, where the job could run; at its own sites for a gang."""
    return _by_partner(board.legs(), set(job.sites or usable))


def _by_partner(legs: Iterable[HeldLeg], sites: set[str]) -> dict[str, int]:
    held: dict[str, int] = {}
    for leg in legs:
        if leg.site in sites:
            held[leg.partner] = held.get(leg.partner, 0) + leg.gpus
    return dict(sorted(held.items()))


def start_range(snapshot: Snapshot, job: str) -> StartRange | None:
    """Return when a waiting job should start; None where nothing that ends would let it start."""
    waiting = next(item for item in snapshot.pending if item.id == job)
    line = Scheduler(replace(snapshot, pending=(replace(waiting, waits_for=None, not_before_ms=0),))).queue.line_of(job)
    return _estimate(snapshot, waiting, line.usable) if line.usable else None


def _estimate(snapshot: Snapshot, job: PendingJob, sites: tuple[str, ...]) -> StartRange | None:
    """The start between two bounds: nobody else in line and legs that end early, everybody in line at full length."""
    board = Board(replace(snapshot, pending=()))
    binding = any(board.quota.binds(flavor, 1 << 40) for flavor in {board.flavors[site] for site in sites})
    alone = Planner(board).earliest_fit(job, sites, (), binding=binding)
    if alone is None:
        return None
    soon = forecast(replace(snapshot, pending=(job,)), run="soon").get(job.id, alone.start_ms)
    earliest_ms = max(snapshot.now_ms, job.not_before_ms, min(alone.start_ms, soon))
    if len(snapshot.pending) > HORIZON_JOBS:
        return StartRange(earliest_ms=earliest_ms, latest_ms=None)
    latest_ms = forecast(snapshot, jobs=(job.id,)).get(job.id)
    return StartRange(earliest_ms=earliest_ms, latest_ms=None if latest_ms is None else max(latest_ms, earliest_ms))
