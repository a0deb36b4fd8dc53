"""What becomes of attempts and jobs. Called by the scheduler loop alone, each call in one transaction.

A job whose attempt cannot go on is released: its legs stop, and it waits for a new attempt. `folding` takes in what
sites say of legs, `faults` decides on legs that failed by no fault of their program, `evictions` takes GPUs back.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from consortium.domain.data import ArtifactClass
from consortium.domain.decision import Denial, Reason, ReasonCode
from consortium.domain.job import Job, JobKind, JobState, Leg, LegState
from consortium.domain.records import RecordType
from consortium.domain.training import RoundPhase
from consortium.server import tasks
from consortium.server.core import Core
from consortium.state import jobs, rounds
from consortium.state import tables as t
from consortium.state.data import agreements, artifacts_for, said_of_states
from consortium.state.evict import wait_again
from consortium.state.sites import SiteStatus, all_sites
from consortium.train.disputes import beginning

AT_WORK = (LegState.OFFERED, LegState.HELD, LegState.STARTING, LegState.RUNNING)


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
    stop_legs(connection, job_id, "the attempt ended: " + reason.message, now_ms)
    jobs.end_attempt(connection, attempt.id, now_ms)
    job = jobs.find_job(connection, job_id)
    state = None if job.state is JobState.PENDING else JobState.PENDING
    wait_until_ms = now_ms + core.settings.retry.wait_ms(attempt.number)
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
    stop_legs(connection, job_id, why, now_ms)
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
    """End a job whose legs are all through; one whose legs have all ended, and too few of them well, waits again."""
    job = jobs.find_job(connection, job_id)
    attempt = jobs.open_attempt(connection, job_id)
    if attempt is None or job.attempt is None or job.state.final:
        return
    legs = job.attempt.legs
    done = [leg for leg in legs if leg.state is LegState.SUCCEEDED]
    waiting = {row.id: row for row in jobs.waiting_legs(connection)}
    if live := [leg for leg in legs if leg.state in jobs.LIVE]:
        if not all(too_late(connection, job, leg.site) for leg in live):
            return
        if len(done) >= job.spec.min_sites:
            stop_legs(connection, job_id, "the training is over, and nobody is left to join", core.clock.now_ms())
            return
        stops = any(leg.state not in AT_WORK for leg in live)  # what comes of that is seen once they have
        to_come = [leg for leg in legs if leg in live or leg.id in waiting]
        if not stops and not any(_has_a_state(connection, job, leg.site) for leg in to_come):
            end_job(core, connection, job_id, JobState.FAILED, _over_without(job, live, len(done)))
        return
    stored = all_sites(connection)
    for leg in legs:
        if leg.id in waiting and awaited(core, waiting[leg.id], stored.get(leg.site)):
            return
    if len(done) == len(legs) or (len(legs) > 1 and not whole(job) and len(done) >= job.spec.min_sites):
        if job.state is JobState.PENDING:
            job = jobs.update_job(connection, job, now_ms=core.clock.now_ms(), state=JobState.STARTING)
        if job.state is JobState.STARTING:
            jobs.update_job(connection, job, now_ms=core.clock.now_ms(), state=JobState.RUNNING)
        end_job(core, connection, job_id, JobState.SUCCEEDED, None)
    elif job.state is JobState.PREEMPTING:
        wait_again(connection, job_id, job.reason, core.clock.now_ms())
    elif not any(leg.id in waiting for leg in legs):
        ended = ", ".join(f"{leg.site} {leg.state.value}" for leg in legs)
        message = f"no leg goes on ({ended}), and {job.spec.min_sites} must succeed"
        release(core, connection, job_id, Reason(code=ReasonCode.HELD, message=message), core.clock.now_ms())


def whole(job: Job) -> bool:
    """Whether a job succeeds at all its sites or not at all: each input is cleaned, or made tokens, at its home alone.

    Such a job fails where it gives up one of its sites; `min_sites` only says how many legs must remain for the others
    to go on while one is tried again.
    """
    return job.spec.kind in (JobKind.CLEAN, JobKind.TOKENIZE)


def too_late(connection: Connection, job: Job, site: str) -> bool:
    """Whether a training's last round is closed, and a site never held a state: who is through sends it none."""
    last = rounds.find(connection, job.id, outer_number(job, "rounds"))
    closed = last is not None and last.phase is RoundPhase.CLOSED
    return closed and site not in said_of_states(connection, job.id)


def _has_a_state(connection: Connection, job: Job, site: str) -> bool:
    """Whether a site whose leg has yet to end holds a state of a training that is over, or was sent one to end with."""
    if not too_late(connection, job, site):
        return True
    sent = artifacts_for(connection, job.id, site, round=outer_number(job, "rounds"))
    return any(artifact.artifact_class is ArtifactClass.OUTER_STATE for artifact in sent)


def _over_without(job: Job, live: list[Leg], done: int) -> Reason:
    """Return why a training fails whose last round is closed and whose legs cannot all come to an end."""
    late = ", ".join(leg.site for leg in live)
    fewer = f"; min_sites={done} asks for no more sites" if done else ""
    return Reason(
        code=ReasonCode.GANG_PARTNER,
        message=f"the training is over at {done} of the {job.spec.min_sites} sites that must succeed; {late} holds no "
        "state, and nobody is left to send it one",
        numbers={"succeeded": done, "min_sites": job.spec.min_sites},
        site=live[0].site,
        fix=f"start.job={job.id} goes on from the model that the others keep{fewer}",
    )


def outer_number(job: Job, name: str) -> int:
    """Return a number of the outer loop's parameters; 0 for a job that has none."""
    outer = job.spec.params.get("outer")
    return int(outer.get(name) or 0) if isinstance(outer, dict) else 0


def begins(connection: Connection, job: Job, site: str) -> bool:
    """Whether a training's other legs wait for a site: the first of an attempt draws what training begins with.

    Not where round 1 takes no commits any more: who holds no state then joins.
    """
    start, attempt = job.spec.params.get("start"), job.attempt
    resumes = isinstance(start, dict) and bool(start.get("resume"))
    sites = [leg.site for leg in attempt.legs] if attempt else []
    begun = rounds.find(connection, job.id, 1)
    if job.spec.kind is not JobKind.PRETRAIN or resumes or site != min(sites, default=""):
        return False
    if begun is not None and begun.phase is not RoundPhase.OPEN:
        return False
    return not beginning(sites, agreements(connection, job.id, "outer/0"), resumed=False)


def awaited(core: Core, row: Row[Any], site: SiteStatus | None) -> bool:
    """Whether the next epoch of a waiting leg is to come soon: its job's end and its rounds wait for it."""
    soon_ms = core.clock.now_ms() + core.settings.retry.max_backoff_ms
    return row.retry_at_ms <= soon_ms and not core.gone(row.site, site)


def others(connection: Connection, leg: Leg) -> list[Leg]:
    """Legs of the same attempt that are at work or through."""
    rows = connection.execute(select(t.legs).where((t.legs.c.attempt == leg.attempt) & (t.legs.c.id != leg.id)))
    return [other for other in map(jobs.leg_of, rows) if other.state in (*AT_WORK, LegState.SUCCEEDED)]


def stop_legs(connection: Connection, job_id: str, why: str, now_ms: int) -> None:
    """Tell all legs of a job that hold something to stop."""
    rows = connection.execute(
        select(t.legs).where((t.legs.c.job == job_id) & t.legs.c.state.in_([s.value for s in jobs.LIVE]))
    )
    for row in list(rows):
        leg = jobs.leg_of(row)
        if leg.state is not LegState.STOPPING:
            jobs.set_leg(connection, leg, LegState.STOPPING, now_ms, reason=why)
