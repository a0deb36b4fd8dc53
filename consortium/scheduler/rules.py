"""The rules a site passes or fails for a job, in the order in which `explain` shows them.

`standing` checks what cannot change within a cycle; `obstacle` what placements change. Both answer with the first rule
that fails, so that every site of the federation has exactly one answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from consortium.domain.partner import Site
from consortium.scheduler.board import Board, Layer
from consortium.scheduler.fit import demand, nodes_at, on_loan, quota_allows
from consortium.scheduler.types import PendingJob


class Rule(StrEnum):
    """Steps of the funnel, first to last."""

    TERRITORY = "territory"
    """The job runs where its data lives, or where its spec says."""
    POLICY = "policy"
    FLAVOR = "flavor"
    GANG_SIZE = "gang_size"
    """The empty site has nodes for the leg's workers."""
    QUOTA_LIMIT = "quota_limit"
    """The account could ever hold that much: nominal, borrowing limits, what its cohort could lend."""
    REFUSED = "refused"
    SITE_STATE = "site_state"
    WINDOW = "window"
    """Nodes are set aside in its time, or it has to avoid them because it failed there."""
    COTENANCY = "cotenancy"
    CAPACITY = "capacity"
    QUOTA = "quota"
    PRIORITY = "priority"
    """A job that is first in line has a reservation that this one would delay."""
    GANG_PARTNER = "gang_partner"
    """Every other site of the gang passes as well."""

    @property
    def stage(self) -> int:
        """The place of the rule in the funnel."""
        return _STAGES[self]

    @property
    def passes_with_time(self) -> bool:
        """Whether the obstacle goes away when running legs end."""
        return self in (Rule.WINDOW, Rule.COTENANCY, Rule.CAPACITY, Rule.QUOTA, Rule.PRIORITY)


RULES = tuple(Rule)
_STAGES = {rule: stage for stage, rule in enumerate(RULES)}


def site_demand(board: Board, job: PendingJob) -> dict[str, int]:
    """GPUs the job takes of each flavor: over all its sites, or at the one site it will get."""
    if job.sites:
        return demand(job, {site: board.views[site].site.flavor.id for site in job.sites if site in board.views})
    return {view.site.flavor.id: job.gpus for view in board.views.values()}


def standing(board: Board, job: PendingJob) -> dict[str, Rule | None]:
    """Site to the rule that keeps the job from it, whatever is free; None where there is no such rule. Sorted."""
    need = site_demand(board, job)
    answer: dict[str, Rule | None] = {}
    for site in sorted({*board.views, *job.sites}):
        known = board.views.get(site)
        answer[site] = Rule.TERRITORY if known is None else _standing_at(board, job, known.site, need)
    return answer


def _standing_at(board: Board, job: PendingJob, site: Site, need: dict[str, int]) -> Rule | None:
    if (permanent := permanent_obstacle(board, job, site, need)) is Rule.TERRITORY:
        return permanent
    if site.id in job.denied:
        return Rule.POLICY
    if permanent is not None:
        return permanent
    if site.id in job.unfit:
        return Rule.REFUSED
    return None if board.open(site.id) else Rule.SITE_STATE


def permanent_obstacle(board: Board, job: PendingJob, site: Site, need: dict[str, int]) -> Rule | None:
    """The rule that keeps the job from the site even if all else ends and every policy permits it."""
    if job.sites and site.id not in job.sites:
        return Rule.TERRITORY
    if job.flavors and site.flavor.id not in job.flavors:
        return Rule.FLAVOR
    if board.largest_leg(site, job.gpus_per_worker) < job.gpus or job.min_sites > max(1, len(job.sites)):
        return Rule.GANG_SIZE
    if board.quota.potential(job.account, site.flavor.id).gpus < need[site.flavor.id]:
        return Rule.QUOTA_LIMIT
    return None


def obstacle(board: Board, job: PendingJob, site: str, need: dict[str, int], layers: Sequence[Layer]) -> Rule | None:
    """The rule that keeps the job from a site it may use, in the present (first layer) and under reservations."""
    present, flavor = layers[:1], board.flavors[site]
    barred = board.barred(job, site, board.now_ms)
    if nodes_at(job, site, present, barred=barred) is None:
        if barred and nodes_at(job, site, present) is not None:
            return Rule.WINDOW
        return Rule.COTENANCY if nodes_at(job, site, present, cotenancy=False) is not None else Rule.CAPACITY
    if not quota_allows(job, flavor, need[flavor], present):
        return Rule.QUOTA
    if site in board.claimed and on_loan(board, job, site, need[flavor]):
        return Rule.PRIORITY
    if nodes_at(job, site, layers, barred=barred) is None or not quota_allows(job, flavor, need[flavor], layers):
        return Rule.PRIORITY
    return None


def obstacles(
    board: Board, job: PendingJob, answer: dict[str, Rule | None], layers: Sequence[Layer]
) -> dict[str, Rule | None]:
    """Complete the answer of `standing` with the rules that depend on what is taken and reserved."""
    need = site_demand(board, job)
    full = {site: rule or obstacle(board, job, site, need, layers) for site, rule in answer.items()}
    if job.sites and any(full[site] for site in job.sites):
        full = {site: rule or Rule.GANG_PARTNER for site, rule in full.items()}
    return full


def decisive(job: PendingJob, answer: dict[str, Rule | None]) -> str:
    """The site whose obstacle stands for the whole job.

    A gang is held up by its most lasting obstacle; a job that may run anywhere is nearest to starting at the site
    that passed most rules. Ties go to the account's own partner, then by site id.
    """
    partner = job.account[:2]
    if job.sites:
        return min(job.sites, key=lambda site: (_stage(answer[site]), site[:2] != partner, site))
    return min(answer, key=lambda site: (-_stage(answer[site]), site[:2] != partner, site))


def _stage(rule: Rule | None) -> int:
    return len(RULES) if rule is None else rule.stage
