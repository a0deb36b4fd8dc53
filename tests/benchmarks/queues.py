"""The workload of Kueue's own scheduler benchmark, larger: 10 cohorts of 100 queues, 50 jobs each, run to the end.

Kueue's generator (test/performance/scheduler) gives a queue a nominal quota of 20, a borrowing limit of 100, and 350
small, 100 medium and 50 large jobs of 1, 5 and 20 units that run for 200, 500 and 1000 ms. Here a queue gets a
tenth of them, 50, so that 1,000 queues have 50,000 jobs. A cohort is a partner with one site of 250 nodes of 8 GPUs, a
queue is a project under it.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from consortium.domain.job import Priority
from consortium.domain.partner import Cotenancy, SiteState
from consortium.domain.quota import Account
from consortium.scheduler import PendingJob, Plan, Scheduler, SiteView, Snapshot, leg_name
from tests.builders import NOW_MS, account, new_id, site

COHORTS = ("au", "be", "br", "ca", "de", "es", "fr", "in", "it", "jp")
FLAVOR = "h100-sxm"
KINDS = (("small", 35, 1, 200), ("medium", 10, 5, 500), ("large", 5, 20, 1000))
"""Name, jobs per queue, GPUs, run time in milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run took."""

    jobs: int
    seconds: float
    cycles: int
    plans: tuple[Plan, ...]


def federation(queues: int = 100) -> Snapshot:
    """The empty federation: per cohort one site whose GPUs are the sum of its queues' nominal quotas."""
    sites, accounts = [], list[Account]()
    for cohort in COHORTS:
        nodes = (8,) * -(-queues * 20 // 8)
        sites.append(SiteView(site=site(f"{cohort}-1", FLAVOR, nodes, Cotenancy.OPEN), state=SiteState.ACTIVE))
        accounts.append(account(cohort, {FLAVOR: (0, 0, 0)}))
        accounts += [account(f"{cohort}/q{number:03d}", {FLAVOR: (20, 100, None)}) for number in range(queues)]
    return Snapshot(now_ms=NOW_MS, sites=tuple(sites), accounts=tuple(accounts), held=(), pending=())


def workload(queues: int = 100, seed: int = 0) -> list[tuple[PendingJob, int]]:
    """Jobs with their run time in milliseconds, in the order of their submission, all at one instant."""
    draw = random.Random(seed)
    made: list[tuple[PendingJob, int]] = []
    for cohort in COHORTS:
        for queue in range(queues):
            for _, count, gpus, run_ms in KINDS:
                made += [(_job(f"{cohort}/q{queue:03d}", gpus), run_ms) for _ in range(count)]
    draw.shuffle(made)
    return [(replace(job, id=new_id("job", number)), run_ms) for number, (job, run_ms) in enumerate(made)]


def _job(queue: str, gpus: int) -> PendingJob:
    return PendingJob(
        id="", account=queue, priority=Priority.NORMAL, created_ms=NOW_MS, gpus=gpus, gpus_per_worker=1,
        flavors=(FLAVOR,), walltime_s=3600, sites=(f"{queue[:2]}-1",),
    )  # fmt: skip


def run(queues: int = 100, commit: Callable[[Plan, int], None] | None = None, step_ms: int = 100) -> Outcome:
    """Submit everything, admit, run and end it on virtual time; the wall time of all scheduling (and committing)."""
    scheduler = Scheduler(federation(queues))
    waiting = workload(queues)
    run_ms = {job.id: ms for job, ms in waiting}
    begun = time.perf_counter()
    for job, _ in waiting:
        scheduler.submit(job)
    ends: list[tuple[int, str]] = []
    plans, admitted = [], 0
    while True:
        plan = scheduler.cycle(reasons=False)
        if commit is not None:
            commit(plan, scheduler.now_ms)
        plans.append(plan)
        admitted += len(plan.placements)
        for placement in plan.placements:
            end_ms = scheduler.now_ms + run_ms[placement.job]
            heapq.heappush(ends, (end_ms, leg_name(placement.job, placement.legs[0].site)))
        if not ends:
            break
        now_ms = -(-ends[0][0] // step_ms) * step_ms
        scheduler.advance(now_ms)
        while ends and ends[0][0] <= now_ms:
            scheduler.end(heapq.heappop(ends)[1])
    seconds = time.perf_counter() - begun
    assert admitted == len(waiting), f"{len(waiting) - admitted} jobs never started"
    return Outcome(jobs=admitted, seconds=seconds, cycles=len(plans), plans=tuple(plans))
