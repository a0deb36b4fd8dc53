"""Reasons in words and numbers: one function per rule.

A reason does not count down: instants are absolute, so a job whose case has not changed keeps its reason from cycle to
cycle, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.quota import Quota
from consortium.scheduler.board import Board, Layer, Shadow, may_use
from consortium.scheduler.fit import on_loan, rooms_at
from consortium.scheduler.rules import Rule, decisive, site_demand
from consortium.scheduler.types import PendingJob


class Case(NamedTuple):
    """A job, a site and the pictures the rule was judged on."""

    board: Board
    job: PendingJob
    site: str
    layers: Sequence[Layer]
    answer: dict[str, Rule | None]


def describe(case: Case, rule: Rule) -> Reason:
    """Why `rule` keeps the job from the site."""
    return _DESCRIBE[rule](case)


def waits_out(job: PendingJob) -> Reason:
    """The reason of a job whose backoff is not over."""
    return Reason(
        code=ReasonCode.HELD,
        message=job.not_before_reason or "waits out a backoff after a fault",
        numbers={"not_before_ms": job.not_before_ms},
    )


def makes_room(job: PendingJob, site: str, count: int, victims: int) -> Reason:
    """The reason of a job that GPUs are being taken back for."""
    return Reason(
        code=ReasonCode.MAKING_ROOM,
        message=f"{gpus(count)} of {victims} {'job' if victims == 1 else 'jobs'} at {site} are being taken back "
        f"for its {gpus(job.gpus)}, which are within its quota",
        numbers={"needed": job.gpus, "evicted_gpus": count, "evicted_jobs": victims},
        site=site,
    )


def instant(unix_ms: int) -> str:
    """Render an instant for people, to the second it falls in or the next: `2025-06-15 15:06:40 UTC`."""
    return datetime.fromtimestamp(-(-unix_ms // 1000), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(duration_ms: int) -> str:
    """Render a duration for people: `45 s`, `1 h 20 min`, `3 d 4 h`."""
    seconds = max(1, -(-duration_ms // 1000))
    if seconds < 120:
        return f"{seconds} s"
    minutes = -(-seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def gpus(count: int) -> str:
    """`1 GPU`, `8 GPUs`."""
    return f"{count} GPU" if count == 1 else f"{count} GPUs"


def limit(value: int | None) -> int | str:
    """A limit as a number, or the word for none."""
    return "unlimited" if value is None else value


def _territory(case: Case) -> Reason:
    if case.site not in case.board.views:
        known = ", ".join(case.board.views)
        return Reason(
            code=ReasonCode.TERRITORY,
            message=f"no site {case.site} is in the consortium",
            site=case.site,
            fix=f"name one of {known}",
        )
    homes = ", ".join(case.job.sites)
    return Reason(
        code=ReasonCode.TERRITORY,
        message=f"{case.job.id} runs at {homes}, where its data lives or its spec says, and not at {case.site}",
        numbers={"sites": homes},
        site=case.site,
    )


def _policy(case: Case) -> Reason:
    return case.job.denied[case.site]


def _flavor(case: Case) -> Reason:
    flavor, wanted = case.board.views[case.site].site.flavor.id, ", ".join(case.job.flavors)
    return Reason(
        code=ReasonCode.FLAVOR,
        message=f"{case.site} has {flavor}, and the job accepts {wanted}",
        numbers={"flavor": flavor, "accepted": wanted},
        site=case.site,
        fix=f"accept {flavor} as well",
    )


def _gang_size(case: Case) -> Reason:
    job, site = case.job, case.board.views[case.site].site
    if job.min_sites > max(1, len(job.sites)):
        return Reason(
            code=ReasonCode.GANG_SIZE,
            message=f"min_sites is {job.min_sites}, and the job runs at {max(1, len(job.sites))} of them",
            numbers={"min_sites": job.min_sites, "sites": max(1, len(job.sites))},
            site=case.site,
            fix=f"set min_sites={max(1, len(job.sites))}, or name more sites",
        )
    largest, node = case.board.largest_leg(site, job.gpus_per_worker), max(item.gpus for item in site.nodes)
    fix = f"ask for at most gpus={largest}" if largest else f"ask for gpus_per_worker={node} or less"
    return Reason(
        code=ReasonCode.GANG_SIZE,
        message=f"{site.id} can never hold {gpus(job.gpus)} in workers of {job.gpus_per_worker}: "
        f"it has {gpus(site.gpus)} on {len(site.nodes)} node(s) of up to {node}, which hold {largest} so",
        numbers={
            "needed": job.gpus,
            "gpus_per_worker": job.gpus_per_worker,
            "largest": largest,
            "site_gpus": site.gpus,
            "nodes": len(site.nodes),
        },
        site=site.id,
        fix=fix,
    )


def _quota_limit(case: Case) -> Reason:
    job, flavor, needed, quota = _quota_of(case)
    if quota is None:
        declared = ", ".join(case.board.quota.flavors(job.account)) or "none"
        return Reason(
            code=ReasonCode.QUOTA_NEVER,
            message=f"account {job.account} declares no quota for {flavor}, not even 0 to borrow it "
            f"(it declares {declared})",
            numbers={"needed": needed, "flavor": flavor, "declared": declared},
            site=case.site,
            fix=f"have an admin declare {flavor} for {job.account}, or use a flavor it declares",
        )
    most = case.board.quota.potential(job.account, flavor)
    bound = f"the borrowing limit of {most.account}" if most.bound == "borrowing_limit" else "what its cohort owns"
    smaller = _per_leg(case, most.gpus)
    less = f"ask for at most gpus={smaller}, or " if smaller else ""
    return Reason(
        code=ReasonCode.QUOTA_NEVER,
        message=f"account {job.account} can never hold {needed} {flavor}: "
        f"with {bound} it gets to {most.gpus} even when nobody else holds any",
        numbers={"needed": needed, "most": most.gpus, **_quota_numbers(flavor, quota)},
        site=case.site,
        fix=f"{less}have an admin raise {'that limit' if most.bound == 'borrowing_limit' else 'its quota'}",
    )


def _refused(case: Case) -> Reason:
    return case.job.unfit[case.site]


def _site_state(case: Case) -> Reason:
    view = case.board.views[case.site]
    state = view.state.value
    return Reason(
        code=ReasonCode.SITE_STATE,
        message=f"{case.site} is {view.why or state} and takes no new legs",
        numbers={"state": state},
        site=case.site,
        fix=f"wait until {case.site} is active again"
        if state == "lost"
        else f"have its partner's admin resume {case.site}",
    )


def _window(case: Case) -> Reason:
    board, job = case.board, case.job
    ends_ms = board.now_ms + job.walltime_s * 1000
    for window in board.windows(case.site):
        if window.start_ms < ends_ms and window.end_ms > board.now_ms and not may_use(window, job):
            what = "maintenance" if window.kind.value == "maintenance" else f"a reservation of {window.account}"
            return Reason(
                code=ReasonCode.WINDOW,
                message=f"{case.site} has {what} from {instant(window.start_ms)} to {instant(window.end_ms)}, "
                f"and a walltime of {span(job.walltime_s * 1000)} would run into it",
                numbers={
                    "window": window.id,
                    "start_ms": window.start_ms,
                    "end_ms": window.end_ms,
                    "walltime_s": job.walltime_s,
                },
                site=case.site,
            )
    nodes = sorted(node for site, node in job.avoid if site == case.site)
    return Reason(
        code=ReasonCode.WINDOW,
        message=f"it failed on {', '.join(nodes)} of {case.site} and does not use "
        f"{'that node' if len(nodes) == 1 else 'those nodes'} again; the rest is busy",
        numbers={"nodes": ", ".join(nodes)},
        site=case.site,
    )


def _cotenancy(case: Case) -> Reason:
    job, use = case.job, case.board.sites[case.site]
    mine = sum(rooms_at(job, case.site, case.layers[:1]).values())
    anyone = sum(rooms_at(job, case.site, case.layers[:1], cotenancy=False).values())
    kept = "another job" if use.site.cotenancy.value == "exclusive" else "another partner's jobs"
    return Reason(
        code=ReasonCode.COTENANCY,
        message=f"{case.site} has {gpus(anyone)} free, {anyone - mine} of them on nodes with {kept}, "
        f"which its cotenancy '{use.site.cotenancy.value}' does not share; {gpus(job.gpus)} needed",
        numbers={"needed": job.gpus, "free": anyone, "shareable": mine, "cotenancy": use.site.cotenancy.value},
        site=case.site,
    )


def _capacity(case: Case) -> Reason:
    job, use = case.job, case.board.sites[case.site]
    rooms = rooms_at(job, case.site, case.layers[:1], cotenancy=False)
    usable, free = sum(rooms.values()), max(0, use.free_total)
    split = f", {usable} of them in whole workers of {job.gpus_per_worker}" if usable != free else ""
    return Reason(
        code=ReasonCode.CAPACITY,
        message=f"{case.site} has {free} of its {use.site.gpus} {use.site.flavor.id} free{split}; "
        f"{gpus(job.gpus)} needed",
        numbers={
            "needed": job.gpus,
            "free": free,
            "usable": usable,
            "site_gpus": use.site.gpus,
            "flavor": use.site.flavor.id,
        },
        site=case.site,
    )


def _quota(case: Case) -> Reason:
    job, flavor, needed, quota = _quota_of(case)
    room, used = case.board.quota.available(job.account, flavor), case.board.quota.used(job.account, flavor)
    assert quota is not None  # an undeclared flavor fails quota_limit before
    if room.bound == "borrowing_limit":
        why = f"the borrowing limit of {room.account} leaves it {room.gpus} more"
    else:
        why = f"others leave it {room.gpus} to use or borrow now"
    return Reason(
        code=ReasonCode.QUOTA,
        message=f"account {job.account} holds {used} {flavor} with a nominal quota of {quota.nominal}; "
        f"{needed} more needed, and {why}",
        numbers={
            "needed": needed,
            "held": used,
            "available": room.gpus,
            "bound": room.bound,
            "bound_account": room.account,
            **_quota_numbers(flavor, quota),
        },
        site=case.site,
    )


def _priority(case: Case) -> Reason:
    claimant = case.board.claimed.get(case.site, "")
    if claimant and on_loan(case.board, case.job, case.site, site_demand(case.board, case.job)[_flavor_of(case)]):
        return Reason(
            code=ReasonCode.PRIORITY,
            message=f"{claimant} waits at {case.site} for what is its own; what is borrowed starts there after it",
            numbers={"ahead": claimant},
            site=case.site,
        )
    ends_ms = case.board.now_ms + case.job.walltime_s * 1000
    shadows = [layer for layer in case.layers if isinstance(layer, Shadow) and layer.start_ms < ends_ms]
    shadow = next((item for item in shadows if any(leg.site == case.site for leg in item.legs)), shadows[0])
    where = ", ".join(leg.site for leg in shadow.legs)
    return Reason(
        code=ReasonCode.PRIORITY,
        message=f"{shadow.job.id} is first in line at {where} and starts by {instant(shadow.start_ms)}; "
        f"a walltime of {span(case.job.walltime_s * 1000)} could delay it",
        numbers={
            "ahead": shadow.job.id,
            "ahead_start_ms": shadow.start_ms,
            "walltime_s": case.job.walltime_s,
        },
        site=case.site,
    )


def _gang_partner(case: Case) -> Reason:
    site = decisive(case.job, case.answer)
    rule = case.answer[site]
    assert rule is not None  # that site is why this one waits
    return Reason(
        code=ReasonCode.GANG_PARTNER,
        message=f"{case.site} could start it, but all {len(case.job.sites)} sites start together and {site} cannot: "
        f"{rule.value}",
        numbers={"sites": len(case.job.sites), "waits_for": site, "rule": rule.value},
        site=case.site,
    )


def _flavor_of(case: Case) -> str:
    return case.board.flavors[case.site]


def _quota_of(case: Case) -> tuple[PendingJob, str, int, Quota | None]:
    flavor = case.board.views[case.site].site.flavor.id
    needed = site_demand(case.board, case.job)[flavor]
    return case.job, flavor, needed, case.board.quota.quota(case.job.account, flavor)


def _quota_numbers(flavor: str, quota: Quota) -> dict[str, int | str]:
    return {"flavor": flavor, "nominal": quota.nominal, "borrowing_limit": limit(quota.borrowing_limit)}


def _per_leg(case: Case, total: int) -> int:
    """The largest `gpus` per leg with which the job stays within `total` of the site's flavor."""
    legs = site_demand(case.board, case.job)[case.board.views[case.site].site.flavor.id] // case.job.gpus
    each = total // legs
    return each - each % case.job.gpus_per_worker


_DESCRIBE: dict[Rule, Callable[[Case], Reason]] = {
    Rule.TERRITORY: _territory,
    Rule.POLICY: _policy,
    Rule.FLAVOR: _flavor,
    Rule.GANG_SIZE: _gang_size,
    Rule.QUOTA_LIMIT: _quota_limit,
    Rule.REFUSED: _refused,
    Rule.SITE_STATE: _site_state,
    Rule.WINDOW: _window,
    Rule.COTENANCY: _cotenancy,
    Rule.CAPACITY: _capacity,
    Rule.QUOTA: _quota,
    Rule.PRIORITY: _priority,
    Rule.GANG_PARTNER: _gang_partner,
}
