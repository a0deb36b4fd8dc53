"""Take in what sites say of legs: they hold, run, succeeded, failed or stopped.

Called by the scheduler loop alone, each call in one transaction. A leg's epoch ends by the site's word, or when its
lease has surely run out.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select

from consortium.domain.codec import from_json
from consortium.domain.data import CONSENT_FIX, Dataset, name_family
from consortium.domain.decision import Denial, Reason, ReasonCode
from consortium.domain.job import Fault, Job, JobState, Leg, LegState
from consortium.domain.protocol import LegReport
from consortium.domain.records import RecordType
from consortium.errors import ConsortiumError
from consortium.server import evictions, faults, legs, tasks
from consortium.server.core import Core
from consortium.server.descriptions import check_output
from consortium.state import data, jobs
from consortium.state import tables as t

log = logging.getLogger(__name__)


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
        jobs.set_progress(connection, leg, report.progress, received_ms)
    attempt_open = jobs.attempt_row(connection, leg.attempt).ended_ms == 0
    if report.state.final:
        _close_book(core, connection, leg, report, received_ms)
        known = report.state in (LegState.STOPPED, LegState.LOST)
        if leg.state.final and (known or leg.state is not LegState.LOST or not attempt_open):
            return
        _final(core, connection, leg, report, received_ms, attempt_open)
    elif report.state is LegState.HELD and leg.state is LegState.OFFERED:
        jobs.set_leg(connection, leg, LegState.HELD, received_ms)
        legs.start_if_held(connection, leg.attempt, received_ms)
    elif report.state is LegState.RUNNING:
        if leg.state is LegState.STARTING:
            jobs.set_leg(connection, leg, LegState.RUNNING, received_ms)
            job = jobs.find_job(connection, leg.job)
            if job.state is JobState.STARTING:
                jobs.update_job(connection, job, now_ms=received_ms, state=JobState.RUNNING, clear_reason=True)
        elif leg.state is LegState.STOPPING:
            jobs.note_epoch(connection, leg.id, leg.epoch, LegState.RUNNING, received_ms)


def _final(core: Core, connection: Connection, leg: Leg, report: LegReport, now_ms: int, attempt_open: bool) -> None:
    if not attempt_open:
        jobs.set_leg(connection, leg, report.state, now_ms, reason=report.reason, fault=report.fault)
        tasks.leg_ended(connection, leg, report.state)
    elif report.state is LegState.SUCCEEDED:
        _succeeded(core, connection, leg, report, now_ms)
    elif report.state is LegState.FAILED and report.fault is Fault.USER:
        _failed(core, connection, leg, report, now_ms)
    elif leg.state is LegState.STOPPING:
        evictions.stopped(core, connection, leg, report.state, now_ms, report.fault)
    elif report.state is LegState.REFUSED:
        _refused(core, connection, leg, report, now_ms)
    else:
        fault, reason = report.fault or Fault.SITE, report.reason or f"{leg.site} stopped it"
        faults.not_its_own(core, connection, leg, report.state, fault, reason, now_ms)


def _failed(core: Core, connection: Connection, leg: Leg, report: LegReport, now_ms: int) -> None:
    jobs.set_leg(connection, leg, LegState.FAILED, now_ms, reason=report.reason, fault=Fault.USER)
    tasks.leg_ended(connection, leg, LegState.FAILED)
    reason = Reason(
        code=ReasonCode.PROGRAM,
        message=f"the program failed at {leg.site}: {report.reason or 'it gave no reason'}",
        site=leg.site,
        fix=f"read its log: consortium logs {leg.job} --site {leg.site}",
    )
    legs.end_job(core, connection, leg.job, JobState.FAILED, reason)


def _refused(core: Core, connection: Connection, leg: Leg, report: LegReport, now_ms: int) -> None:
    started = bool(jobs.attempt_row(connection, leg.attempt).started_ms)
    if started and report.reason_code != ReasonCode.CONSENT:
        faults.not_its_own(core, connection, leg, LegState.REFUSED, Fault.SITE, report.reason, now_ms)
        return
    jobs.set_leg(connection, leg, LegState.REFUSED, now_ms, reason=report.reason)
    tasks.leg_ended(connection, leg, LegState.REFUSED)
    denial = from_json(Denial, report.denial, where="refusal") if report.denial else None
    body = {"job": leg.job, "leg": leg.id, "epoch": str(leg.epoch), "site": leg.site, "code": report.reason_code,
            "reason": report.reason, "denial": report.denial}  # fmt: skip
    core.record(connection, RecordType.REFUSAL, body)
    code = ReasonCode.CONSENT if report.reason_code == ReasonCode.CONSENT else ReasonCode.REFUSED
    reason = Reason(
        code=ReasonCode.POLICY if denial else code,
        message=f"{leg.site} refused: {report.reason}",
        numbers={"code": report.reason_code, **({"clause": denial.clause} if denial else {})},
        site=leg.site,
        fix=denial.would_pass if denial else CONSENT_FIX if code is ReasonCode.CONSENT else "",
    )
    legs.release(core, connection, leg.job, reason, now_ms)
    if denial is not None:
        legs.end_job(core, connection, leg.job, JobState.DENIED, reason, denials=(denial,))
    elif code is ReasonCode.CONSENT:  # waiting cannot mend it
        legs.end_job(core, connection, leg.job, JobState.FAILED if started else JobState.DENIED, reason)


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
        legs.end_job(core, connection, leg.job, JobState.FAILED, reason)
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
    legs.settle(core, connection, leg.job)


def _register_outputs(
    core: Core, connection: Connection, job: Job, leg: Leg, result: dict[str, Any], now_ms: int
) -> list[str]:
    outputs = from_json(tuple[Dataset, ...], result.get("outputs", ()), where=f"result of {leg.id}")
    site = core.federation.site(leg.site)
    read = [data.find_dataset(connection, item) for item in leg.inputs] if outputs else []
    families = {name_family(item.name) for item in read}
    for output in outputs:
        if output.site != leg.site or output.territory != site.territory:
            raise ValueError(f"dataset {output.name} names {output.site} in {output.territory!r} as its home")
        known = connection.execute(select(t.datasets.c.leg).where(t.datasets.c.id == output.id)).scalar()
        if known == leg.id:
            continue
        check_output(output, read)
        if name_family(output.name) not in families:  # no name that a program gives, and perhaps another partner's
            data.check_family(connection, output)
        dataset = replace(output, version=data.next_version(connection, output.name))
        data.insert_dataset(connection, dataset, now_ms=now_ms, job=job.id, leg=leg.id)
        body = {"dataset": dataset, "job": job.id, "leg": leg.id, "signer": "", "signature": ""}
        core.record(connection, RecordType.DATASET, body)
    return [output.id for output in outputs]


def lose(core: Core, connection: Connection, leg: Leg, why: str) -> None:
    """Count an epoch as lost: its lease has surely run out, so nothing runs under it any more."""
    now_ms = core.clock.now_ms()
    _lease_record(core, connection, leg, LegState.LOST, why, Fault.SITE)
    if jobs.attempt_row(connection, leg.attempt).ended_ms:
        jobs.set_leg(connection, leg, LegState.LOST, now_ms, reason=why, fault=Fault.SITE)
        tasks.leg_ended(connection, leg, LegState.LOST)
    elif leg.state is LegState.STOPPING:
        evictions.stopped(core, connection, leg, LegState.LOST, now_ms, Fault.SITE)
    else:
        faults.not_its_own(core, connection, leg, LegState.LOST, Fault.SITE, why, now_ms)


def confirm_stop(core: Core, connection: Connection, leg: Leg) -> None:
    """Count a leg as stopped whose site, told to stop it, no longer knows it."""
    now_ms = core.clock.now_ms()
    _lease_record(core, connection, leg, LegState.STOPPED, "its site does not know it", None)
    if jobs.attempt_row(connection, leg.attempt).ended_ms:
        jobs.set_leg(connection, leg, LegState.STOPPED, now_ms)
        tasks.leg_ended(connection, leg, LegState.STOPPED)
    else:
        evictions.stopped(core, connection, leg, LegState.STOPPED, now_ms, None)


def _close_book(core: Core, connection: Connection, leg: Leg, report: LegReport, received_ms: int) -> None:
    """Note the end of an epoch in the server's own book, once."""
    book = jobs.epoch_row(connection, leg.id, report.epoch)
    if book is None or book.final_ms:
        return
    jobs.note_epoch(connection, leg.id, report.epoch, report.state, received_ms, report.reason)
    _lease_record(core, connection, leg, report.state, report.reason, report.fault, epoch_of=report)


def _lease_record(
    core: Core,
    connection: Connection,
    leg: Leg,
    state: LegState,
    why: str,
    fault: Fault | None,
    epoch_of: LegReport | None = None,
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
            "fault": "" if fault is None else fault.value,
            "evicted_for": row.stopping_for if epoch == leg.epoch else "",
        },
    )
