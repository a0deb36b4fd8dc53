"""The worked example of docs/scheduling.md: `python -m tests.scheduler.example` prints it from the real scheduler."""

from __future__ import annotations

from consortium.domain.decision import Reason, ReasonCode
from consortium.scheduler import Funnel, Snapshot, explain, schedule
from tests.builders import NOW_MS, account, site
from tests.scheduler.worlds import A100, H100, held, job, world

RUNNING = "job-de-pretrain"
HEAD, WAITS, SHORT = "job-fr-pretrain", "job-fr-law-clean", "job-fr-law-probe"


def snapshot() -> Snapshot:
    """Two states. `de` runs on its own site and has borrowed half of `fr-1`; three jobs of `fr` wait."""
    accounts = (
        account("fr", {H100: 12, A100: 0}),
        account("fr/law", {H100: (4, 4, None), A100: 0}),
        account("de", {H100: 0, A100: (8, None, 2)}),
    )
    legs = (
        held(1, "fr-1", {"n0": 8}, account="de", job=RUNNING, walltime_s=7200),
        held(2, "de-1", {"n0": 6}, A100, job=RUNNING, walltime_s=7200),
    )
    clause = Reason(
        code=ReasonCode.POLICY,
        message="de/purpose/1 (configs/policy/de.yaml:12): de-1 is for research, and the purpose is administration",
        numbers={"clause": "de/purpose/1", "line": 12},
        site="de-1",
        fix="give the job the purpose research",
    )
    waiting = (
        job(1, id=HEAD, gpus=16, sites=("fr-1",), walltime_s=4 * 3600),
        job(2, id=WAITS, account="fr/law", gpus=6, walltime_s=3 * 3600, denied={"de-1": clause}),
        job(3, id=SHORT, account="fr/law", gpus=4, walltime_s=3600, flavors=(H100,)),
    )
    return world(
        *waiting, sites=(site("fr-1", H100, (8, 8)), site("de-1", A100, (8,))), accounts=accounts, held=legs
    )  # fmt: skip


def render(funnel: Funnel, now_ms: int) -> str:
    """The funnel as plain lines."""
    lines = [f"{funnel.job}: {funnel.reason.code.value}: {funnel.reason.message}"]
    for step in funnel.steps:
        numbers = ", ".join(f"{name} {value}" for name, value in step.numbers.items() if name != "sites")
        left = ", ".join(step.sites_left) or "none"
        lines.append(f"  {step.rule:13} {step.numbers['sites']} -> {len(step.sites_left)} ({left})  {numbers}".rstrip())
        lines += [f"      {drop.site}: {drop.reason.message}" for drop in step.dropped]
    holders = ", ".join(f"{partner} {gpus}" for partner, gpus in funnel.holders.items()) or "nobody"
    lines.append(f"  position {funnel.position}; GPUs held there by: {holders}")
    if (start := funnel.estimated_start) is not None:
        latest = "later" if start.latest_ms is None else f"{(start.latest_ms - now_ms) // 60_000} min"
        lines.append(f"  starts in {(start.earliest_ms - now_ms) // 60_000} min to {latest}")
    lines.append(f"  fix: {funnel.fix or 'none'}")
    return "\n".join(lines)


def text() -> str:
    """What the page shows."""
    now = snapshot()
    placed = [f"starts now: {p.job} at {', '.join(leg.site for leg in p.legs)}" for p in schedule(now).placements]
    return "\n\n".join(["\n".join(placed), *(render(explain(now, name), NOW_MS) for name in (HEAD, WAITS))])


if __name__ == "__main__":
    print(text())
