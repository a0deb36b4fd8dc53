"""Evictions, judged from scratch: part of the independent check of a plan.

Sums and comparisons over the legs as they are listed, in the order in which the plan evicts. Where the plan does not
tell an order (placements against evictions), the doubt speaks for the plan.
"""

from __future__ import annotations

from collections import Counter
from itertools import groupby

from consortium.scheduler.check_quota import Books, Used
from consortium.scheduler.types import Eviction, EvictionRule, HeldLeg, PendingJob, Plan, Snapshot


def wrong_evictions(snapshot: Snapshot, plan: Plan) -> list[str]:
    """Every eviction that is nobody's right, of somebody who is protected, wrongly told, or beyond the budget."""
    if plan.evictions and not snapshot.settings.preemption:
        return ["eviction: somebody is evicted, and preemption is off"]
    legs: dict[str, list[HeldLeg]] = {}
    for leg in snapshot.held:
        legs.setdefault(leg.job, []).append(leg)
    jobs = {job.id: job for job in snapshot.pending}
    placed = {placement.job for placement in plan.placements}
    told = [item.job for item in plan.evictions]
    found = [f"eviction: {job} is evicted twice" for job in sorted({job for job in told if told.count(job) > 1})]
    rights = _Rights(snapshot, plan)
    for name, group in groupby(plan.evictions, key=lambda item: item.for_job):
        evictions = list(group)
        if name not in jobs or name in placed:
            found.append(f"eviction: {name}, for which others are evicted, does not wait")
            continue
        known = [item for item in evictions if item.job in legs]
        found += [f"eviction: {item.job} holds nothing" for item in evictions if item.job not in legs]
        for item in known:
            found += _protected(snapshot, jobs[name], item, legs[item.job])
        found += _budget(snapshot, jobs[name], known, legs)
        found += rights.wrong(jobs[name], known, legs)
    return found


def _protected(snapshot: Snapshot, job: PendingJob, item: Eviction, legs: list[HeldLeg]) -> list[str]:
    found = []
    if any(leg.stopping_for for leg in legs):
        found.append("stops already")
    own = item.rule is EvictionRule.OWN
    if own and not all(leg.preemptible for leg in legs):
        found.append("may not be preempted")
    if any(snapshot.now_ms - leg.started_ms < snapshot.settings.min_run_s * 1000 for leg in legs):
        found.append("ran for less than min_run_s")
    if own and any(leg.priority.rank < job.priority.rank for leg in legs):
        found.append(f"is of a higher class than {job.id}")
    if item.gpus != sum(sum(leg.nodes.values()) for leg in legs):
        found.append(f"does not hold {item.gpus} GPUs")
    if item.lost_gpu_ms != sum(_lost_ms(leg, snapshot.now_ms) * sum(leg.nodes.values()) for leg in legs):
        found.append(f"does not lose {item.lost_gpu_ms} GPU-ms")
    return [f"eviction: {item.job} {why}" for why in found]


def _lost_ms(leg: HeldLeg, now_ms: int) -> int:
    kept = [leg.started_ms, leg.checkpoint_ms]
    if leg.checkpoint_every_s:
        kept.append(
            leg.started_ms
            + (now_ms - leg.started_ms) // (leg.checkpoint_every_s * 1000) * leg.checkpoint_every_s * 1000
        )
    return max(0, now_ms - max(kept))


def _budget(
    snapshot: Snapshot, job: PendingJob, evictions: list[Eviction], legs: dict[str, list[HeldLeg]]
) -> list[str]:
    settings = snapshot.settings
    evicted, asked = sum(item.gpus for item in evictions), job.gpus * max(1, len(job.sites))
    waited_ms = snapshot.now_ms - job.created_ms
    one_leg = sum(len(legs[item.job]) for item in evictions) <= 1
    patient = waited_ms < settings.min_run_s * 1000
    percent = settings.disruption_percent * (1 if patient else 2)
    if not one_leg and evicted * 100 > percent * asked:
        return [f"eviction: {evicted} GPUs are evicted for {asked} of {job.id}"]
    return []


class _Rights:
    """What everybody holds while the plan evicts, job by job."""

    def __init__(self, snapshot: Snapshot, plan: Plan) -> None:
        self._books = Books(snapshot.accounts)
        self._homes = {view.site.id: view.site.partner for view in snapshot.sites}
        self._flavors = {view.site.id: view.site.flavor.id for view in snapshot.sites}
        soon_ms = snapshot.now_ms + snapshot.settings.stop_s * 1000 + 1000
        self._used: Used = self._books.used(
            leg for leg in snapshot.held if not leg.stopping_for and leg.ends_ms > soon_ms
        )
        """Without what stops or ends by then: the least that accounts will hold."""
        self._most: Used = self._books.used(leg for leg in snapshot.held if not leg.stopping_for)
        """With what has been placed and promised: the most."""
        jobs = {job.id: job for job in snapshot.pending}
        served = {leg.stopping_for for leg in snapshot.held if leg.stopping_for in jobs}
        for placement in plan.placements:
            job = jobs[placement.job]
            lasts = snapshot.now_ms + job.walltime_s * 1000 > soon_ms
            for taken in placement.legs:
                self._most[self._books.home(job.account), taken.flavor] += taken.gpus
                if job.id in served and lasts:
                    self._used[self._books.home(job.account), taken.flavor] += taken.gpus
        waiting = served - {placement.job for placement in plan.placements}
        promised = {(leg.stopping_for, leg.flavor) for leg in snapshot.held if leg.stopping_for in waiting}
        for name, flavor in sorted(promised):
            self._promise(jobs[name], flavor, sure=sum(other == name for other, _ in promised) == 1)
        for item in plan.reservations:
            for taken in item.legs if jobs[item.job].nominated and item.start_ms <= soon_ms else ():
                if (item.job, taken.flavor) not in promised:
                    self._most[self._books.home(jobs[item.job].account), taken.flavor] += taken.gpus

    def _promise(self, job: PendingJob, flavor: str, *, sure: bool) -> None:
        """Count a job as holding GPUs of the flavor; where it is not `sure` that of this one, for the plan."""
        gpus = job.gpus * self._legs_of(job, flavor)
        self._most[self._books.home(job.account), flavor] += gpus
        if sure or job.sites:
            self._used[self._books.home(job.account), flavor] += gpus

    def wrong(self, job: PendingJob, evictions: list[Eviction], legs: dict[str, list[HeldLeg]]) -> list[str]:
        """Who of those evicted for the job may not be; afterwards they are gone, and the job holds its GPUs."""
        flavors = {self._flavors[site] for site in job.sites if site in self._flavors} or {
            leg.flavor for item in evictions for leg in legs[item.job]
        }
        need = {flavor: job.gpus * self._legs_of(job, flavor) for flavor in flavors}
        found = []
        for item in evictions:
            rights = [
                flavor for flavor in sorted(need) if self._right(job, need[flavor], flavor, item, evictions, legs)
            ]
            if not rights:
                found.append(f"eviction: {job.id} has no right to evict {item.job} as {item.rule.value}")
        for item in evictions:
            gone = self._books.used(legs[item.job])
            self._used.subtract(gone)
            self._most.subtract(gone)
        for flavor in need:
            self._promise(job, flavor, sure=len(need) == 1)
        return found

    def _legs_of(self, job: PendingJob, flavor: str) -> int:
        return sum(self._flavors.get(site) == flavor for site in set(job.sites)) if job.sites else 1

    def _right(
        self,
        job: PendingJob,
        gpus: int,
        flavor: str,
        item: Eviction,
        evictions: list[Eviction],
        legs: dict[str, list[HeldLeg]],
    ) -> bool:
        leg = legs[item.job][0]
        if item.rule is EvictionRule.OWN:
            lower = leg.priority.rank > job.priority.rank and self._within(job.account, "", flavor, gpus)
            return leg.account == job.account and (lower or (bool(job.sites) and leg.anywhere))
        if item.rule is EvictionRule.GUEST:
            at_home = any(self._homes.get(part.site) == job.account[:2] for part in legs[item.job])
            both_gangs = len(job.sites) > 1 and len(legs[item.job]) > 1
            if both_gangs and (job.priority.rank, job.id) > (leg.priority.rank, leg.job):
                return False
            return at_home and leg.account[:2] != job.account[:2] and self._within(job.account, "", flavor, gpus)
        if leg.account == job.account or not self._within(job.account, leg.account, flavor, gpus):
            return False
        together = [
            sum(sum(part.nodes.values()) for part in legs[other.job] if part.flavor == flavor)
            for other in evictions
            if other.rule is EvictionRule.BORROWER
            and self._branch(legs[other.job][0].account, job.account) == self._branch(leg.account, job.account)
        ]
        own, usage = self._held(leg.account, job.account, flavor, self._most)
        return usage - own > sum(together) - max(together)

    def _within(self, account: str, other: str, flavor: str, gpus: int) -> bool:
        before = self._held(account, other, flavor, self._used)[1]
        with_job = Counter(self._used)
        with_job[self._books.home(account), flavor] += gpus
        own, usage = self._held(account, other, flavor, with_job)
        return usage <= own or usage == before

    def _branch(self, account: str, other: str) -> str:
        """The highest account above `account` that is not above `other` too; empty where `account` is above it."""
        shared = set(self._books.line(other)) if other else {""}
        branch = [node for node in self._books.line(account) if node not in shared]
        return branch[-1] if branch else ""

    def _held(self, account: str, other: str, flavor: str, used: Used) -> tuple[int, int]:
        branch = self._branch(account, other)
        if branch:
            return self._books.sums(branch, flavor, used)
        return self._books.nominal(self._books.home(account), flavor), used[self._books.home(account), flavor]
