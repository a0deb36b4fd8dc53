"""A closed run of the scheduler: when each waiting job starts if nothing new comes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from heapq import heappop, heappush
from typing import Literal

from consortium.scheduler.board import held_leg
from consortium.scheduler.cycle import Scheduler
from consortium.scheduler.types import HeldLeg, PendingJob, Plan, Snapshot

HORIZON_CYCLES = 2_000
"""Cycles after which a forecast gives up on what has not started."""
HORIZON_LOOKS = 1_000_000
"""And how often it looks at a line of jobs of one shape: a cycle looks at each. Half a minute of work at the most."""

EARLY = 8
"""A leg may well end after an eighth of the run time expected of it: run times spread over an order of magnitude."""

Run = Literal["walltime", "expected", "soon"]


def forecast(
    snapshot: Snapshot,
    *,
    run: Run = "walltime",
    jobs: Collection[str] | None = None,
    looks: int = HORIZON_LOOKS,
) -> dict[str, int]:
    """Return job id to its start (UTC Unix milliseconds) in a closed run of the scheduler.

    Legs run for their whole walltime, for as long as they are expected to, or end soon (`EARLY`). Stops when all of
    `jobs` (None: all that wait) have started, or after `HORIZON_CYCLES`, or the cycle in which it has looked at `looks`
    lines; jobs without a start in that time are left out. An evicted job waits again, and keeps its first start.
    """
    closed = _Closed(snapshot, run)
    wanted = {job.id for job in snapshot.pending} if jobs is None else set(jobs)
    for _ in range(HORIZON_CYCLES):
        looks -= closed.lines
        plan = closed.step()
        wanted.difference_update(placement.job for placement in plan.placements)
        if not wanted or looks <= 0 or not closed.on():
            break
    return closed.starts


class _Closed:
    def __init__(self, snapshot: Snapshot, run: Run) -> None:
        self._scheduler = scheduler = Scheduler(snapshot)
        self._run = run
        self.starts: dict[str, int] = {}
        self._specs: dict[str, PendingJob] = {}
        self._ends: list[tuple[int, str]] = []
        self._due: dict[str, int] = {}
        self._others: list[int] = []
        """Instants at which something else than an end may let a job start: a window is over, a leg may be evicted."""
        for window in snapshot.windows:
            heappush(self._others, window.end_ms)
        for leg in scheduler.board.legs():
            self._end_at(leg, self._end_of(leg))
            self._ripens(leg)

    @property
    def lines(self) -> int:
        """How many shapes the jobs in line have."""
        return len(self._scheduler.queue.lines)

    def step(self) -> Plan:
        """One cycle, and what follows from it."""
        now_ms = self._scheduler.now_ms
        known = dict(self._scheduler.queue.jobs)
        plan = self._scheduler.cycle(reasons=False)
        for placement in plan.placements:
            job = known[placement.job]
            self._specs[job.id] = job
            self.starts.setdefault(job.id, now_ms)
            for placed in placement.legs:
                leg = held_leg(job, placed, now_ms)
                self._end_at(leg, self._end_of(leg))
                self._ripens(leg)
        for eviction in plan.evictions:
            for item in self._scheduler.board.by_job[eviction.job].values():
                self._end_at(item.held, item.ends_ms)
        return plan

    def on(self) -> bool:
        """Go to the next instant at which something may change; False where nothing does."""
        scheduler = self._scheduler
        apart = [job.not_before_ms for job in scheduler.queue.apart.values() if job.waits_for is None]
        while self._ends and self._due.get(self._ends[0][1]) != self._ends[0][0]:
            heappop(self._ends)
        while self._others and self._others[0] <= scheduler.now_ms:
            heappop(self._others)
        instants = [*apart, *([self._ends[0][0]] if self._ends else []), *self._others[:1]]
        if not instants:
            return False
        now_ms = max(min(instants), scheduler.now_ms + 1)
        scheduler.advance(now_ms)
        while self._ends and self._ends[0][0] <= now_ms:
            end_ms, leg = heappop(self._ends)
            if self._due.get(leg) == end_ms:
                self._ended(leg)
        return True

    def _ended(self, leg: str) -> None:
        del self._due[leg]
        held = self._scheduler.board.items[leg].held
        self._scheduler.end(leg)
        spec = self._specs.get(held.job)
        if held.stopping_for and spec is not None and held.job not in self._scheduler.board.by_job:
            self._scheduler.submit(replace(spec, nominated=False))

    def _end_at(self, leg: HeldLeg, end_ms: int) -> None:
        end_ms = max(end_ms, self._scheduler.now_ms + 1)
        self._due[leg.leg] = end_ms
        heappush(self._ends, (end_ms, leg.leg))

    def _ripens(self, leg: HeldLeg) -> None:
        """Note when the leg may be evicted, where it may be: it is a guest, or its account holds what it borrowed."""
        board, settings = self._scheduler.board, self._scheduler.settings
        if not settings.preemption or not leg.preemptible or leg.stopping_for:
            return
        guest = leg.site in board.views and board.views[leg.site].site.partner != leg.partner
        if guest or any(board.quota.above(node, leg.flavor) for node in board.quota.path(leg.account)[:-1]):
            heappush(self._others, leg.started_ms + settings.min_run_s * 1000)

    def _end_of(self, leg: HeldLeg) -> int:
        if self._run == "walltime" or leg.stopping_for:
            return leg.ends_ms
        expected_s = leg.expected_s or leg.walltime_s
        if self._run == "expected":
            return min(leg.ends_ms, leg.started_ms + expected_s * 1000)
        ran_ms = max(0, self._scheduler.now_ms - leg.started_ms)
        return min(leg.ends_ms, self._scheduler.now_ms + max(expected_s * 1000 - ran_ms, ran_ms) // EARLY)
