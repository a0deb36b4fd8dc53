"""Why pending jobs are not in line yet: what they come after, their array's limit, their account's budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from sqlalchemy import Connection

from consortium.accounting.budgets import Claim, Standing, cost, standings
from consortium.accounting.periods import bounds, period_of
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import JobSpec, JobState, Leg
from consortium.domain.units import gpu_hours
from consortium.scheduler import HeldLeg, PendingJob
from consortium.server.federation import Federation
from consortium.state import jobs, shares, waits


def reasons(connection: Connection, specs: Mapping[str, JobSpec]) -> dict[str, Reason]:
    """Return what keeps the pending jobs of `specs` from standing in line for others' sake, by job."""
    found = _arrays(connection, specs)
    for item in reversed(waits.unmet(connection)):
        found[item.job] = comes_after(item.after, item.name, item.state)
    return found


def comes_after(job: str, name: str, state: JobState) -> Reason:
    """Return the reason of a job that waits for another one, or ends with it."""
    return Reason(
        code=ReasonCode.DEPENDENCY,
        message=f"comes after {job} ({name}), which is {state.value}",
        numbers={"job": job, "state": state.value},
    )


def unmet_of(connection: Connection, spec: JobSpec) -> Reason | None:
    """Return what a job that is not stored comes after and has not succeeded."""
    for name in spec.after:
        other = jobs.find_job(connection, name)
        if other.state is not JobState.SUCCEEDED:
            return comes_after(name, other.spec.name, other.state)
    return None


def _arrays(connection: Connection, specs: Mapping[str, JobSpec]) -> dict[str, Reason]:
    reasons = {}
    at_large = waits.members_at_large(connection)
    for members in at_large.values():
        for ahead, job in enumerate(members):
            array = specs[job].array if job in specs else None
            if array is not None and array.limit and ahead >= array.limit:
                reasons[job] = Reason(
                    code=ReasonCode.ARRAY,
                    message=f"{array.limit} members of {array.id} may be in line or at work at a time; "
                    f"{ahead} before it have not ended",
                    numbers={"array": array.id, "limit": array.limit, "ahead": ahead, "size": array.size},
                )
    return reasons


def budget_standings(
    connection: Connection, federation: Federation, held: Iterable[HeldLeg], now_ms: int
) -> dict[str, Standing]:
    """Return how every budget of the present period stands: metered use, and what running jobs may still use.

    With what legs used that have ended, and that their sites have yet to report.
    """
    period = period_of(now_ms)
    if not any(budget.period == period for budget in federation.budgets):
        return {}
    legs = list(held)
    until = shares.metered_until(connection, {leg.leg: leg.site for leg in legs})
    claims = [
        Claim(
            account=leg.account,
            site=leg.site,
            gpus=leg.gpus,
            start_ms=max(leg.started_ms, until.get(leg.leg, 0)),
            end_ms=leg.ends_ms,
        )
        for leg in legs
    ]
    claims += shares.unmetered(connection, bounds(period)[0])
    used = shares.metered(connection, *bounds(period))
    return standings(federation.budgets, used, claims, factors(federation), now_ms)


def over_budget(
    connection: Connection, federation: Federation, held: Iterable[HeldLeg], leg: Leg, spec: JobSpec, now_ms: int
) -> Reason | None:
    """Return why a leg may not be tried again: its whole walltime does not fit into what others leave of a budget."""
    others = [item for item in held if item.leg != leg.id]
    budgets = budget_standings(connection, federation, others, now_ms)
    needed = cost(leg.gpus, (leg.site,), spec.resources.walltime_s, factors(federation), now_ms)
    found = [budgets[name] for name in _line(spec.account) if name in budgets and needed > budgets[name].left]
    return _over(found[0], 0, needed) if found else None


def factors(federation: Federation) -> dict[str, str]:
    """Return the reference factor of every site."""
    return {name: site.flavor.reference_factor for name, site in federation.sites.items()}


def within_budget(
    pending: Iterable[PendingJob], budgets: Mapping[str, Standing], federation: Federation, now_ms: int
) -> tuple[PendingJob, ...]:
    """Return the jobs, those marked that their account's budget does not carry, even at the cheapest site.

    A job counts with its whole walltime, which each attempt may take, in order of class and age after those ahead of
    it, so that what is in line never uses more than the budget, whichever of them start. Sites that are too dear for
    what is left are unfit.
    """
    given = list(pending)
    if not budgets:
        return tuple(given)
    price = _Prices(federation, now_ms)
    ahead: dict[str, int] = {}
    marked: dict[str, PendingJob] = {}
    for job in sorted(given, key=lambda item: (item.priority.rank, item.created_ms, item.id)):
        bounding = [budgets[name] for name in _line(job.account) if name in budgets]
        if not bounding or job.waits_for is not None:
            continue
        costs = price.of(job)
        tight = min(bounding, key=lambda item: (item.left - ahead.get(item.account, 0), item.account))
        left = tight.left - ahead.get(tight.account, 0)
        least = min(costs.values(), default=0)
        if least > left:
            reason = _over(tight, ahead.get(tight.account, 0), least)
            marked[job.id] = replace(job, waits_for=reason)
            continue
        dear = {site: _over(tight, ahead.get(tight.account, 0), much) for site, much in costs.items() if much > left}
        if dear:
            marked[job.id] = replace(job, unfit={**dear, **job.unfit})
        most = max((much for site, much in costs.items() if site not in dear), default=0)
        for item in bounding:
            ahead[item.account] = ahead.get(item.account, 0) + most
    return tuple(marked.get(job.id, job) for job in given)


def _line(account: str) -> tuple[str, ...]:
    partner, _, project = account.partition("/")
    return (account, partner) if project else (account,)


class _Prices:
    """What jobs may use in this period at each site they may go to, reckoned once per shape."""

    def __init__(self, federation: Federation, now_ms: int) -> None:
        self._sites, self._factors, self._now_ms = federation.sites, factors(federation), now_ms
        self._known: dict[tuple[object, ...], dict[str, int]] = {}

    def of(self, job: PendingJob) -> dict[str, int]:
        """Reference GPU-milliseconds by site; the whole of a gang's stand at its first site."""
        shape = (job.gpus, job.walltime_s, job.sites, job.flavors, *job.denied, "", *job.unfit)
        if shape not in self._known:
            groups = [job.sites] if job.sites else [(name,) for name in self._sites if self._fits(job, name)]
            self._known[shape] = {
                group[0]: cost(job.gpus, group, job.walltime_s, self._factors, self._now_ms) for group in groups
            }
        return self._known[shape]

    def _fits(self, job: PendingJob, name: str) -> bool:
        wanted = not job.flavors or self._sites[name].flavor.id in job.flavors
        return wanted and name not in job.denied and name not in job.unfit


def _over(standing: Standing, ahead: int, needed: int) -> Reason:
    left = max(0, standing.left - ahead)
    said = [f"{gpu_hours(standing.used, 1)} are used", f"running jobs may use {gpu_hours(standing.promised, 1)}"]
    said += [f"jobs ahead of it {gpu_hours(ahead, 1)}"] if ahead else []
    return Reason(
        code=ReasonCode.BUDGET,
        message=f"{standing.account} may use {gpu_hours(standing.budget, 1)} reference GPU-hours in {standing.period}: "
        f"{', '.join(said)}; this job may use {gpu_hours(needed, 1)}, {gpu_hours(left, 1)} are left",
        numbers={
            "account": standing.account,
            "period": standing.period,
            "budget_reference_gpu_ms": standing.budget,
            "used_reference_gpu_ms": standing.used,
            "promised_reference_gpu_ms": standing.promised,
            "ahead_reference_gpu_ms": ahead,
            "needed_reference_gpu_ms": needed,
            "left_reference_gpu_ms": left,
        },
        fix="ask for less walltime or fewer GPUs, or for a larger budget (consortium quota apply)",
    )
