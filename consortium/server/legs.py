"""What becomes of legs and their jobs. Called by the scheduler loop alone, each call in one transaction.

A leg's epoch ends by the site's word, or when its lease has surely run out. By the site's fault the leg is offered
again under a new epoch; a job whose attempt cannot go on is released: its legs stop, and it waits for a new attempt.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select

from consortium.domain.codec import from_json
from consortium.domain.data import Dataset
from consortium.domain.decision import Denial, Reason, ReasonCode
from consortium.domain.job import Attempt, Fault, Job, JobState, Leg, LegState
from consortium.domain.partner import SiteState
from consortium.domain.protocol import LegReport
from consortium.domain.records import RecordType
from consortium.errors import ConsortiumError
from consortium.server import tasks
from consortium.server.core import Core
from consortium.state import data, jobs
from consortium.state import tables as t
from consortium.state.sites import all_sites

log = logging.getLogger(__name__)
MAX_TRIES = 5
"""Epochs a leg may fail by its site's fault before its site is given up."""
BACKOFF_MS = 1_000
MAX_BACKOFF_MS = 60_000


def backoff_ms(tries: int) -> int:
    """Return how long to wait after the `tries`-th failure: 1 s, 2 s, 4 s, at most a minute."""
    return min(BACKOFF_MS << min(max(tries - 1, 0), 16), MAX_BACKOFF_MS)


def fold_report(core: Core, connection: Connection, site: str, report: LegReport, received_ms: int) -> None:
    """Take in what a site says of one epoch of a leg."""
    leg = jobs.find_leg(connection, report.leg)
    if leg is None or leg.site != site:
        log.warning("%s reports a leg that is not its own: %s", site, report.leg)
        return
    if report.epoch != leg.epoch:
        if report.state.final:
            _close_book(core, connection, leg, report, received_ms)
        return
    if report.progress:
        jobs.set_progress(connection, leg.id, report.progress)
    attempt_open = jobs.attempt_row(connection, leg.attempt).ended_ms == 0
    if report.state.final:
        _close_book(core, connection, leg, report, received_ms)
        if leg.state.final and not (leg.state is LegState.LOST and attempt_open):
            return
        _final(core, connection, leg, report, received_ms, attempt_open)
    elif report.state is LegState.HELD and leg.state is LegState.OFFERED:
        jobs.set_leg(connection, leg, LegState.HELD, received_ms)
        start_if_held(connection, leg.attempt, received_ms)
    elif report.state is LegState.RUNNING:
        if leg.state is LegState.STARTING:
            jobs.set_leg(connection, leg, LegState.RUNNING, received_ms)
            job = jobs.find_job(connection, leg.job)
            if job.state is JobState.STARTING:
                jobs.update_job(connection, job, now_ms=received_ms, state=JobState.RUNNING, clear_reason=True)
        elif leg.state is LegState.STOPPING:
            jobs.note_epoch(connection, leg.id, leg.epoch, LegState.RUNNING, received_ms)


def start_if_held(connection: Connection, attempt_id: str, now_ms: int) -> None:
    """Start a gang once all its sites hold; in an attempt that started before, a leg starts as soon as it is held."""
    started = jobs.attempt_row(connection, attempt_id).started_ms > 0
    rows = list(connection.execute(select(t.legs).where(t.legs.c.attempt == attempt_id).order_by(t.legs.c.id)))
    legs = [jobs.leg_of(row) for row in rows]
    if not started and any(leg.state is not LegState.HELD for leg in legs):
        return
    for leg in legs:
        if leg.state is LegState.HELD:
            jobs.set_leg(connection, leg, LegState.STARTING, now_ms)
    if not started and legs:
        jobs.start_attempt(connection, attempt_id, now_ms)
        message = f"every site holds it; starting at {', '.join(sorted(leg.site for leg in legs))}"
        job = jobs.find_job(connection, legs[0].job)
        jobs.update_job(connection, job, now_ms=now_ms, reason=Reason(code=ReasonCode.STARTING, message=message))


def _final(core: Core, connection: Connection, leg: Leg, report: LegReport, now_ms: int, attempt_open: bool) -> None:
    if not attempt_open or leg.state is LegState.STOPPING:
        jobs.set_leg(connection, leg, report.state, now_ms, reason=report.reason, fault=report.fault)
        tasks.leg_ended(connection, leg, report.state)
        return
    if report.state is LegState.REFUSED:
        _refused(core, connection, leg, report, now_ms)
    elif report.state is LegState.SUCCEEDED:
        _succeeded(core, connection, leg, report, now_ms)
    elif report.fault is Fault.USER:
        jobs.set_leg(connection, leg, LegState.FAILED, now_ms, reason=report.reason, fault=Fault.USER)
        tasks.leg_ended(connection, leg, LegState.FAILED)
        reason = Reason(
            code=ReasonCode.PROGRAM,
            message=f"the program failed at {leg.site}: {report.reason or 'it gave no reason'}",
            site=leg.site,
            fix=f"read its log: consortium logs {leg.job} --site {leg.site}",
        )
        end_job(core, connection, leg.job, JobState.FAILED, reason)
    else:
        site_fault(core, connection, leg, report.state, report.reason or f"{leg.site} stopped it", now_ms)


def _refused(core: Core, connection: Connection, leg: Leg, report: LegReport, now_ms: int) -> None:
    if jobs.attempt_row(connection, leg.attempt).started_ms:
        site_fault(core, connection, leg, LegState.REFUSED, report.reason, now_ms)
        return
    jobs.set_leg(connection, leg, LegState.REFUSED, now_ms, reason=report.reason)
    tasks.leg_ended(connection, leg, LegState.REFUSED)
    denial = from_json(Denial, report.denial, where="refusal") if report.denial else None
    body = {"job": leg.job, "leg": leg.id, "epoch": str(leg.epoch), "site": leg.site, "code": report.reason_code,
            "reason": report.reason, "denial": report.denial}  # fmt: skip
    core.record(connection, RecordType.REFUSAL, body)
    reason = Reason(
        code=ReasonCode.POLICY if denial else ReasonCode.REFUSED,
        message=f"{leg.site} refused: {report.reason}",
        numbers={"code": report.reason_code, **({"clause": denial.clause} if denial else {})},
        site=leg.site,
        fix=denial.would_pass if denial else "",
    )
    release(core, connection, leg.job, reason, now_ms)
    if denial is not None:
        end_job(core, connection, leg.job, JobState.DENIED, reason, denials=(denial,))


def _succeeded(core: Core, connection: Connection, leg: Leg, report: LegReport, now_ms: int) -> None:
    job = jobs.find_job(connection, leg.job)
    site = core.federation.sites.get(leg.site)
    try:
        with connection.begin_nested():
            outputs = _register_outputs(core, connection, job, leg, report.result, now_ms)
    except (ConsortiumError, ValueError) as fault:
        what = fault.what if isinstance(fault, ConsortiumError) else str(fault)
        reason = Reason(
            code=ReasonCode.PROGRAM, message=f"the result of {leg.site} does not hold: {what}", site=leg.site
        )
        jobs.set_leg(connection, leg, LegState.FAILED, now_ms, reason=reason.message, fault=Fault.USER)
        tasks.leg_ended(connection, leg, LegState.FAILED)
        end_job(core, connection, leg.job, JobState.FAILED, reason)
        return
    jobs.set_leg(connection, leg, LegState.SUCCEEDED, now_ms)
    tasks.leg_ended(connection, leg, LegState.SUCCEEDED)
    part = {**report.result, "outputs": outputs}
    core.record(
        connection,
        RecordType.MANIFEST,
        {
            "job": job.id,
            "leg": leg.id,
            "epoch": str(leg.epoch),
            "site": leg.site,
            "territory": "" if site is None else site.territory,
            "manifest_digest": report.result.get("manifest_digest", ""),
            "metrics": report.result.get("metrics", {}),
            "outputs": outputs,
        },
    )
    jobs.update_job(connection, job, now_ms=now_ms, result={**job.result, leg.site: part})
    settle(core, connection, leg.job)


def _register_outputs(
    core: Core, connection: Connection, job: Job, leg: Leg, result: dict[str, Any], now_ms: int
) -> list[str]:
    outputs = from_json(tuple[Dataset, ...], result.get("outputs", ()), where=f"result of {leg.id}")
    site = core.federation.site(leg.site)
    for output in outputs:
        if output.site != leg.site or output.territory != site.territory:
            raise ValueError(f"dataset {output.name} names {output.site} in {output.territory!r} as its home")
        known = connection.execute(select(t.datasets.c.job).where(t.datasets.c.id == output.id)).scalar()
        if known == job.id:
            continue
        dataset = replace(output, version=data.next_version(connection, output.name))
        data.insert_dataset(connection, dataset, now_ms=now_ms, job=job.id, leg=leg.id)
        body = {"dataset": dataset, "job": job.id, "leg": leg.id, "signer": "", "signature": ""}
        core.record(connection, RecordType.DATASET, body)
    return [output.id for output in outputs]


def site_fault(core: Core, connection: Connection, leg: Leg, state: LegState, reason: str, now_ms: int) -> None:
    """End a leg's epoch by its site's fault: offer it again later, or give the site up after too many tries."""
    attempt = jobs.attempt_row(connection, leg.attempt)
    ended = state if state in (LegState.LOST, LegState.STOPPED, LegState.REFUSED) else LegState.FAILED
    others = _others(connection, leg)
    job = jobs.find_job(connection, leg.job)
    federated = len(_attempt(job, leg.attempt).legs) > 1
    enough = len(others) >= job.spec.min_sites
    if leg.tries >= MAX_TRIES:
        jobs.set_leg(connection, leg, ended, now_ms, reason=reason, fault=Fault.SITE)
        tasks.leg_ended(connection, leg, LegState.FAILED)
        if federated and enough:
            settle(core, connection, leg.job)
            return
        message = f"{leg.site} failed {leg.tries} times, last: {reason}"
        end_job(
            core,
            connection,
            leg.job,
            JobState.FAILED,
            Reason(code=ReasonCode.SITE_FAULT, message=message, site=leg.site),
        )
        return
    in_place = attempt.started_ms > 0 and (state is not LegState.LOST or federated) and (not federated or enough)
    retry_at_ms = now_ms + (0 if state is LegState.LOST else backoff_ms(leg.tries)) if in_place else 0
    jobs.set_leg(connection, leg, ended, now_ms, reason=reason, fault=Fault.SITE, retry_at_ms=retry_at_ms)
    waits = Reason(
        code=ReasonCode.HELD,
        message=f"{leg.site}: {reason}",
        numbers={"tries": leg.tries, "max_tries": MAX_TRIES},
        site=leg.site,
    )
    if in_place:
        hold(connection, leg.job, waits, now_ms)
    else:
        tasks.leg_ended(connection, leg, LegState.FAILED)
        release(core, connection, leg.job, waits, now_ms)


def hold(connection: Connection, job_id: str, reason: Reason, now_ms: int) -> None:
    """Note that a job waits for the next epoch of a leg; without any other leg at work it is pending."""
    job = jobs.find_job(connection, job_id)
    alive = job.attempt is not None and any(leg.state in jobs.LIVE for leg in job.attempt.legs)
    state = job.state if alive or job.state is JobState.PENDING else JobState.PENDING
    jobs.update_job(connection, job, now_ms=now_ms, state=state, reason=reason)


def release(core: Core, connection: Connection, job_id: str, reason: Reason, now_ms: int) -> None:
    """End the attempt of a job: its legs stop, and it waits for a new attempt, with a backoff that grows."""
    attempt = jobs.open_attempt(connection, job_id)
    if attempt is None:
        return
    _stop_legs(core, connection, job_id, "the attempt ended: " + reason.message, now_ms)
    jobs.end_attempt(connection, attempt.id, now_ms)
    job = jobs.find_job(connection, job_id)
    state = None if job.state is JobState.PENDING else JobState.PENDING
    wait_until_ms = now_ms + backoff_ms(attempt.number)
    jobs.update_job(connection, job, now_ms=now_ms, state=state, reason=reason, not_before_ms=wait_until_ms)


def end_job(
    core: Core,
    connection: Connection,
    job_id: str,
    state: JobState,
    reason: Reason | None,
    *,
    denials: tuple[Denial, ...] | None = None,
) -> None:
    """Bring a job to a final state; legs that still hold anything are told to stop."""
    now_ms = core.clock.now_ms()
    job = jobs.find_job(connection, job_id)
    if job.state.final:
        return
    why = "the job was cancelled" if state is JobState.CANCELLED else (reason.message if reason else "the job ended")
    _stop_legs(core, connection, job_id, why, now_ms)
    attempt = jobs.open_attempt(connection, job_id)
    if attempt is not None:
        jobs.end_attempt(connection, attempt.id, now_ms)
    job = jobs.update_job(
        connection, job, now_ms=now_ms, state=state, reason=reason, clear_reason=reason is None, denials=denials
    )
    body = {"job": job.id, "state": state.value, "reason": reason, "account": job.spec.account,
            "sites": sorted(job.result), "denials": denials or ()}  # fmt: skip
    core.record(connection, RecordType.DECISION, body)
    tasks.job_ended(connection, job)


def settle(core: Core, connection: Connection, job_id: str) -> None:
    """End a job whose legs are all through."""
    job = jobs.find_job(connection, job_id)
    attempt = jobs.open_attempt(connection, job_id)
    if attempt is None or job.attempt is None or job.state.final:
        return
    legs = job.attempt.legs
    if any(leg.state in jobs.LIVE for leg in legs):
        return
    stored = all_sites(connection)
    waiting = {row.id: row.site for row in jobs.waiting_legs(connection)}
    for leg in legs:
        if leg.id in waiting and core.site_state(leg.site, stored.get(leg.site)) is not SiteState.LOST:
            return
    done = [leg for leg in legs if leg.state is LegState.SUCCEEDED]
    if len(done) == len(legs) or (len(legs) > 1 and len(done) >= job.spec.min_sites):
        if job.state is JobState.PENDING:
            job = jobs.update_job(connection, job, now_ms=core.clock.now_ms(), state=JobState.STARTING)
        if job.state is JobState.STARTING:
            jobs.update_job(connection, job, now_ms=core.clock.now_ms(), state=JobState.RUNNING)
        end_job(core, connection, job_id, JobState.SUCCEEDED, None)


def lose(core: Core, connection: Connection, leg: Leg, why: str) -> None:
    """Count an epoch as lost: its lease has surely run out, so nothing runs under it any more."""
    now_ms = core.clock.now_ms()
    _lease_record(core, connection, leg, LegState.LOST, why)
    if leg.state is LegState.STOPPING or jobs.attempt_row(connection, leg.attempt).ended_ms:
        jobs.set_leg(connection, leg, LegState.LOST, now_ms, reason=why, fault=Fault.SITE)
        tasks.leg_ended(connection, leg, LegState.LOST)
    else:
        site_fault(core, connection, leg, LegState.LOST, why, now_ms)


def confirm_stop(core: Core, connection: Connection, leg: Leg) -> None:
    """Count a leg as stopped whose site, told to stop it, no longer knows it."""
    now_ms = core.clock.now_ms()
    _lease_record(core, connection, leg, LegState.STOPPED, "its site does not know it")
    jobs.set_leg(connection, leg, LegState.STOPPED, now_ms)
    tasks.leg_ended(connection, leg, LegState.STOPPED)


def _stop_legs(core: Core, connection: Connection, job_id: str, why: str, now_ms: int) -> None:
    rows = connection.execute(
        select(t.legs).where((t.legs.c.job == job_id) & t.legs.c.state.in_([s.value for s in jobs.LIVE]))
    )
    for row in list(rows):
        leg = jobs.leg_of(row)
        if leg.state is not LegState.STOPPING:
            jobs.set_leg(connection, leg, LegState.STOPPING, now_ms, reason=why)


def _others(connection: Connection, leg: Leg) -> list[Leg]:
    """Legs of the same attempt that are at work or through."""
    rows = connection.execute(select(t.legs).where((t.legs.c.attempt == leg.attempt) & (t.legs.c.id != leg.id)))
    at_work = (LegState.OFFERED, LegState.HELD, LegState.STARTING, LegState.RUNNING, LegState.SUCCEEDED)
    return [other for other in (jobs.leg_of(row) for row in rows) if other.state in at_work]


def _attempt(job: Job, attempt_id: str) -> Attempt:
    return next(attempt for attempt in job.attempts if attempt.id == attempt_id)


def _close_book(core: Core, connection: Connection, leg: Leg, report: LegReport, received_ms: int) -> None:
    """Note the end of an epoch in the server's own book, once."""
    book = jobs.epoch_row(connection, leg.id, report.epoch)
    if book is None or book.final_ms:
        return
    jobs.note_epoch(connection, leg.id, report.epoch, report.state, received_ms, report.reason)
    _lease_record(core, connection, leg, report.state, report.reason, epoch_of=report)


def _lease_record(
    core: Core, connection: Connection, leg: Leg, state: LegState, why: str, epoch_of: LegReport | None = None
) -> None:
    epoch = leg.epoch if epoch_of is None else epoch_of.epoch
    if epoch_of is None:
        jobs.note_epoch(connection, leg.id, epoch, state, core.clock.now_ms(), why)
    book = jobs.epoch_row(connection, leg.id, epoch)
    if book is None:
        return
    row = jobs.leg_row(connection, leg.id)
    core.record(
        connection,
        RecordType.LEASE,
        {
            "leg": leg.id,
            "epoch": str(epoch),
            "job": leg.job,
            "account": jobs.job_row(connection, leg.job).account,
            "site": leg.site,
            "flavor": row.flavor,
            "gpus": leg.gpus,
            "offered_ms": book.offered_ms,
            "held_ms": book.held_ms,
            "start_ms": book.start_ms,
            "running_ms": book.running_ms,
            "final_ms": book.final_ms,
            "state": state.value,
            "reason": why,
        },
    )
