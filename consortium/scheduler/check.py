"""An independent check of a plan: sums and comparisons only, sharing no code with the placement.

The simulator counts what it finds, tests and the server demand that it finds nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from consortium.domain.partner import Cotenancy, Site, SiteState
from consortium.domain.quota import Account, Quota
from consortium.scheduler.types import HeldLeg, PendingJob, Placement, Plan, Snapshot


def violations(snapshot: Snapshot, plan: Plan) -> tuple[str, ...]:
    """Return every breach the plan would cause, as `rule: sentence`; empty for a sound plan.

    Rules: `gang`, `territory`, `policy`, `flavor`, `site_state`, `capacity`, `cotenancy`, `quota`, `reason`. What held
    legs break already (a lowered quota, a shrunk site) is not the plan's, unless the plan adds to it.
    """
    found: list[str] = []
    jobs = {job.id: job for job in snapshot.pending}
    states = {view.site.id: view.state for view in snapshot.sites}
    sites = {view.site.id: view.site for view in snapshot.sites}
    answered = Counter([placement.job for placement in plan.placements] + list(plan.reasons))
    found += [f"reason: {job} is answered {answered[job]} times" for job in jobs if answered[job] != 1]
    found += [f"reason: {job} waits for no stated reason" for job, why in plan.reasons.items() if not why.message]
    for placement in plan.placements:
        if placement.job not in jobs:
            found.append(f"gang: {placement.job} does not wait")
            continue
        found += _placement(jobs[placement.job], placement, sites, states)
    held = list(snapshot.held) + [_leg(jobs[p.job], p, i) for p in plan.placements if p.job in jobs for i in _legs(p)]
    found += _nodes(sites, held, {p.job for p in plan.placements})
    started = {(jobs[p.job].account, leg.flavor) for p in plan.placements if p.job in jobs for leg in p.legs}
    found += _quotas(snapshot.accounts, held, started)
    return tuple(found)


def _legs(placement: Placement) -> range:
    return range(len(placement.legs))


def _leg(job: PendingJob, placement: Placement, index: int) -> HeldLeg:
    leg = placement.legs[index]
    return HeldLeg(
        leg=f"{job.id}@{leg.site}", job=job.id, account=job.account, partner=job.account[:2], site=leg.site,
        flavor=leg.flavor, nodes=leg.nodes, priority=job.priority, started_ms=0, walltime_s=job.walltime_s,
    )  # fmt: skip


def _placement(
    job: PendingJob, placement: Placement, sites: dict[str, Site], states: dict[str, SiteState]
) -> list[str]:
    found = []
    where = [leg.site for leg in placement.legs]
    if job.sites and sorted(where) != sorted(set(job.sites)):
        found.append(f"gang: {job.id} runs at {where} and not at all of {sorted(set(job.sites))}")
    if not job.sites and len(where) != 1:
        found.append(f"gang: {job.id} runs at {len(where)} sites and not at one")
    for leg in placement.legs:
        site = sites.get(leg.site)
        if site is None or (job.sites and leg.site not in job.sites):
            found.append(f"territory: {job.id} may not run at {leg.site}")
            continue
        if leg.site in job.denied or leg.site in job.unfit:
            found.append(f"policy: {job.id} is denied at {leg.site}")
        if leg.flavor != site.flavor.id or (job.flavors and leg.flavor not in job.flavors):
            found.append(f"flavor: {job.id} does not accept {site.flavor.id} at {leg.site}")
        if states[leg.site] is not SiteState.ACTIVE:
            found.append(f"site_state: {job.id} starts at {leg.site}, which is {states[leg.site].value}")
        if sum(leg.nodes.values()) != job.gpus or any(gpus % job.gpus_per_worker for gpus in leg.nodes.values()):
            found.append(f"gang: {job.id} gets {leg.nodes} for {job.gpus} GPUs in workers of {job.gpus_per_worker}")
        if any(gpus < 1 for gpus in leg.nodes.values()):
            found.append(f"gang: {job.id} gets an empty node at {leg.site}")
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


def _quotas(accounts: tuple[Account, ...], held: list[HeldLeg], started: set[tuple[str, str]]) -> list[str]:
    """Check every limit above an account that started something, by summing the tree from scratch."""
    parents = {account.id: account.parent for account in accounts} | {"": None}
    children: dict[str, list[str]] = defaultdict(list)
    for name, parent in sorted(parents.items()):
        if parent is not None:
            children[parent].append(name)
    quotas = {(quota.account, quota.flavor): quota for account in accounts for quota in account.quotas}
    used: Counter[tuple[str, str]] = Counter()
    for leg in held:
        used[leg.account if leg.account in parents else "", leg.flavor] += leg.gpus
    found = []
    for account, flavor in sorted(started):
        if (account, flavor) not in quotas:
            found.append(f"quota: {account} declares no {flavor}")
        node: str | None = account
        while node is not None:
            found += _limit(node, flavor, parents[node] is None, children, quotas, used)
            node = parents[node]
    return sorted(set(found))


def _limit(
    node: str,
    flavor: str,
    top: bool,
    children: dict[str, list[str]],
    quotas: dict[tuple[str, str], Quota],
    used: Counter[tuple[str, str]],
) -> list[str]:
    own, usage = _sums(node, flavor, children, quotas, used)
    quota = quotas.get((node, flavor))
    borrowing = 0 if top else (quota.borrowing_limit if quota else None)
    if borrowing is not None and usage > own + borrowing:
        return [f"quota: {node or 'the consortium'} holds {usage} {flavor} of {own} and {borrowing} to borrow"]
    return []


def _sums(
    node: str,
    flavor: str,
    children: dict[str, list[str]],
    quotas: dict[tuple[str, str], Quota],
    used: Counter[tuple[str, str]],
) -> tuple[int, int]:
    """What the node and those below it own together, and what they use of it."""
    quota = quotas.get((node, flavor))
    own, usage = quota.nominal if quota else 0, used[node, flavor]
    for child in children.get(node, ()):
        child_own, child_usage = _sums(child, flavor, children, quotas, used)
        below = quotas.get((child, flavor))
        kept = max(0, child_own - below.lending_limit) if below and below.lending_limit is not None else 0
        own += child_own - kept
        usage += max(0, child_usage - kept)
    return own, usage
