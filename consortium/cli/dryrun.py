"""What a dry run and `explain` print: sites with reasons, start, cost, budget; and how a denial leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from consortium.cli import estimate
from consortium.cli.show import put, put_json, table, when
from consortium.domain.units import gpu_hours

if TYPE_CHECKING:
    from consortium.domain.job import Job

_ADDED = ("dry_run", "funnel", "run_time", "sites", "cost", "share", "budgets", "training")
"""What a dry run's answer holds besides the job."""


def show(answer: dict[str, Any], as_json: bool, *, members: int = 1) -> None:
    """Print the answer of a dry run; leave as a submission would where the job is denied."""
    from consortium.domain.codec import from_json
    from consortium.domain.job import Job

    job = from_json(Job, {key: value for key, value in answer.items() if key not in _ADDED})
    if as_json:
        put_json(answer)
    else:
        _page(answer, job, members)
    if job.state.value == "denied":
        denied(job, called="the job")


def denied(job: Job, *, called: str = "") -> NoReturn:
    """Leave with what denies a job, `called` by its id else, and its exit code: 3 by policy, 4 by quota."""
    from consortium.errors import PolicyDeniedError, QuotaDeniedError

    if not job.denials:
        message = job.reason.message if job.reason else "no reason was given"
        what = f"{called or job.id} is denied: {message.replace(job.id, called or job.id)}"
        raise QuotaDeniedError(what, fix=(job.reason.fix or None) if job.reason else None)
    first = job.denials[0]
    raise PolicyDeniedError(
        f"{called or job.id} is denied by {first.clause}: {first.message}",
        where=f"{first.file}:{first.line}",
        fix=f"would pass: {first.would_pass}",
    )


def funnel(found: dict[str, Any]) -> None:
    """Print a funnel: what each rule left, the place in line, the start, who holds the GPUs, what would help."""
    for step in found["steps"]:
        numbers = ", ".join(f"{key} {value}" for key, value in step["numbers"].items())
        left = ", ".join(step["sites_left"]) or "no site left"
        put(f"  {step['rule']:12} {left}" + (f"  ({numbers})" if numbers else ""))
        for drop in step["dropped"]:
            put(f"    {drop['site']}: {drop['reason']['message']}")
    for name, text in _outlook(found):
        put(f"  {name:12} {text}")


def _outlook(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The place in line, who holds the GPUs, the start, what would help; each where there is such."""
    facts = []
    if found["position"]:
        facts.append(("position", f"{found['position']} in line"))
    if found["holders"]:
        facts.append(("held by", ", ".join(f"{p} {n} GPUs" for p, n in found["holders"].items())))
    if found["estimated_start"]:
        facts.append(("starts", f"{_starts(found['estimated_start'])} (UTC)"))
    if found["fix"]:
        facts.append(("fix", found["fix"]))
    return facts


def _page(answer: dict[str, Any], job: Job, members: int) -> None:
    put(f"nothing was submitted; it would {_fate(answer, job)}")
    put(answer["funnel"]["reason"]["message"].replace(job.id, "the job"))
    put()
    table(
        ["site", "flavor", "eligible", "starts (UTC)", "reference GPU-hours", "at most", "why not, or not now"],
        [_row(row, job.id) for row in answer["sites"]],
        empty="there is no site",
    )
    put()
    for name, text in (*_outlook(answer["funnel"]), *_facts(answer, job, members)):
        put(f"{name:12} {text}")
    if "training" in answer:
        estimate.show(answer["training"])


def _fate(answer: dict[str, Any], job: Job) -> str:
    if job.state.value == "denied":
        return "be denied"
    able = {row["site"] for row in answer["sites"] if row["eligible"]}
    unable = [site for site in job.target_sites if site not in able]
    if unable or not able:
        return f"wait: as things are {', '.join(unable) or 'no site'} {'do' if len(unable) > 1 else 'does'} not take it"
    return f"run at {', '.join(job.target_sites) or 'any one site that fits'}"


def _row(row: dict[str, Any], job_id: str) -> tuple[str, ...]:
    start = _starts(row["start"]) if row["start"] else "-"
    return (
        row["site"],
        row["flavor"],
        "yes" if row["eligible"] else "no",
        start if row["eligible"] else "-",
        gpu_hours(int(row["expected_reference_gpu_ms"]), 2) if row["eligible"] else "-",
        gpu_hours(int(row["most_reference_gpu_ms"]), 2) if row["eligible"] else "-",
        row["reason"]["message"].replace(job_id, "the job") if row["reason"] else "",
    )


def _facts(answer: dict[str, Any], job: Job, members: int) -> list[tuple[str, str]]:
    run, cost = answer["run_time"], answer["cost"]
    known = f"by {run['jobs']} earlier jobs of {run['source']}" if run["jobs"] else "nothing known yet"
    facts = [
        ("run time", f"about {run['expected_s']} s ({run['low_s']} to {run['high_s']}), {known}; "
         f"it is stopped after {job.spec.resources.walltime_s} s"),
        ("cost", f"{_range(cost['expected_reference_gpu_ms'])} reference GPU-hours expected, at most "
         f"{_range(cost['most_reference_gpu_ms'])}, paid by {cost['account']}"
         + (f"; {members} members cost that each" if members > 1 else "")),
    ]  # fmt: skip
    facts += [("share", _share(share)) for share in answer["share"]]
    for budget in answer["budgets"]:
        facts.append(
            ("budget", f"{budget['account']} has {gpu_hours(int(budget['left']), 1)} of "
             f"{gpu_hours(int(budget['budget']), 1)} reference GPU-hours left in {budget['period']}, "
             f"{gpu_hours(int(budget['left_after']), 1)} with this job")
        )  # fmt: skip
    return facts


def _share(share: dict[str, Any]) -> str:
    now, then = share["now"], share["then"]
    if not then["flavor"]:
        return f"{share['account']} stays within what is nominally its own"
    return (
        f"{share['account']} would hold {then['dominant']:.0%} of all {then['flavor']} above its own "
        f"(now {now['dominant']:.0%}): level {then['level']} of fair share, {then['share']:.4f}"
    )


def _range(pair: list[Any]) -> str:
    low, high = (gpu_hours(int(part), 2) for part in pair)
    return low if low == high else f"{low} to {high}"


def _starts(estimate: dict[str, Any]) -> str:
    earliest = when(int(estimate["earliest_ms"]))
    latest = "unknown" if estimate["latest_ms"] is None else when(int(estimate["latest_ms"]))
    return f"at {earliest}" if earliest == latest else f"between {earliest} and {latest}"
