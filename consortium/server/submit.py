"""Submissions: who may submit what, what its inputs imply, what the partners' policies say, whether it can ever fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select

from consortium.config import validate_params
from consortium.domain.codec import to_json
from consortium.domain.data import CONSENT_FIX, Dataset
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.ids import is_id
from consortium.domain.job import Job, JobKind, JobSpec, JobState, SignedSpec
from consortium.domain.partner import Role
from consortium.domain.records import RecordType
from consortium.errors import ConflictError, ForbiddenError, UsageError
from consortium.keys.canonical import digest_json
from consortium.keys.roster import may_submit, verify_spec
from consortium.keys.tokens import Claims
from consortium.scheduler import never_fits
from consortium.server import ancestry, snapshots, tasks
from consortium.server.core import Core
from consortium.server.inputs import check_clean, check_kind, check_output_names, check_workers
from consortium.server.snapshots import View
from consortium.state import data, jobs, waits
from consortium.state import tables as t
from consortium.state.sites import all_sites

MAX_SPEC_BYTES = 256 * 1024


def submit(core: Core, claims: Claims, signed: SignedSpec, idempotency_key: str) -> dict[str, Any]:
    """Store a job, pending or denied, and return it as JSON.

    The same idempotency key with the same spec (nonce and time of signing apart, and a deadline that counts from it)
    returns the job it made before. Raises ConflictError for a spec that was submitted before, and what `judge` raises.
    """
    made = _submit(core, claims, (signed,), idempotency_key)
    return made[0]


def submit_array(
    core: Core, claims: Claims, members: tuple[SignedSpec, ...], idempotency_key: str
) -> list[dict[str, Any]]:
    """Store the members of a job array, all or none, and return them as JSON.

    Raises UsageError where they are not all the members of one array, and what `submit` raises.
    """
    arrays = [signed.spec.array for signed in members]
    first = arrays[0] if arrays else None
    given = [array.index for array in arrays if array is not None and first is not None and array.id == first.id]
    alike = {(array.size, array.limit) for array in arrays if array is not None}
    if first is None or given != list(range(first.size)) or len(members) != first.size or len(alike) != 1:
        raise UsageError("not all members of one array, in order of their index", where="members")
    return _submit(core, claims, members, idempotency_key)


def _submit(core: Core, claims: Claims, signed: tuple[SignedSpec, ...], idempotency_key: str) -> list[dict[str, Any]]:
    spec_digest = digest_json([_stable(item.spec) for item in signed] if len(signed) > 1 else _stable(signed[0].spec))
    with core.db.read() as connection:
        known = _known(connection, claims.subject, idempotency_key, spec_digest, signed)
        if known is not None:
            return [render(connection, job) for job in known]
        view = snapshots.standing(core, connection)
        made = [judge(core, connection, claims, item, view) for item in signed]
    with core.db.write() as connection:
        known = _known(connection, claims.subject, idempotency_key, spec_digest, signed)
        if known is not None:
            return [render(connection, job) for job in known]
        for job in made:
            _store(core, connection, job)
        if idempotency_key:
            array = made[0].spec.array if len(made) > 1 else None
            connection.execute(
                t.idempotency.insert().values(
                    subject=claims.subject,
                    key=idempotency_key,
                    spec_digest=spec_digest,
                    job=made[0].id if array is None else array.id,
                )
            )
    core.bell.set()
    answer: list[dict[str, Any]] = to_json(made)
    return answer


def _store(core: Core, connection: Connection, job: Job) -> None:
    array = job.spec.array
    if array is not None:
        theirs = (t.jobs.c.array == array.id) & (
            (t.jobs.c.submitter != job.spec.submitter) | (t.jobs.c.array_index == array.index)
        )
        if connection.execute(select(t.jobs.c.id).where(theirs)).first() is not None:
            raise ConflictError(f"the array {array.id} has a member {array.index} already, or is somebody else's")
    jobs.insert_job(connection, job)
    body = {"job": job.id, "spec": job.spec, "signature": job.signature, "sites": job.target_sites}
    core.record(connection, RecordType.JOB, to_json(body))
    if job.state is JobState.DENIED:
        decision = {"job": job.id, "state": "denied", "account": job.spec.account,
                    "reason": job.reason, "denials": job.denials}  # fmt: skip
        core.record(connection, RecordType.DECISION, to_json(decision))
        tasks.job_ended(connection, job)


def render(connection: Connection, job_id: str) -> dict[str, Any]:
    """Return a job as JSON."""
    shown: dict[str, Any] = to_json(jobs.find_job(connection, job_id))
    return shown


def judge(
    core: Core,
    connection: Connection,
    claims: Claims,
    signed: SignedSpec,
    view: View,
    gone: frozenset[str] = frozenset(),
) -> Job:
    """Return what a submission comes to now: a job that waits, or one that is denied.

    `gone`: sites that an amended spec still names and that take no part in its job any more.
    Raises ForbiddenError, VerificationError, UsageError, ConflictError or NotFoundError where it is no valid
    submission at all.
    """
    check_spec(core, claims, signed.spec)
    verify_spec(signed, core.federation.rosters)
    if not signed.spec.nonce:
        raise UsageError("the spec has no nonce", fix="sign it with a fresh random nonce")
    return judge_checked(core, connection, signed, view, gone)


def judge_checked(
    core: Core, connection: Connection, signed: SignedSpec, view: View, gone: frozenset[str] = frozenset()
) -> Job:
    """Return what a spec that was checked comes to now."""
    spec = signed.spec
    inputs = _inputs(connection, spec)
    check_kind(connection, spec, inputs)
    sites = tuple(site for site in _target_sites(core, spec, inputs) if site not in gone)
    inputs = tuple(item for item in inputs if item.site not in gone)
    check_workers(spec, tuple(core.federation.site(site) for site in sites))
    ancestry.check_start(connection, spec, sites)
    if spec.kind is JobKind.CLEAN:
        check_clean(spec, inputs)
    check_output_names(connection, spec, inputs)
    now_ms = core.clock.now_ms()
    _check_order(connection, spec, now_ms)
    job = Job(
        id=core.clock.new_id("job"),
        spec=spec,
        signature=signed.signature,
        state=JobState.PENDING,
        created_ms=now_ms,
        updated_ms=now_ms,
        version=1,
        target_sites=sites,
    )
    over = consent_over(inputs, now_ms)
    if over is not None:
        return _denied(job, over)
    behind = ancestry.ancestry(connection, spec)
    decisions = snapshots.decide(core.federation, spec, inputs, sites, behind)
    refused = {site: decision for site, decision in decisions.items() if not decision.allowed}
    if refused and (sites or len(refused) == len(decisions)):
        site, decision = next(iter(refused.items()))
        reason = snapshots.policy_reason(site, decision)
        denials = tuple(dict.fromkeys(denial for d in refused.values() for denial in d.denials))
        return replace(_denied(job, reason), denials=denials)
    abroad = [item for item in inputs if sites and item.site not in sites]
    if abroad:
        reason = Reason(
            code=ReasonCode.TERRITORY,
            message=f"{abroad[0].name} lives at {abroad[0].site}, where the job does not run",
            site=abroad[0].site,
            fix=f"let the job go to its data: leave `sites` out, or name {abroad[0].site}",
        )
        return _denied(job, reason)
    if bare := sorted(set(sites) - {item.site for item in inputs}):
        raise UsageError(
            f"no input lives at {bare[0]}, where the job is to run: its leg there would have nothing to read",
            where="sites",
            fix=f"leave {bare[0]} out of sites, or name a dataset of its own in inputs",
        )
    waiting = snapshots.pending_job(job.id, spec, sites, decisions, now_ms, all_sites(connection), view.run_times)
    never = never_fits(view.snapshot, waiting)
    return job if never is None else _denied(job, never)


def consent_over(inputs: tuple[Dataset, ...], now_ms: int) -> Reason | None:
    """Return that the consent to use one of the inputs has ended, or None."""
    for item in inputs:
        said = item.consent_over(now_ms)
        if said:
            numbers: dict[str, int | str] = {"dataset": item.id, "consent_until": item.about.consent_until}
            return Reason(code=ReasonCode.CONSENT, message=said, numbers=numbers, site=item.site, fix=CONSENT_FIX)
    return None


def _stable(spec: JobSpec) -> dict[str, Any]:
    """What makes two submissions the same: everything but nonce, time of signing, the array's id; not the deadline."""
    said: dict[str, Any] = to_json(replace(spec, nonce="", submitted_ms=0, deadline_ms=0))
    return said if spec.array is None else said | {"array": said["array"] | {"id": ""}}


def _same_deadline(one: JobSpec, other: JobSpec) -> bool:
    """Whether two specs name one deadline: a moment, or, to the second, a span from when each was signed."""
    if not one.deadline_ms or not other.deadline_ms or one.deadline_ms == other.deadline_ms:
        return one.deadline_ms == other.deadline_ms
    spans_ms = [spec.deadline_ms - spec.submitted_ms for spec in (one, other)]
    return abs(spans_ms[0] - spans_ms[1]) < 1_000


def _known(
    connection: Connection, subject: str, key: str, spec_digest: str, signed: tuple[SignedSpec, ...]
) -> list[str] | None:
    """Return the jobs that this idempotency key made before. Raises ConflictError where it was for another spec."""
    if not key:
        return None
    same = (t.idempotency.c.subject == subject) & (t.idempotency.c.key == key)
    row = connection.execute(select(t.idempotency).where(same)).one_or_none()
    if row is None:
        return None
    made = waits.array_members(connection, row.job) if is_id(row.job, "arr") else [str(row.job)]
    specs = (jobs.find_job(connection, job).spec for job in made)
    if row.spec_digest != spec_digest or not all(
        _same_deadline(item.spec, spec) for item, spec in zip(signed, specs, strict=False)
    ):
        raise ConflictError(
            f"the idempotency key {key!r} was used for another submission", where=row.job, fix="use a new key"
        )
    return made


def check_spec(core: Core, claims: Claims, spec: JobSpec) -> None:
    """Check what needs neither state nor signature: who submits, the account, the params.

    Raises ForbiddenError, VerificationError, UsageError or NotFoundError.
    """
    if not {Role.ENGINEER, Role.ADMIN} & set(claims.roles):
        raise ForbiddenError(f"{claims.subject} is neither engineer nor admin and may not submit jobs")
    if spec.submitter != claims.subject:
        raise ForbiddenError(f"{claims.subject} cannot submit in the name of {spec.submitter}")
    if len(repr(spec)) > MAX_SPEC_BYTES:
        raise UsageError(f"the job's spec is larger than {MAX_SPEC_BYTES // 1024} kB")
    core.federation.account(spec.account)
    may_submit(spec, core.federation.rosters)
    validate_params(spec.kind, spec.params)
    _check_flavors(core, spec)


def _check_order(connection: Connection, spec: JobSpec, now_ms: int) -> None:
    """Check what the job comes after, and that it can be done by its deadline."""
    for name in spec.after:
        other = jobs.find_job(connection, name)
        if other.state.final and other.state is not JobState.SUCCEEDED:
            raise ConflictError(
                f"{name} ({other.spec.name}) is {other.state.value}: a job after it would never start",
                where="after",
                fix="leave it out, or submit it again first",
            )
    if spec.deadline_ms and now_ms > jobs.start_by_ms(spec):
        left_s = (spec.deadline_ms - now_ms) // 1000
        ahead = f"{left_s} s away" if left_s > 0 else "over"
        raise UsageError(
            f"the deadline is {ahead}, and the walltime is {spec.resources.walltime_s} s: it could not end by then",
            where="deadline",
            fix=f"walltime_s={left_s} or less, or a later deadline" if left_s > 0 else "name a later deadline",
        )


def _denied(job: Job, reason: Reason) -> Job:
    return replace(job, state=JobState.DENIED, reason=reason)


def _inputs(connection: Connection, spec: JobSpec) -> tuple[Dataset, ...]:
    found = tuple(data.find_dataset(connection, name) for name in spec.inputs)
    for name, dataset in zip(spec.inputs, found, strict=True):
        if dataset.id != name:
            raise UsageError(f"inputs are dataset ids, and {name!r} is a name", fix=f"use {dataset.id}")
    if len({dataset.id for dataset in found}) != len(found):
        raise UsageError("an input is named twice")
    return found


def _target_sites(core: Core, spec: JobSpec, inputs: tuple[Dataset, ...]) -> tuple[str, ...]:
    for site in spec.sites:
        core.federation.site(site)
    sites = tuple(sorted(set(spec.sites) or {item.site for item in inputs}))
    if sites and spec.min_sites > len(sites):
        raise UsageError(
            f"min_sites is {spec.min_sites}, but the job runs at {len(sites)}: {', '.join(sites)}",
            fix=f"min_sites={len(sites)} or less",
        )
    if not sites and spec.min_sites > 1:
        raise UsageError("min_sites needs sites or inputs: without them a job runs at one site")
    return sites


def _check_flavors(core: Core, spec: JobSpec) -> None:
    known = sorted({site.flavor.id for site in core.federation.sites.values()})
    for flavor in spec.resources.flavors:
        if flavor not in known:
            raise UsageError(f"no site has the flavor {flavor!r}", fix=f"flavors: {', '.join(known)}")
