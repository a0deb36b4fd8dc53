"""GPUs taken back: for another job as the scheduler decided, for maintenance, or because their site leaves.

Called by the scheduler loop alone, each call in one transaction. Legs are told to stop, and their programs get the time
to keep their progress. Once all have stopped the job waits again. Where a site or some of its nodes are set aside, a
federated job goes on without the leg there, as long as `min_sites` of its legs remain; one that needs all its sites
(`legs.whole`) only where the leg comes back.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Fault, JobState, Leg, LegState
from consortium.domain.partner import SiteState
from consortium.domain.records import RecordType
from consortium.domain.units import gpu_hours
from consortium.scheduler.types import HeldLeg, Plan, Window, WindowKind
from consortium.server import legs, nodes, rulings, snapshots, tasks
from consortium.server.core import Core
from consortium.state import jobs
from consortium.state.commit import Committed
from consortium.state.evict import evict
from consortium.state.sites import SiteStatus, all_sites, update_site

log = logging.getLogger(__name__)


def record(core: Core, connection: Connection, plan: Plan, done: Committed) -> None:
    """Write the evictions of a committed plan into the ledger."""
    for eviction in plan.evictions:
        if eviction.job in done.evicted:
            facts = {
                "for_job": eviction.for_job,
                "rule": eviction.rule.value,
                "gpus": eviction.gpus,
                "lost_gpu_ms": eviction.lost_gpu_ms,
            }
            _record(core, connection, eviction.job, facts)


def stopped(core: Core, connection: Connection, leg: Leg, state: LegState, now_ms: int, fault: Fault | None) -> None:
    """A leg that was told to make way has stopped. Once the last of an evicted job has, the job waits again."""
    ended = state if state in (LegState.LOST, LegState.STOPPED) else LegState.STOPPED
    job = jobs.find_job(connection, leg.job)
    back_ms = 0 if job.state is JobState.PREEMPTING else _back_ms(core, connection, leg)
    jobs.set_leg(connection, leg, ended, now_ms, fault=fault, retry_at_ms=back_ms)
    if not back_ms:
        tasks.leg_ended(connection, leg, ended)
    legs.settle(core, connection, leg.job)


def clear_sites(core: Core) -> None:
    """Let legs make way on nodes that are set aside by now; withdraw the sites whose notice is over."""
    now_ms = core.clock.now_ms()
    with core.db.read() as connection:
        stored = all_sites(connection)
        begun = [
            window
            for window in nodes.all_windows(core, connection, stored)
            if window.kind is WindowKind.MAINTENANCE and window.start_ms <= now_ms < window.end_ms
        ]
        at_work = jobs.legs_in(connection, legs.AT_WORK) if begun else []
        concerned = [(leg, window) for window in begun for leg in at_work if nodes.covers(window, leg.site, leg.nodes)]
        held = snapshots.held_legs(connection) if concerned else ()
    for status in stored.values():
        if status.withdraw_ms and status.withdraw_ms <= now_ms and status.state is not SiteState.WITHDRAWN:
            _withdraw(core, status.id)
    for leg, window in concerned:
        with core.db.write() as connection:
            _make_way(core, connection, leg.id, window, held)


def _make_way(core: Core, connection: Connection, leg_id: str, window: Window, held: tuple[HeldLeg, ...]) -> None:
    leg, now_ms = jobs.find_leg(connection, leg_id), core.clock.now_ms()
    if leg is None or leg.state not in legs.AT_WORK:
        return
    if window not in nodes.all_windows(core, connection, all_sites(connection)):
        return  # called off at the last moment
    job, attempt = jobs.find_job(connection, leg.job), jobs.attempt_row(connection, leg.attempt)
    leaves = window.id == nodes.recall(SiteStatus(id=leg.site)).id
    goes_on = attempt.started_ms > 0 and len(legs.others(connection, leg)) >= max(1, job.spec.min_sites)
    if leaves:
        goes_on = goes_on and not legs.whole(job) and rulings.can_do_without(connection, job, leg)
    told = [item for item in held if (item.leg == leg.id if goes_on else item.job == leg.job)]
    why = f"{leg.site} is withdrawn by its partner" if leaves else f"maintenance at {leg.site} has begun"
    lost = sum(max(0, now_ms - max(item.started_ms, item.checkpoint_ms)) * item.gpus for item in told)
    message = f"{why}; {gpu_hours(lost, 2)} GPU-hours since its last training checkpoint are done again"
    rule = "withdrawal" if leaves else WindowKind.MAINTENANCE.value
    numbers: dict[str, int | str] = {"rule": rule, "gpus": sum(item.gpus for item in told), "lost_gpu_ms": lost}
    reason = Reason(code=ReasonCode.PREEMPTED, message=message, numbers=numbers, site=leg.site)
    if goes_on:
        jobs.set_leg(connection, leg, LegState.STOPPING, now_ms, reason=message)
    else:
        evict(connection, leg.job, reason, now_ms)
    log.info("%s makes way: %s", leg.id, why)
    _record(core, connection, leg.job, {**numbers, "site": leg.site, "window": "" if leaves else window.id})


def _record(core: Core, connection: Connection, job_id: str, facts: dict[str, int | str]) -> None:
    job = jobs.find_job(connection, job_id)
    attempt = job.attempt
    told = [leg for leg in (attempt.legs if attempt else ()) if leg.state is LegState.STOPPING]
    body = {
        "job": job.id,
        "state": job.state.value,
        "account": job.spec.account,
        "attempt": attempt.id if attempt else "",
        "legs": [{"leg": leg.id, "epoch": str(leg.epoch), "site": leg.site, "gpus": leg.gpus} for leg in told],
        "evicted": True,
        **facts,
    }
    core.record(connection, RecordType.DECISION, body)


def _back_ms(core: Core, connection: Connection, leg: Leg) -> int:
    """When a leg of a job that goes on without it may come back: at the end of the maintenance, never from a recall."""
    now_ms, stored = core.clock.now_ms(), all_sites(connection)
    ends = [
        window.end_ms
        for window in nodes.all_windows(core, connection, stored)
        if nodes.covers(window, leg.site, leg.nodes) and window.start_ms <= now_ms < window.end_ms
    ]
    status = stored.get(leg.site)
    sites = jobs.find_job(connection, leg.job).target_sites
    leaves = bool(sites) and leg.site not in sites
    return 0 if leaves or (status is not None and status.withdraw_ms) else max(ends, default=0)


def _withdraw(core: Core, site: str) -> None:
    with core.db.write() as connection:
        status = all_sites(connection)[site]
        if not 0 < status.withdraw_ms <= core.clock.now_ms() or status.state is SiteState.WITHDRAWN:
            return  # called off, or put off, at the last moment
        update_site(connection, site, state=SiteState.WITHDRAWN)
        body = {"site": site, "state": SiteState.WITHDRAWN.value, "by": "server", "reason": "its notice is over"}
        core.record(connection, RecordType.DOWNTIME, body)
    log.info("%s is withdrawn", site)
