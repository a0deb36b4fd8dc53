"""An independent check of a plan: sums and comparisons only, sharing no code with the placement.

The simulator counts what it finds, tests and the server demand that it finds nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from consortium.domain.partner import Cotenancy, Site, SiteState
from consortium.scheduler.check_evictions import wrong_evictions
from consortium.scheduler.check_quota import wrong_quotas
from consortium.scheduler.types import HeldLeg, PendingJob, Placement, Plan, SiteView, Snapshot, WindowKind


def violations(snapshot: Snapshot, plan: Plan) -> tuple[str, ...]:
    """Return every breach the plan would cause, as `rule: sentence`; empty for a sound plan.

    Rules: `gang`, `territory`, `policy`, `flavor`, `site_state`, `window`, `cordon`, `avoid`, `line`, `capacity`,
    `cotenancy`, `quota`, `eviction`, `reason`. What held legs break already (a lowered quota, a shrunk site) is not the
    plan's, unless the plan adds to it.
    """
    found: list[str] = []
    jobs = {job.id: job for job in snapshot.pending}
    views = {view.site.id: view for view in snapshot.sites}
    answered = Counter([placement.job for placement in plan.placements] + list(plan.reasons))
    found += [f"reason: {job} is answered {answered[job]} times" for job in jobs if answered[job] != 1]
    found += [f"reason: {job} waits for no stated reason" for job, why in plan.reasons.items() if not why.message]
    for placement in plan.placements:
        if placement.job not in jobs:
            found.append(f"gang: {placement.job} does not wait")
            continue
        found += _placement(jobs[placement.job], placement, views)
        found += _times(jobs[placement.job], placement, views, snapshot)
    held = list(snapshot.held) + [_leg(jobs[p.job], p, i) for p in plan.placements if p.job in jobs for i in _legs(p)]
    found += _nodes({site: view.site for site, view in views.items()}, held, {p.job for p in plan.placements})
    started = {(jobs[p.job].account, leg.flavor) for p in plan.placements if p.job in jobs for leg in p.legs}
    found += wrong_quotas(snapshot.accounts, snapshot.held, held, started)
    found += wrong_evictions(snapshot, plan)
    return tuple(found)


def _legs(placement: Placement) -> range:
    return range(len(placement.legs))


def _leg(job: PendingJob, placement: Placement, index: int) -> HeldLeg:
    leg = placement.legs[index]
    return HeldLeg(
        leg=f"{job.id}@{leg.site}", job=job.id, account=job.account, partner=job.account[:2], site=leg.site,
        flavor=leg.flavor, nodes=leg.nodes, priority=job.priority, started_ms=0, walltime_s=job.walltime_s,
    )  # fmt: skip


def _placement(job: PendingJob, placement: Placement, views: dict[str, SiteView]) -> list[str]:
    found = []
    where = [leg.site for leg in placement.legs]
    if job.sites and sorted(where) != sorted(set(job.sites)):
        found.append(f"gang: {job.id} runs at {where} and not at all of {sorted(set(job.sites))}")
    if not job.sites and len(where) != 1:
        found.append(f"gang: {job.id} runs at {len(where)} sites and not at one")
    for leg in placement.legs:
        view = views.get(leg.site)
        if view is None or (job.sites and leg.site not in job.sites):
            found.append(f"territory: {job.id} may not run at {leg.site}")
            continue
        if leg.site in job.denied or leg.site in job.unfit:
            found.append(f"policy: {job.id} is denied at {leg.site}")
        if leg.flavor != view.site.flavor.id or (job.flavors and leg.flavor not in job.flavors):
            found.append(f"flavor: {job.id} does not accept {view.site.flavor.id} at {leg.site}")
        if view.state is not SiteState.ACTIVE:
            found.append(f"site_state: {job.id} starts at {leg.site}, which is {view.state.value}")
        if sum(leg.nodes.values()) != job.gpus or any(gpus % job.gpus_per_worker for gpus in leg.nodes.values()):
            found.append(f"gang: {job.id} gets {leg.nodes} for {job.gpus} GPUs in workers of {job.gpus_per_worker}")
        if any(gpus < 1 for gpus in leg.nodes.values()):
            found.append(f"gang: {job.id} gets an empty node at {leg.site}")
    return found


def _times(job: PendingJob, placement: Placement, views: dict[str, SiteView], snapshot: Snapshot) -> list[str]:
    """What holds at certain times only: windows, cordoned nodes, nodes to be avoided, what the job waits for."""
    found = []
    ends_ms = snapshot.now_ms + job.walltime_s * 1000
    if job.waits_for is not None or job.not_before_ms > snapshot.now_ms:
        found.append(f"line: {job.id} starts before it is in line")
    for leg in placement.legs:
        for window in snapshot.windows:
            meets = window.site == leg.site and (not window.nodes or set(window.nodes) & set(leg.nodes))
            mine = window.kind is WindowKind.RESERVATION and f"{job.account}/".startswith(f"{window.account}/")
            if meets and not mine and window.start_ms < ends_ms and window.end_ms > snapshot.now_ms:
                found.append(f"window: {job.id} may still run at {leg.site} in {window.id}")
        closed = set(views[leg.site].cordoned) & set(leg.nodes) if leg.site in views else set()
        found += [f"cordon: {job.id} takes {leg.site} {node}" for node in sorted(closed)]
        found += [f"avoid: {job.id} failed on {leg.site} {n} before" for n in leg.nodes if (leg.site, n) in job.avoid]
    return found


def _nodes(sites: dict[str, Site], held: list[HeldLeg], started: set[str]) -> list[str]:
    found = []
    on_node: dict[tuple[str, str], list[HeldLeg]] = defaultdict(list)
    for leg in held:
        for node in leg.nodes:
            on_node[leg.site, node].append(leg)
    size = {(site.id, node.id): node.gpus for site in sites.values() for node in site.nodes}
    for (site, node), legs in sorted(on_node.items()):
        if not any(leg.job in started for leg in legs):
            continue
        taken = sum(leg.nodes[node] for leg in legs)
        if taken > size.get((site, node), 0):
            found.append(f"capacity: {taken} GPUs taken of {size.get((site, node), 0)} on {site} {node}")
        rule = sites[site].cotenancy if site in sites else Cotenancy.OPEN
        if rule is Cotenancy.PARTNER and len({leg.partner for leg in legs}) > 1:
            found.append(f"cotenancy: several partners share {site} {node}")
        if rule is Cotenancy.EXCLUSIVE and len({leg.job for leg in legs}) > 1:
            found.append(f"cotenancy: several jobs share {site} {node}")
    return found
