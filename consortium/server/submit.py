"""Submissions: who may submit what, what its inputs imply, what the partners' policies say, whether it can ever fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, select

from consortium.config import validate_params
from consortium.domain.codec import to_json
from consortium.domain.data import Dataset
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Job, JobKind, JobSpec, JobState, SignedSpec
from consortium.domain.partner import Role
from consortium.domain.records import RecordType
from consortium.errors import ConflictError, ForbiddenError, UsageError
from consortium.keys.canonical import digest_json
from consortium.keys.roster import verify_spec
from consortium.keys.tokens import Claims
from consortium.scheduler import explain, never_fits
from consortium.server import snapshots, tasks
from consortium.server.core import Core
from consortium.state import data, jobs
from consortium.state import tables as t
from consortium.state.sites import all_sites

MAX_SPEC_BYTES = 256 * 1024


def submit(core: Core, claims: Claims, signed: SignedSpec, idempotency_key: str) -> dict[str, Any]:
    """Store a job, pending or denied, and return it as JSON.

    The same idempotency key with the same spec (nonce and time of signing apart) returns the job it made before. Raises
    ConflictError for a spec that was submitted before, and the errors of `judge`.
    """
    spec_digest = digest_json(replace(signed.spec, nonce="", submitted_ms=0))
    with core.db.read() as connection:
        known = _known(connection, claims.subject, idempotency_key, spec_digest)
        if known is not None:
            return render(connection, known)
        job = judge(core, connection, claims, signed)
    with core.db.write() as connection:
        known = _known(connection, claims.subject, idempotency_key, spec_digest)
        if known is not None:
            return render(connection, known)
        jobs.insert_job(connection, job)
        if idempotency_key:
            connection.execute(
                t.idempotency.insert().values(
                    subject=claims.subject, key=idempotency_key, spec_digest=spec_digest, job=job.id
                )
            )
        body = {"job": job.id, "spec": signed.spec, "signature": signed.signature, "sites": job.target_sites}
        core.record(connection, RecordType.JOB, to_json(body))
        if job.state is JobState.DENIED:
            decision = {"job": job.id, "state": "denied", "account": signed.spec.account,
                        "reason": job.reason, "denials": job.denials}  # fmt: skip
            core.record(connection, RecordType.DECISION, to_json(decision))
            tasks.job_ended(connection, job)
        answer = render(connection, job.id)
    core.bell.set()
    return answer


def dry_run(core: Core, claims: Claims, signed: SignedSpec) -> dict[str, Any]:
    """Return what would become of a submission, with its funnel; nothing is stored."""
    with core.db.read() as connection:
        job = judge(core, connection, claims, signed)
        answer: dict[str, Any] = to_json(job) | {"dry_run": True, "funnel": None}
        if job.state is JobState.DENIED and job.denials:
            return answer
        spec = signed.spec
        decisions = snapshots.decide(core.federation, spec, snapshots.inputs_of(connection, spec), job.target_sites)
        view = snapshots.take(core, connection)
        stored = all_sites(connection)
    waiting = snapshots.pending_job(job.id, spec, job.target_sites, decisions, job.created_ms, stored)
    snapshot = replace(view.snapshot, pending=(*view.snapshot.pending, waiting))
    answer["funnel"] = to_json(explain(snapshot, waiting.id))
    return answer


def render(connection: Connection, job_id: str) -> dict[str, Any]:
    """Return a job as JSON."""
    shown: dict[str, Any] = to_json(jobs.find_job(connection, job_id))
    return shown


def judge(core: Core, connection: Connection, claims: Claims, signed: SignedSpec) -> Job:
    """Return what a submission comes to now: a job that waits, or one that is denied.

    Raises ForbiddenError, VerificationError, UsageError or NotFoundError where it is no valid submission at all.
    """
    spec = signed.spec
    _check_signed(core, claims, signed)
    inputs = _inputs(connection, spec)
    _check_kind(connection, spec, inputs)
    sites = _target_sites(core, spec, inputs)
    now_ms = core.clock.now_ms()
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
    decisions = snapshots.decide(core.federation, spec, inputs, sites)
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
    waiting = snapshots.pending_job(job.id, spec, sites, decisions, now_ms, all_sites(connection))
    never = never_fits(snapshots.take(core, connection).snapshot, waiting)
    return job if never is None else _denied(job, never)


def _known(connection: Connection, subject: str, key: str, spec_digest: str) -> str | None:
    """Return the job that this idempotency key made before. Raises ConflictError where it was for another spec."""
    if not key:
        return None
    same = (t.idempotency.c.subject == subject) & (t.idempotency.c.key == key)
    row = connection.execute(select(t.idempotency).where(same)).one_or_none()
    if row is None:
        return None
    if row.spec_digest != spec_digest:
        raise ConflictError(
            f"the idempotency key {key!r} was used for another submission", where=row.job, fix="use a new key"
        )
    return str(row.job)


def _check_signed(core: Core, claims: Claims, signed: SignedSpec) -> None:
    """Check what needs no state: who submits, the signature, the account, the params."""
    spec = signed.spec
    if not {Role.ENGINEER, Role.ADMIN} & set(claims.roles):
        raise ForbiddenError(f"{claims.subject} is neither engineer nor admin and may not submit jobs")
    if spec.submitter != claims.subject:
        raise ForbiddenError(f"{claims.subject} cannot submit in the name of {spec.submitter}")
    if len(repr(spec)) > MAX_SPEC_BYTES:
        raise UsageError(f"the job's spec is larger than {MAX_SPEC_BYTES // 1024} kB")
    core.federation.account(spec.account)
    verify_spec(signed, core.federation.rosters)
    if not spec.nonce:
        raise UsageError("the spec has no nonce", fix="sign it with a fresh random nonce")
    validate_params(spec.kind, spec.params)
    _check_flavors(core, spec)


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


def _check_kind(connection: Connection, spec: JobSpec, inputs: tuple[Dataset, ...]) -> None:
    if not inputs:
        raise UsageError(f"a {spec.kind.value} job needs inputs", fix="name datasets: consortium data ls")
    if spec.kind is JobKind.PRETRAIN:
        held_out = [item.name for item in inputs if item.held_out]
        if held_out:
            raise UsageError(f"{held_out[0]} is held out: no training job may read it")
    if spec.kind is not JobKind.EVALUATE:
        return
    if not spec.model:
        raise UsageError("an evaluate job needs model: the id of a pretrain job")
    model = jobs.find_job(connection, spec.model)
    if model.spec.kind is not JobKind.PRETRAIN:
        raise UsageError(f"{spec.model} is a {model.spec.kind.value} job, not a pretrain job", where="model")
    if model.state is not JobState.SUCCEEDED:
        raise ConflictError(f"{spec.model} is {model.state.value}: it has no model yet", where="model")
