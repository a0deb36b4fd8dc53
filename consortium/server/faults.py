"""Legs that failed by no fault of their program: when and on which nodes they are tried again, and when they are not.

Called by the scheduler loop alone, each call in one transaction. By the fault of its site or of a node a leg is offered
again under a new epoch, after a backoff that doubles with each failure; not on a node that it failed on, if others have
room. Who failed too often at a site gives it up.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Attempt, Fault, Job, JobState, Leg, LegState
from consortium.domain.partner import SiteState
from consortium.scheduler import PendingJob, SiteView, Snapshot, schedule
from consortium.server import legs, nodes, rulings, snapshots, tasks, waits
from consortium.server.core import Core
from consortium.state import jobs
from consortium.state.evict import evict
from consortium.state.nodes import add_fault, count_faults
from consortium.state.sites import all_sites

RECHECK_MS = 600_000
"""When a leg of a federated job that no node of its site has room for is looked at again."""


def not_its_own(
    core: Core,
    connection: Connection,
    leg: Leg,
    state: LegState,
    fault: Fault,
    reason: str,
    now_ms: int,
) -> None:
    """End a leg's epoch by its site's or a node's fault: offer it again later, or give the site up."""
    attempt, job = jobs.attempt_row(connection, leg.attempt), jobs.find_job(connection, leg.job)
    ended = state if state in (LegState.LOST, LegState.STOPPED, LegState.REFUSED) else LegState.FAILED
    federated = len(_attempt(job, leg.attempt).legs) > 1
    enough = len(legs.others(connection, leg)) >= job.spec.min_sites
    failures = 1
    if federated or state is not LegState.LOST:  # a site that is cut off says nothing of the job
        failures = _note(core, connection, leg, fault, reason, now_ms)
    if failures >= core.settings.retry.max_tries:
        jobs.set_leg(connection, leg, ended, now_ms, reason=reason, fault=fault)
        tasks.leg_ended(connection, leg, LegState.FAILED)
        goes_on = attempt.started_ms > 0 and federated and enough and not legs.whole(job)
        goes_on = goes_on and rulings.can_do_without(connection, job, leg)
        _give_up(core, connection, leg, failures, reason, goes_on=goes_on)
        return
    in_place = attempt.started_ms > 0 and (state is not LegState.LOST or federated) and (not federated or enough)
    wait_ms = 0 if state is LegState.LOST else core.settings.retry.wait_ms(failures)
    retry_at_ms = now_ms + wait_ms if in_place else 0
    jobs.set_leg(connection, leg, ended, now_ms, reason=reason, fault=fault, retry_at_ms=retry_at_ms)
    waits = Reason(
        code=ReasonCode.HELD,
        message=f"{leg.site}: {reason}",
        numbers={"failures": failures, "max_tries": core.settings.retry.max_tries, "fault": fault.value},
        site=leg.site,
    )
    if in_place:
        legs.hold(connection, leg.job, waits, now_ms)
    else:
        tasks.leg_ended(connection, leg, LegState.FAILED)
        legs.release(core, connection, leg.job, waits, now_ms)


def offer_again(core: Core, connection: Connection, leg: Leg) -> None:
    """Give a leg whose backoff is over its next epoch, on nodes that it may use, if its account's budget carries it.

    Where its site has none for it now, or the budget not enough, a job of one leg goes back in line; a federated job
    goes on without the leg, which is looked at again later.
    """
    now_ms = core.clock.now_ms()
    job = jobs.find_job(connection, leg.job)
    if legs.too_late(connection, job, leg.site) and len(_attempt(job, leg.attempt).legs) > 1:
        jobs.set_retry(connection, leg.id, 0)
        legs.settle(core, connection, leg.job)
        return
    over = waits.over_budget(connection, core.federation, snapshots.held_legs(connection), leg, job.spec, now_ms)
    chosen = None if over else _nodes(core, connection, job, leg)
    if chosen is None:
        if len(_attempt(job, leg.attempt).legs) > 1:
            jobs.set_retry(connection, leg.id, now_ms + RECHECK_MS)
            legs.settle(core, connection, leg.job)
            return
        message = f"no other node of {leg.site} has room now; last: {leg.reason}"
        reason = over or Reason(code=ReasonCode.HELD, message=message, site=leg.site)
        legs.release(core, connection, leg.job, reason, now_ms)
        return
    jobs.new_epoch(connection, leg, core.next_epoch(connection), now_ms, nodes=chosen)
    if job.state is JobState.PENDING:
        jobs.update_job(connection, job, now_ms=now_ms, state=JobState.STARTING)


def without_site(core: Core, connection: Connection, leg: Leg) -> None:
    """Settle a job one of whose legs waits at a site that is gone.

    Where no other leg is at work, nor soon to be, and the job has not ended with that, it goes back in line: a leg that
    waits keeps its GPUs and quota. So it does where those at work wait for this leg alone, as where rulings leave them
    out of the rounds.
    """
    legs.settle(core, connection, leg.job)
    job, stored = jobs.find_job(connection, leg.job), all_sites(connection)
    at_work = any(other.state in jobs.LIVE for other in _attempt(job, leg.attempt).legs)
    if job.state.final or (at_work and rulings.can_do_without(connection, job, leg)):
        return
    waiting = [row for row in jobs.waiting_legs(connection) if row.attempt == leg.attempt]
    if any(legs.awaited(core, row, stored.get(row.site)) for row in waiting):
        return
    away = core.ailment(leg.site, stored.get(leg.site)) or "gone"
    message = f"{leg.site} is {away}, where it was to be tried again; last: {leg.reason}"
    reason = Reason(code=ReasonCode.HELD, message=message, site=leg.site)
    if at_work:
        evict(connection, leg.job, reason, core.clock.now_ms())
    else:
        legs.release(core, connection, leg.job, reason, core.clock.now_ms())


def _note(core: Core, connection: Connection, leg: Leg, fault: Fault, reason: str, now_ms: int) -> int:
    """Keep the fault, cordon its node if it fails too often; return how often the job failed at the site of late."""
    suspects = tuple(leg.nodes)
    add_fault(connection, leg, fault, reason, now_ms, nodes=suspects if fault is Fault.NODE else ())
    if fault is Fault.NODE and len(suspects) == 1:
        nodes.cordon_failing(core, connection, leg.site, suspects[0], reason)
    return count_faults(connection, leg, nodes.counts_since(core))


def _give_up(core: Core, connection: Connection, leg: Leg, failures: int, reason: str, *, goes_on: bool) -> None:
    if goes_on:
        legs.settle(core, connection, leg.job)
        return
    message = f"{leg.site} failed {failures} times, last: {reason}"
    why = Reason(code=ReasonCode.SITE_FAULT, message=message, numbers={"failures": failures}, site=leg.site)
    legs.end_job(core, connection, leg.job, JobState.FAILED, why)


def _nodes(core: Core, connection: Connection, job: Job, leg: Leg) -> dict[str, int] | None:
    """Return the nodes of a leg's next epoch: those it had, or others where it is to avoid one of them.

    None: no nodes of its site that it may use have room now. The scheduler decides, on a snapshot in which the leg's
    own GPUs are free and nobody else waits.
    """
    known, stored = nodes.shunned(core, connection), all_sites(connection)
    need = job.spec.resources
    avoid = known.avoid(job.id, need)
    cordoned = known.cordoned.get(leg.site, frozenset())
    now_ms = core.clock.now_ms()
    windows = nodes.all_windows(core, connection, stored)
    ends_ms = now_ms + need.walltime_s * 1000
    barred = any(nodes.covers(item, leg.site, leg.nodes) and item.start_ms < ends_ms for item in windows)
    if not barred and not any((leg.site, node) in avoid or node in cordoned for node in leg.nodes):
        return leg.nodes
    waiting = PendingJob(
        id=job.id,
        account=job.spec.account,
        priority=job.spec.priority,
        created_ms=job.created_ms,
        gpus=need.gpus,
        gpus_per_worker=need.gpus_per_worker,
        flavors=need.flavors,
        walltime_s=need.walltime_s,
        sites=(leg.site,),
        avoid=avoid,
    )
    view = SiteView(site=core.federation.site(leg.site), state=SiteState.ACTIVE, cordoned=tuple(sorted(cordoned)))
    snapshot = Snapshot(
        now_ms=now_ms,
        sites=(view,),
        accounts=tuple(core.federation.accounts.values()),
        held=tuple(held for held in snapshots.held_legs(connection) if held.leg != leg.id),
        pending=(waiting,),
        windows=windows,
        settings=replace(core.settings.scheduler.settings, preemption=False),
    )
    placed = schedule(snapshot).placements
    return dict(placed[0].legs[0].nodes) if placed else None


def _attempt(job: Job, attempt_id: str) -> Attempt:
    return next(attempt for attempt in job.attempts if attempt.id == attempt_id)
