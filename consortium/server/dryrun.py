"""What would become of a submission: every site with whether it could run there, when, at what price. Stores nothing.

Of a training job also what the training takes: memory, steps, hours, bytes over each border (`consortium.train.costs`).

A dry run needs no signature and takes none into account: the spec that comes cannot be submitted by whoever sees it.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

from consortium.accounting.budgets import cost
from consortium.config.federation import parse_site_text
from consortium.domain.codec import to_json
from consortium.domain.data import Dataset
from consortium.domain.decision import Reason
from consortium.domain.job import Job, JobKind, JobSpec, SignedSpec
from consortium.domain.partner import Site
from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UsageError
from consortium.keys.documents import DocumentKind
from consortium.keys.tokens import Claims
from consortium.scheduler import (
    Estimate,
    Funnel,
    PendingJob,
    Pool,
    Snapshot,
    StartRange,
    estimate,
    explain,
)
from consortium.scheduler.quota import QuotaTree
from consortium.scheduler.rules import Rule
from consortium.server import snapshots, submit, waits
from consortium.server.ancestry import ancestry
from consortium.server.core import Core
from consortium.server.snapshots import View
from consortium.state.sites import all_sites

MAX_STARTS = 12
"""Sites up to which each one's start is estimated, and not only the job's."""


def dry_run(core: Core, claims: Claims, spec: JobSpec) -> dict[str, Any]:
    """Return the job as it would be: its funnel, a row per site, run time, cost, and what that does to its account.

    Raises what `submit.judge` raises, signatures apart.
    """
    submit.check_spec(core, claims, spec)
    with core.db.read() as connection:
        view = snapshots.take(core, connection)
        job = submit.judge_checked(core, connection, SignedSpec(spec=spec, signature=""), view)
        inputs = snapshots.inputs_of(connection, spec)
        behind = ancestry(connection, spec)
        decisions = snapshots.decide(core.federation, spec, inputs, job.target_sites, behind)
        stored = all_sites(connection)
        unmet = waits.unmet_of(connection, spec)
    waiting = snapshots.pending_job(job.id, spec, job.target_sites, decisions, job.created_ms, stored, view.run_times)
    answer = _answer(core, view, job, replace(waiting, waits_for=unmet))
    return answer | ({"training": _training(core, job, inputs)} if spec.kind is JobKind.PRETRAIN else {})


def _answer(core: Core, view: View, job: Job, waiting: PendingJob) -> dict[str, Any]:
    pending = waits.within_budget(
        (*view.snapshot.pending, waiting), view.budgets, core.federation, view.snapshot.now_ms
    )
    snapshot = replace(view.snapshot, pending=pending)
    funnel = explain(snapshot, job.id)
    run_time = estimate(view.run_times, job.spec.account, job.spec.resources.walltime_s)
    rows = _sites(core, snapshot, job.spec, pending[-1], funnel, run_time)
    eligible = [row for row in rows if row["eligible"]]
    answer: dict[str, Any] = to_json(job) | {
        "dry_run": True,
        "funnel": to_json(funnel),
        "run_time": to_json(run_time),
        "sites": rows,
        "cost": _cost(job, eligible),
        "share": _share(snapshot, job.spec, eligible),
        "budgets": _budgets(view, job.spec.account, eligible, gang=bool(job.target_sites)),
    }
    return answer


def _training(core: Core, job: Job, inputs: tuple[Dataset, ...]) -> dict[str, Any]:
    """What a training takes; where that cannot be said, `unknown` and `fix` say why: its legs would fail for the same.

    Links are what partners say of them in their sites' documents.
    """
    from consortium.train.costs import Place, costs
    from consortium.train.tokens import vocabulary

    links, resources = _links(core), job.spec.resources
    own: dict[str, list[Dataset]] = {site: [] for site in job.target_sites}
    for item in inputs:
        own.setdefault(item.site, []).append(item)
    try:
        for site, there in sorted(own.items()):
            if not there:
                raise UsageError(
                    f"no input lives at {site}", fix="name datasets of every site, or leave it out of sites"
                )
        found = costs(
            PretrainConfig.of(job.spec.params),
            vocabulary(inputs, held_out=False).size,
            [
                Place(
                    site=core.federation.site(site),
                    data_tokens=sum(item.tokens for item in there),
                    gbit_per_s=links.get(site, {}),
                )
                for site, there in sorted(own.items())
            ],
            gpus=resources.gpus,
            gpus_per_worker=resources.gpus_per_worker,
            walltime_s=resources.walltime_s,
        )
    except UsageError as fault:
        return {"unknown": fault.what, "fix": fault.fix or ""}
    answer: dict[str, Any] = to_json(found)
    return answer


def _links(core: Core) -> dict[str, dict[str, str]]:
    """Gbit/s from each site to others."""
    signed = [document for document in core.federation.documents if document.kind is DocumentKind.SITE]
    configs = [parse_site_text(document.text, document.file) for document in signed]
    return {config.id: {other: link.gbit_per_s for other, link in config.links.items()} for config in configs}


def _sites(
    core: Core, snapshot: Snapshot, spec: JobSpec, waiting: PendingJob, funnel: Funnel, run_time: Estimate
) -> list[dict[str, Any]]:
    dropped = {drop.site: (Rule(step.rule), drop.reason) for step in funnel.steps for drop in step.dropped}
    open_to = {name for name in core.federation.sites if name not in dropped or _with_time(dropped[name][0])}
    each = not waiting.sites and 1 < len(open_to) <= MAX_STARTS
    fastest = max((_speed(spec, core.federation.sites[name]) for name in open_to), default=Fraction(1))
    rows = []
    for name, site in core.federation.sites.items():
        rule, reason = dropped.get(name, (None, None))
        start = funnel.estimated_start if name in open_to else None
        if each and name in open_to and start is not None:
            start = _start_at(snapshot, waiting, name)
        slower = fastest / _speed(spec, site) if spec.resources.throughput and name in open_to else Fraction(1)
        expected_s = min(spec.resources.walltime_s, round(run_time.expected_s * slower))
        rows.append(_row(core, spec, site, name in open_to, rule, reason, start, expected_s, snapshot.now_ms))
    return rows


def _row(
    core: Core,
    spec: JobSpec,
    site: Site,
    eligible: bool,
    rule: Rule | None,
    reason: Reason | None,
    start: StartRange | None,
    expected_s: int,
    now_ms: int,
) -> dict[str, Any]:
    factors, gpus = waits.factors(core.federation), spec.resources.gpus
    return {
        "site": site.id,
        "partner": site.partner,
        "flavor": site.flavor.id,
        "reference_factor": site.flavor.reference_factor,
        "eligible": eligible,
        "rule": "" if rule is None else rule.value,
        "reason": to_json(reason),
        "start": to_json(start),
        "expected_s": expected_s,
        "expected_reference_gpu_ms": cost(gpus, (site.id,), expected_s, factors, now_ms),
        "most_reference_gpu_ms": cost(gpus, (site.id,), spec.resources.walltime_s, factors, now_ms),
    }


def _with_time(rule: Rule) -> bool:
    """Whether the site could run the job, only not now, or not without the others of its gang."""
    return rule.passes_with_time or rule is Rule.GANG_PARTNER


def _speed(spec: JobSpec, site: Site) -> Fraction:
    return Fraction(spec.resources.throughput.get(site.flavor.id, site.flavor.reference_factor))


def _start_at(snapshot: Snapshot, waiting: PendingJob, site: str) -> StartRange | None:
    """When it would start if it were to run at that site alone."""
    pinned = replace(waiting, sites=(site,))
    return explain(replace(snapshot, pending=(*snapshot.pending[:-1], pinned)), waiting.id).estimated_start


def _cost(job: Job, eligible: list[dict[str, Any]]) -> dict[str, Any]:
    """What the job costs its account, from its cheapest site to its dearest; a gang pays for all its sites."""
    found: dict[str, Any] = {"account": job.spec.account}
    for kind in ("expected_reference_gpu_ms", "most_reference_gpu_ms"):
        prices = [int(row[kind]) for row in eligible] or [0]
        found[kind] = [sum(prices)] * 2 if job.target_sites else [min(prices), max(prices)]
    return found


def _share(snapshot: Snapshot, spec: JobSpec, eligible: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The fair-share factors of the account and its partner now, and with the job running where it costs them most."""
    tree = QuotaTree(snapshot.accounts)
    for leg in snapshot.held:
        tree.charge(leg.account, leg.flavor, leg.gpus)
    pool = Pool(snapshot.sites, snapshot.accounts, snapshot.history, snapshot.settings)
    flavors = sorted({str(row["flavor"]) for row in eligible})
    found = []
    for account in dict.fromkeys((spec.account, spec.account.partition("/")[0])):
        now = pool.factors(account, tree)
        then = [pool.factors(account, tree, flavor, spec.resources.gpus) for flavor in flavors]
        found.append({"account": account, "now": now._asdict(), "then": max(then, default=now)._asdict()})
    return found


def _budgets(view: View, account: str, eligible: list[dict[str, Any]], *, gang: bool) -> list[dict[str, Any]]:
    prices = [int(row["most_reference_gpu_ms"]) for row in eligible] or [0]
    most = sum(prices) if gang else max(prices)
    return [
        to_json(standing) | {"left": standing.left, "left_after": max(0, standing.left - most)}
        for name, standing in sorted(view.budgets.items())
        if account == name or account.startswith(name + "/")
    ]
