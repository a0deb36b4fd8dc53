"""The scheduler's snapshot, read from the state in one consistent view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from consortium.domain.codec import from_json
from consortium.domain.data import Dataset
from consortium.domain.decision import PolicyDecision, Reason, ReasonCode
from consortium.domain.ids import partner_of
from consortium.domain.job import JobSpec, JobState, Priority
from consortium.domain.partner import SiteState
from consortium.policy import requests_for_job
from consortium.scheduler import HeldLeg, PendingJob, SiteView, Snapshot
from consortium.server.core import Core
from consortium.server.federation import Federation
from consortium.state import jobs
from consortium.state import tables as t
from consortium.state.sites import SiteStatus, all_sites


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A snapshot with the job versions it was read at."""

    snapshot: Snapshot
    versions: dict[str, int]


def take(core: Core, connection: Connection) -> View:
    """Read the snapshot."""
    federation = core.federation
    stored = all_sites(connection)
    sites = []
    for site in federation.sites.values():
        status = stored.get(site.id)
        state = core.site_state(site.id, status)
        if state is SiteState.ACTIVE and (status is None or not status.healthy):
            state = SiteState.LOST
        sites.append(SiteView(site=site, state=state))
    waiting, versions = [], {}
    busy = _busy_jobs(connection)
    query = select(t.jobs).where(t.jobs.c.state == JobState.PENDING.value).order_by(t.jobs.c.created_ms, t.jobs.c.id)
    for row in connection.execute(query):
        if row.id in busy:
            continue
        spec = from_json(JobSpec, row.spec, where=row.id)
        decisions = decide(federation, spec, inputs_of(connection, spec), tuple(row.sites))
        waiting.append(pending_job(row.id, spec, tuple(row.sites), decisions, row.created_ms, stored, row))
        versions[row.id] = row.version
    snapshot = Snapshot(
        now_ms=core.clock.now_ms(),
        sites=tuple(sites),
        accounts=tuple(federation.accounts.values()),
        held=held_legs(connection),
        pending=tuple(waiting),
    )
    return View(snapshot=snapshot, versions=versions)


def decide(
    federation: Federation, spec: JobSpec, inputs: tuple[Dataset, ...], sites: tuple[str, ...]
) -> dict[str, PolicyDecision]:
    """Return what the partners' policies say of a job, by host site (all sites where it names none)."""
    groups = [tuple(sites)] if sites else [(name,) for name in federation.sites]
    found: dict[str, PolicyDecision] = {}
    for group in groups:
        hosts = {name: federation.sites[name] for name in group if name in federation.sites}
        for site, requests in requests_for_job(spec, inputs, hosts).items():
            found[site] = federation.policies.decide_all(requests)
    return dict(sorted(found.items()))


def policy_reason(site: str, decision: PolicyDecision) -> Reason:
    """Return the reason that a denial gives."""
    if not decision.denials:
        return Reason(code=ReasonCode.POLICY, message="no policy allows it", site=site)
    first = decision.denials[0]
    return Reason(
        code=ReasonCode.POLICY,
        message=f"{first.clause} ({first.file}:{first.line}): {first.message}",
        numbers={"clause": first.clause, "file": first.file, "line": first.line, "denials": len(decision.denials)},
        site=site,
        fix=first.would_pass,
    )


def pending_job(
    job_id: str,
    spec: JobSpec,
    sites: tuple[str, ...],
    decisions: dict[str, PolicyDecision],
    created_ms: int,
    stored: Mapping[str, SiteStatus],
    row: Row[Any] | None = None,
) -> PendingJob:
    """Return a job as the scheduler sees it; `stored` is what each site last said of itself."""
    held = row is not None and row.not_before_ms > 0
    return PendingJob(
        id=job_id,
        account=spec.account,
        priority=spec.priority,
        created_ms=created_ms,
        gpus=spec.resources.gpus,
        gpus_per_worker=spec.resources.gpus_per_worker,
        flavors=spec.resources.flavors,
        walltime_s=spec.resources.walltime_s,
        sites=sites,
        min_sites=spec.min_sites,
        not_before_ms=row.not_before_ms if row is not None and held else 0,
        not_before_reason=_why_held(row) if row is not None and held else "",
        denied={site: policy_reason(site, d) for site, d in decisions.items() if not d.allowed},
        unfit=_other_code(spec, stored),
    )


def held_legs(connection: Connection) -> tuple[HeldLeg, ...]:
    """Return the legs that hold capacity and quota: those at work, and those whose next epoch is due."""
    live = [state.value for state in jobs.LIVE]
    query = (
        select(t.legs, t.jobs.c.account, t.jobs.c.spec)
        .join(t.jobs, t.jobs.c.id == t.legs.c.job)
        .where(t.legs.c.state.in_(live) | (t.legs.c.retry_at_ms > 0))
        .order_by(t.legs.c.id)
    )
    return tuple(
        HeldLeg(
            leg=row.id,
            job=row.job,
            account=row.account,
            partner=partner_of(row.account),
            site=row.site,
            flavor=row.flavor,
            nodes=dict(row.nodes),
            priority=Priority(row.spec["priority"]),
            started_ms=row.created_ms,
            walltime_s=int(row.spec["resources"]["walltime_s"]),
        )
        for row in connection.execute(query)
    )


def _busy_jobs(connection: Connection) -> set[str]:
    """Jobs with an open attempt, or with legs of an earlier one that still hold something: not to be placed anew."""
    live = [state.value for state in jobs.LIVE]
    busy = set(connection.execute(select(t.attempts.c.job).where(t.attempts.c.ended_ms == 0)).scalars())
    return busy | set(connection.execute(select(t.legs.c.job).where(t.legs.c.state.in_(live))).scalars())


def inputs_of(connection: Connection, spec: JobSpec) -> tuple[Dataset, ...]:
    """Return a job's inputs, by id."""
    docs = connection.execute(
        select(t.datasets.c.doc).where(t.datasets.c.id.in_(spec.inputs)).order_by(t.datasets.c.id)
    )
    return tuple(from_json(Dataset, doc, where="dataset") for doc in docs.scalars())


def _other_code(spec: JobSpec, stored: Mapping[str, SiteStatus]) -> dict[str, Reason]:
    """Sites that installed other code than the submitter signed for; they would refuse the offer."""
    return {
        site: Reason(
            code=ReasonCode.REFUSED,
            message=f"{site} has code {status.code_digest[:19]}…, the job was signed for {spec.code_digest[:19]}…",
            site=site,
            fix="install the same version here and there, and submit again",
        )
        for site, status in sorted(stored.items())
        if status.code_digest and status.code_digest != spec.code_digest
    }


def _why_held(row: Row[Any]) -> str:
    return str(row.reason["message"]) if row.reason else "a backoff after a fault"
