"""Sites added to a training under way, over a spec that its submitter amended and signed anew.

A request judges the amended spec as a submission, by the rules and the policies as they are now, and keeps it. The loop
lets it take effect between two rounds, once a gang with the new sites could be placed: the legs keep what they have and
stop, and the job is placed again with one leg more.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from sqlalchemy import Connection

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Job, JobKind, JobSpec, JobState, SignedSpec, extends
from consortium.domain.records import RecordType
from consortium.domain.training import RoundPhase
from consortium.errors import ConflictError, PolicyDeniedError, UsageError, VerificationError
from consortium.keys.roster import verify_ruling
from consortium.keys.tokens import Claims
from consortium.scheduler import schedule
from consortium.server import legs, snapshots, submit
from consortium.server.ancestry import ancestry
from consortium.server.core import Core
from consortium.server.rulings import taking_part
from consortium.server.snapshots import View
from consortium.state import additions, jobs, rounds
from consortium.state.additions import Addition
from consortium.state.evict import evict
from consortium.state.sites import all_sites

log = logging.getLogger(__name__)


def take_addition(core: Core, claims: Claims, job_id: str, signed: SignedSpec) -> dict[str, list[str]]:
    """Keep an amended spec until the loop lets it take effect; return the sites and inputs that it adds.

    Raises PolicyDeniedError where a policy or another rule denies it now, ConflictError where the training takes no
    sites, or has a ruling that they could not verify, UsageError where the spec changes anything else, and what a
    submission raises.
    """
    with core.db.read() as connection:
        job = jobs.find_job(connection, job_id)
        gone = _gone(connection, job)
        judged = submit.judge(core, connection, claims, signed, snapshots.standing(core, connection), gone)
        added = _check(connection, job, signed.spec, judged, gone)
        if unheard := _unvouched(core, connection, job):
            raise unheard
    if judged.state is JobState.DENIED and judged.reason is not None:
        raise PolicyDeniedError(
            judged.reason.message, where=judged.reason.site or job.id, fix=judged.reason.fix or None
        )
    with core.db.write() as connection:
        if jobs.find_job(connection, job.id).spec != job.spec:
            raise ConflictError("the job changed meanwhile", where=job.id, fix="read it again and repeat")
        additions.put(connection, job, signed, core.clock.now_ms())
    core.bell.set()
    return added


def _check(connection: Connection, job: Job, spec: JobSpec, judged: Job, gone: frozenset[str]) -> dict[str, list[str]]:
    if not extends(spec, job.spec):
        raise UsageError(
            "an amended spec names more sites and inputs, and says all else as before", where=job.id, fix="submit anew"
        )
    last = legs.outer_number(job, "rounds")
    if job.spec.kind is not JobKind.PRETRAIN or not last:
        raise UsageError("only a training with rounds takes further sites", where=job.id)
    if job.state.final:
        raise ConflictError(f"the job is {job.state.value}", where=job.id)
    sites = sorted(set(judged.target_sites) - taking_part(job))
    inputs = [item for item in snapshots.inputs_of(connection, spec) if item.id not in job.spec.inputs]
    if back := sorted({item.site for item in inputs} & gone | set(spec.sites) & gone - set(job.spec.sites)):
        raise ConflictError(f"{', '.join(back)} was withdrawn from the job and cannot come back", where=job.id)
    if stay := [item.name for item in inputs if item.site not in sites]:
        raise UsageError(
            f"{stay[0]} is not at a site that is added: other sites' inputs stay as they are", where=job.id
        )
    bare = [site for site in sites if site not in {item.site for item in inputs}]
    if not sites or bare:
        what = f"{', '.join(bare)} has no input" if bare else "no site is added"
        raise UsageError(what, where=job.id, fix="name datasets of tokens at the new site with --input")
    first = rounds.find(connection, job.id, 1)
    if first is None or first.phase is not RoundPhase.CLOSED:
        raise ConflictError("round 1 is not closed: there is nothing to join yet", where=job.id, fix="ask again later")
    if rounds.first_open(connection, job.id) > last:
        raise ConflictError("the job is in its last round", where=job.id)
    return {"sites": sites, "inputs": [item.id for item in inputs]}


def _unvouched(core: Core, connection: Connection, job: Job) -> ConflictError | None:
    """Return what keeps sites from joining: a ruling that no roster bears out any more.

    Whose gateway verified it goes on; that of a site that is added would read no round from then on, and its leg would
    fail, and with it the training.
    """
    for ruling in rounds.rulings(connection, job.id, legs.outer_number(job, "rounds")):
        try:
            verify_ruling(ruling, core.federation.rosters, job.spec.account)
        except VerificationError as fault:
            return ConflictError(
                f"{ruling.by} ruled on {ruling.site} from round {ruling.round} on, and no site that is added could "
                f"verify that any more: {fault.what}",
                where=job.id,
                fix=f"have the roster vouch for {ruling.by} as then; else cancel, and begin anew by start.job={job.id}",
            )
    return None


def _gone(connection: Connection, job: Job) -> frozenset[str]:
    """Return the sites that were withdrawn from a job, or will be."""
    return frozenset(ruling.site for ruling in rounds.withdrawals(connection) if ruling.job == job.id)


def add_due(core: Core) -> None:
    """Let amended specs take effect whose jobs are between two rounds and could be placed with the new sites."""
    with core.db.read() as connection:
        waiting = [one for one in additions.waiting(connection) if _boundary(connection, one.job)]
        view = snapshots.standing(core, connection) if waiting else None
        due = [one for one in waiting if view is not None and _fits(core, connection, one, view)]
    for one in due:
        with core.db.write() as connection:
            vouched = _unvouched(core, connection, jobs.find_job(connection, one.job)) is None
            if vouched and _boundary(connection, one.job):
                _add(core, connection, one)


def _boundary(connection: Connection, job_id: str) -> bool:
    """Whether the newest round is closed and another is to come, to which nobody committed yet, and the job's legs can
    be told to stop."""
    job, known = jobs.find_job(connection, job_id), rounds.numbers(connection, job_id)
    newest = rounds.find(connection, job_id, known[-1]) if known else None
    between = newest is not None and newest.phase is RoundPhase.CLOSED
    goes_on = bool(known) and known[-1] < legs.outer_number(job, "rounds")
    return between and goes_on and job.state in (JobState.PENDING, JobState.RUNNING)


def _sites(connection: Connection, job: Job, spec: JobSpec) -> tuple[str, ...]:
    """Return where a job runs by its amended spec: where it does now, and at the sites added."""
    named = set(spec.sites) - set(job.spec.sites)
    homes = {item.site for item in snapshots.inputs_of(connection, spec) if item.id not in job.spec.inputs}
    return tuple(sorted({*job.target_sites, *named, *homes}))


def _fits(core: Core, connection: Connection, addition: Addition, view: View) -> bool:
    """Whether the gang with the new sites would be placed now, were its legs' GPUs free."""
    job, spec = jobs.find_job(connection, addition.job), addition.signed.spec
    sites, gone = _sites(connection, job, spec), _gone(connection, job)
    inputs = tuple(item for item in snapshots.inputs_of(connection, spec) if item.site not in gone)
    decisions = snapshots.decide(core.federation, spec, inputs, sites, ancestry(connection, spec))
    stored = all_sites(connection)
    pending = snapshots.pending_job(job.id, spec, sites, decisions, job.created_ms, stored, view.run_times)
    held = tuple(leg for leg in view.snapshot.held if leg.job != job.id)
    plan = schedule(replace(view.snapshot, held=held, pending=(replace(pending, nominated=True),)))
    return any(placement.job == job.id for placement in plan.placements)


def _add(core: Core, connection: Connection, addition: Addition) -> None:
    job, now_ms = jobs.find_job(connection, addition.job), core.clock.now_ms()
    number = rounds.numbers(connection, job.id)[-1] + 1
    spec, sites = addition.signed.spec, _sites(connection, job, addition.signed.spec)
    added = sorted(set(sites) - set(job.target_sites))
    additions.take_effect(connection, job, addition, sites, number, now_ms)
    message = f"{', '.join(added)} joins from round {number} on: it is placed again, and goes on from what sites keep"
    reason = Reason(code=ReasonCode.PREEMPTED, message=message, numbers={"rule": "addition", "round": number})
    evict(connection, job.id, reason, now_ms, for_job=job.id)
    body = {
        "kind": "addition",
        "job": job.id,
        "round": number,
        "sites": added,
        "inputs": [name for name in spec.inputs if name not in job.spec.inputs],
        "by": spec.submitter,
        "spec": spec,
        "signature": addition.signed.signature,
    }
    core.record(connection, RecordType.APPROVAL, body)
    log.info("%s: %s", job.id, message)
