"""The scheduler's snapshot, read from the state in one consistent view."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, select

from consortium.accounting.budgets import Standing
from consortium.domain.codec import from_json
from consortium.domain.data import Dataset
from consortium.domain.decision import PolicyDecision, Reason, ReasonCode
from consortium.domain.ids import partner_of
from consortium.domain.job import JobKind, JobSpec, JobState, LegState, Priority, Resources
from consortium.domain.partner import SiteState
from consortium.policy import requests_for_job
from consortium.scheduler import HeldLeg, PendingJob, RunTimes, SiteView, Snapshot, expected_s
from consortium.server import nodes, waits
from consortium.server.ancestry import Ancestry, ancestry, judge_model
from consortium.server.core import Core
from consortium.server.federation import Federation
from consortium.state import jobs, shares
from consortium.state import tables as t
from consortium.state.rounds import left_for_good
from consortium.state.sites import SiteStatus, all_sites

RESUMING = tuple(kind.value for kind in (JobKind.CLEAN, JobKind.TOKENIZE, JobKind.PRETRAIN))
"""Kinds of jobs that go on from where their progress last moved: finished shards, checkpoints, outer states."""
_HOLDING = t.legs.c.state.in_([state.value for state in jobs.LIVE]) | (t.legs.c.retry_at_ms > 0)
_CURRENT = (
    (t.epochs.c.leg == t.legs.c.id)
    & (t.epochs.c.incarnation == t.legs.c.incarnation)
    & (t.epochs.c.counter == t.legs.c.counter)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A snapshot with the versions at which the jobs in it were read, those that run among them."""

    snapshot: Snapshot
    versions: dict[str, int]
    budgets: Mapping[str, Standing]
    run_times: RunTimes


def standing(
    core: Core, connection: Connection, federation: Federation | None = None, now_ms: int | None = None
) -> View:
    """Read what is there and held, without the jobs that wait; with other quotas where a `federation` is given."""
    federation, run_times = federation or core.federation, shares.load_run_times(connection)
    now_ms = core.clock.now_ms() if now_ms is None else now_ms
    stored = all_sites(connection)
    snapshot = Snapshot(
        now_ms=now_ms,
        sites=_site_views(core, connection, stored),
        accounts=tuple(federation.accounts.values()),
        held=_expected(held_legs(connection, core.settings.scheduler.stop_s), run_times, now_ms),
        pending=(),
        windows=nodes.all_windows(core, connection, stored),
        history=shares.load_history(connection)[0],
        settings=core.settings.scheduler.settings,
    )
    budgets = waits.budget_standings(connection, federation, snapshot.held, now_ms)
    return View(snapshot=snapshot, versions=held_versions(connection), budgets=budgets, run_times=run_times)


def take(core: Core, connection: Connection, federation: Federation | None = None, now_ms: int | None = None) -> View:
    """Read the snapshot; with other quotas and budgets than those in force where a `federation` is given.

    Snapshots that are to be compared are given one `now_ms`: how long a leg has run is part of what is forecast.
    """
    federation = federation or core.federation
    view = standing(core, connection, federation, now_ms)
    stored, known, done_ms = all_sites(connection), nodes.shunned(core, connection), kept_run_time(connection)
    busy = _busy_jobs(connection)
    query = select(t.jobs).where(t.jobs.c.state == JobState.PENDING.value).order_by(t.jobs.c.created_ms, t.jobs.c.id)
    rows = [row for row in connection.execute(query) if row.id not in busy]
    specs = {row.id: from_json(JobSpec, row.spec, where=row.id) for row in rows}
    kept_out, waiting, left = waits.reasons(connection, specs), [], left_for_good(connection)
    read: dict[tuple[str, ...], tuple[Dataset, ...]] = {}
    for row in rows:
        spec, sites, kept_ms = specs[row.id], tuple(row.sites), done_ms.get(row.id, 0)
        if spec.inputs not in read:
            read[spec.inputs] = inputs_of(connection, spec)
        # What lies at a site that was withdrawn from the job is read nowhere any more.
        inputs = tuple(item for item in read[spec.inputs] if item.site not in left.get(row.id, ()))
        decisions = decide(federation, spec, inputs, sites, ancestry(connection, spec))
        job = pending_job(row.id, spec, sites, decisions, row.created_ms, stored, view.run_times, row, kept_ms)
        avoid = known.avoid(row.id, spec.resources) if row.id in known.faults else ()
        waiting.append(replace(job, avoid=avoid, waits_for=kept_out.get(row.id)))
    pending = waits.within_budget(waiting, view.budgets, federation, view.snapshot.now_ms)
    return replace(
        view,
        snapshot=replace(view.snapshot, pending=pending),
        versions=view.versions | {row.id: row.version for row in rows},
    )


def _site_views(core: Core, connection: Connection, stored: Mapping[str, SiteStatus]) -> tuple[SiteView, ...]:
    known, views = nodes.shunned(core, connection), []
    for site in core.federation.sites.values():
        status = stored.get(site.id)
        state = core.site_state(site.id, status)
        if state is SiteState.ACTIVE and (status is None or not status.healthy):
            state = SiteState.LOST
        why = core.ailment(site.id, status) if state is SiteState.LOST else ""
        cordoned = tuple(sorted(known.cordoned.get(site.id, ())))
        views.append(SiteView(site=site, state=state, cordoned=cordoned, why=why))
    return tuple(views)


def decide(
    federation: Federation,
    spec: JobSpec,
    inputs: tuple[Dataset, ...],
    sites: tuple[str, ...],
    behind: Ancestry,
) -> dict[str, PolicyDecision]:
    """Return what the partners' policies say of a job, by host site (all sites where it names none).

    `behind` is what is behind the model it reads: those partners are asked as well.
    """
    groups = [tuple(sites)] if sites else [(name,) for name in federation.sites]
    found: dict[str, PolicyDecision] = {}
    for group in groups:
        hosts = {name: federation.sites[name] for name in group if name in federation.sites}
        of_model = judge_model(federation, spec, behind, hosts)
        for site, requests in requests_for_job(spec, inputs, hosts).items():
            found[site] = _both(federation.policies.decide_all(requests), of_model)
    return dict(sorted(found.items()))


def _both(one: PolicyDecision, other: PolicyDecision) -> PolicyDecision:
    return PolicyDecision(
        allowed=one.allowed and other.allowed,
        denials=tuple(dict.fromkeys((*one.denials, *other.denials))),
        consulted=tuple(sorted({*one.consulted, *other.consulted})),
    )


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
    run_times: RunTimes,
    row: Row[Any] | None = None,
    done_ms: int = 0,
) -> PendingJob:
    """Return a job as the scheduler sees it.

    `stored` is what each site last said of itself, `done_ms` the run time of earlier attempts that is kept.
    """
    held = row is not None and row.not_before_ms > 0
    return PendingJob(
        id=job_id,
        account=spec.account,
        priority=spec.priority,
        created_ms=created_ms,
        gpus=spec.resources.gpus,
        gpus_per_worker=spec.resources.gpus_per_worker,
        flavors=_fastest_first(spec.resources),
        walltime_s=spec.resources.walltime_s,
        sites=sites,
        min_sites=spec.min_sites,
        done_ms=done_ms,
        expected_s=expected_s(run_times, spec.account, spec.resources.walltime_s, done_ms // 1000),
        checkpoint_every_s=spec.checkpoint_every_s,
        preemptible=spec.preemptible,
        not_before_ms=row.not_before_ms if row is not None and held else 0,
        not_before_reason=_why_held(row) if row is not None and held else "",
        nominated=row is not None and bool(row.nominated),
        denied={site: policy_reason(site, d) for site, d in decisions.items() if not d.allowed},
        unfit=_other_code(spec, stored),
    )


def held_legs(connection: Connection, stop_s: int = 0) -> tuple[HeldLeg, ...]:
    """Return the legs that hold capacity and quota: those at work, and those whose next epoch is due.

    `stop_s`: how long a leg may take to stop after it was told to.
    """
    columns = (t.epochs.c.offered_ms, t.epochs.c.start_ms, t.epochs.c.running_ms, t.epochs.c.kept_ms)
    query = (
        select(t.legs, t.jobs.c.account, t.jobs.c.spec, t.jobs.c.kind, t.jobs.c.sites, *columns)
        .join(t.jobs, t.jobs.c.id == t.legs.c.job)
        .join(t.epochs, _CURRENT)
        .where(_HOLDING)
        .order_by(t.legs.c.id)
    )
    return tuple(_held_leg(row, stop_s) for row in connection.execute(query))


def _held_leg(row: Row[Any], stop_s: int) -> HeldLeg:
    stopping = row.state == LegState.STOPPING.value
    started_ms = row.retry_at_ms or row.running_ms or row.start_ms or row.offered_ms
    walltime_s = int(row.spec["resources"]["walltime_s"])
    if stopping:  # it was told to, and has its time for it
        walltime_s = min(walltime_s, max(1, (row.updated_ms - started_ms) // 1000 + stop_s))
    resumes = row.kind in RESUMING
    return HeldLeg(
        leg=row.id,
        job=row.job,
        account=row.account,
        partner=partner_of(row.account),
        site=row.site,
        flavor=row.flavor,
        nodes=dict(row.nodes),
        priority=Priority(row.spec["priority"]),
        started_ms=started_ms,
        walltime_s=walltime_s,
        checkpoint_ms=row.kept_ms if resumes else 0,
        checkpoint_every_s=int(row.spec.get("checkpoint_every_s") or 0) if resumes else 0,
        preemptible=bool(row.spec.get("preemptible", True)),
        anywhere=not row.sites,
        stopping_for=(row.stopping_for or row.job) if stopping else "",  # for nobody else where its job just ended
    )


def held_versions(connection: Connection) -> dict[str, int]:
    """Return the versions of the jobs whose legs hold capacity."""
    query = select(t.jobs.c.id, t.jobs.c.version).join(t.legs, t.legs.c.job == t.jobs.c.id).where(_HOLDING)
    return {row.id: row.version for row in connection.execute(query)}


def kept_run_time(connection: Connection) -> dict[str, int]:
    """Return how much run time of pending jobs is kept, in milliseconds: what they need not do again."""
    found: dict[str, int] = {}
    for (job, _), kept in sorted(_kept_by_attempt(connection, t.jobs.c.state == JobState.PENDING.value).items()):
        found[job] = found.get(job, 0) + kept
    return {job: kept for job, kept in found.items() if kept}


def kept_before(connection: Connection, job: str, attempt: str) -> int:
    """Return how much run time the other attempts of a job kept, in milliseconds."""
    return sum(_kept_by_attempt(connection, (t.jobs.c.id == job) & (t.legs.c.attempt != attempt)).values())


def _kept_by_attempt(connection: Connection, wanted: ColumnElement[bool]) -> dict[tuple[str, str], int]:
    """A leg keeps what it ran until its progress last moved; an attempt what the slowest of its legs kept."""
    query = (
        select(t.legs.c.job, t.legs.c.attempt, t.legs.c.id, t.epochs.c.running_ms, t.epochs.c.kept_ms)
        .join(t.jobs, t.jobs.c.id == t.legs.c.job)
        .join(t.epochs, t.epochs.c.leg == t.legs.c.id)
        .where(wanted & t.jobs.c.kind.in_(RESUMING))
    )
    attempts: dict[tuple[str, str], dict[str, int]] = {}
    for row in connection.execute(query):
        kept = max(0, row.kept_ms - row.running_ms) if row.running_ms else 0
        by_leg = attempts.setdefault((row.job, row.attempt), {})
        by_leg[row.id] = by_leg.get(row.id, 0) + kept
    return {key: min(by_leg.values()) for key, by_leg in attempts.items()}


def _expected(legs: tuple[HeldLeg, ...], run_times: RunTimes, now_ms: int) -> tuple[HeldLeg, ...]:
    """The legs with how long each is expected to run from its start, now that it has run until now."""
    found = []
    for leg in legs:
        ran_s = max(0, now_ms - leg.started_ms) // 1000
        left_s = expected_s(run_times, leg.account, leg.walltime_s, ran_s)
        found.append(replace(leg, expected_s=min(leg.walltime_s, ran_s + left_s)))
    return tuple(found)


def _fastest_first(resources: Resources) -> tuple[str, ...]:
    """The acceptable flavors, those on which the job runs faster first; as given where nothing was said."""
    speed = resources.throughput
    return tuple(sorted(resources.flavors, key=lambda flavor: -Fraction(speed.get(flavor, "1"))))


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
