"""The event loop: virtual time jumps from one thing that happens to the next, and the scheduler decides in between.

At one instant, in this order: jobs finish, evicted jobs have stopped, sites change, windows open and close, jobs are
submitted; then, if anything changed and the last cycle is `cycle_s` ago, the scheduler has a cycle (else it has one as
soon as it is). While jobs wait there is a cycle at least every `recheck_s`, because time alone can make a running job
evictable.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import IntEnum
from typing import NamedTuple

from consortium.config import Scenario
from consortium.domain import ids
from consortium.domain.job import Priority
from consortium.domain.partner import SiteState
from consortium.domain.units import MS_PER_HOUR
from consortium.scheduler import (
    HeldLeg,
    LegPlacement,
    Plan,
    RunTimes,
    Scheduler,
    Snapshot,
    expected_s,
    fair_advance,
    leg_name,
    never_fits,
    observe,
)
from consortium.simulate import world
from consortium.simulate.estimates import Estimates
from consortium.simulate.events import Event, Kind
from consortium.simulate.figures import Totals
from consortium.simulate.workload import Job
from consortium.simulate.world import EPOCH_MS


class Happens(IntEnum):
    """What the clock may jump to, in the order in which it takes effect at one instant."""

    FINISH = 0
    STOPPED = 1
    SITE = 2
    WINDOW = 3
    HISTORY = 4
    WAKE = 5
    """Nothing but time to look again."""


class _Change(NamedTuple):
    """A site becomes `state`; or, with `recall` set, the notice of its withdrawal is over."""

    site: str
    state: SiteState
    notice_ms: int
    recall: bool = False


class _Course:
    """How far a job has come. `attempt` counts starts and stops, to tell an end apart that no longer applies."""

    __slots__ = ("attempt", "gain_ms", "job", "kept_ms", "legs", "started_ms", "stopping")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.kept_ms = 0
        """Run time that training checkpoints of earlier attempts keep."""
        self.gain_ms = 0
        """What the attempt that stops now adds to it."""
        self.attempt = 0
        self.started_ms = 0
        self.legs: tuple[LegPlacement, ...] = ()
        self.stopping = False


class Engine:
    """One replay. `run` once; `totals` and `now_ms` hold the outcome."""

    def __init__(
        self,
        scenario: Scenario,
        jobs: Sequence[Job],
        see: Callable[[Event], None],
        estimates: Estimates | None = None,
    ) -> None:
        self.totals = Totals()
        self.now_ms = 0
        start = world.snapshot(scenario)
        self._see = see
        self._estimates = estimates
        self._fresh: list[_Course] = []
        """Where starts are estimated: jobs that no cycle has seen."""
        self._jobs = jobs
        self._scenario = scenario
        self._settings = start.settings
        self._borders = world.Borders(scenario)
        self._scheduler = Scheduler(start)
        self._views = {view.site.id: view for view in start.sites}
        self._accounts = start.accounts
        self._history = start.history
        self._history_ms = 0
        """Until when the history counts."""
        self._ticking = False
        self._run_times = RunTimes()
        self._courses: dict[str, _Course] = {}
        """Jobs that were submitted and have not finished."""
        self._held: dict[tuple[str, str, str], int] = {}
        """GPUs by account, flavor and site."""
        self._recalls: dict[str, int] = {}
        """When the notice of a site's withdrawal is over."""
        self._waiting = 0
        self._heap: list[tuple[int, Happens, int, object, int]] = []
        self._pushed = 0
        self._ahead = 0
        """Entries of the heap that change something by themselves."""
        self._changed = False
        self._cycle_ms = -(10**15)
        self._wake_ms = -1
        self._sift_out()
        for change in scenario.changes.values():
            notice_ms = round(change.notice_h * MS_PER_HOUR)
            self._push(round(change.at_h * MS_PER_HOUR), Happens.SITE, _Change(change.site, change.state, notice_ms))
        for window in start.windows:
            self._push(window.start_ms - EPOCH_MS, Happens.WINDOW, window)
            self._push(window.end_ms - EPOCH_MS, Happens.WINDOW, window)

    def run(self) -> Totals:
        """Replay the workload until every job has finished, or nothing lies ahead that could change anything."""
        at, jobs, heap = 0, self._jobs, self._heap
        while at < len(jobs) or heap:
            t_ms = heap[0][0] if heap else jobs[at].submit_ms
            if at < len(jobs):
                t_ms = min(t_ms, jobs[at].submit_ms)
            self.now_ms = t_ms
            self._scheduler.advance(EPOCH_MS + t_ms)
            while heap and heap[0][0] == t_ms:
                _, kind, _, what, attempt = heapq.heappop(heap)
                self._happen(kind, what, attempt)
            while at < len(jobs) and jobs[at].submit_ms == t_ms:
                self._submit(jobs[at])
                at += 1
            if self._waiting:
                self._decide(more=at < len(jobs))
        return self.totals

    def _happen(self, kind: Happens, what: object, attempt: int) -> None:
        if kind is Happens.WAKE:
            self._changed = self._changed or self.now_ms >= self._cycle_ms + self._scenario.recheck_s * 1000
            return
        if kind is Happens.HISTORY:
            self._ticking = any(self._held.values())
            self._advance_history()
            if self._ticking:
                self._tick()
            return
        self._ahead -= 1
        if kind is Happens.WINDOW:
            self._changed = True
        elif isinstance(what, _Change):
            self._change_site(what)
        elif isinstance(what, _Course) and what.attempt == attempt:
            if kind is Happens.STOPPED:
                self._stopped(what)
            elif not what.stopping:
                self._finish(what)

    def _submit(self, job: Job) -> None:
        self._see(Event(self.now_ms, Kind.SUBMIT, job, "", job.gpus, {}))
        if job.id not in self.totals.infeasible:
            course = self._courses[job.id] = _Course(job)
            self._wait(course)
            if self._estimates:
                self._fresh.append(course)

    def _wait(self, course: _Course) -> None:
        job = course.job
        left_s = expected_s(self._run_times, job.account, job.walltime_s, course.kept_ms // 1000)
        self._scheduler.submit(world.pending(job, self._borders, done_ms=course.kept_ms, expected_s=left_s))
        self._waiting += 1
        self._changed = True

    def _decide(self, *, more: bool) -> None:
        """Have a cycle if one is due; else see to it that the clock stops where one is."""
        if self._changed and self.now_ms >= self._cycle_ms + self._scenario.cycle_s * 1000:
            self._cycle()
        if self._changed:
            self._wake(self._cycle_ms + self._scenario.cycle_s * 1000)
        elif more or self._ahead:
            self._wake(self._cycle_ms + self._scenario.recheck_s * 1000)

    def _wake(self, t_ms: int) -> None:
        if not self.now_ms < self._wake_ms <= t_ms:
            self._wake_ms = t_ms
            self._push(t_ms, Happens.WAKE, None)

    def _cycle(self) -> None:
        self._cycle_ms = self.now_ms
        self._changed = False
        self.totals.cycles += 1
        self._carry_out(self._scheduler.cycle(reasons=False))
        for course in self._fresh:
            if self._estimates and not course.legs and self._estimates.wanted():
                self._estimates.keep(course.job.id, self._scheduler.snapshot())
        self._fresh.clear()

    def _carry_out(self, plan: Plan) -> None:
        if plan.placements and not self._ticking:
            self._advance_history()  # with nothing held: what went before fades
            self._tick()
        for placement in plan.placements:
            course = self._courses[placement.job]
            job = course.job
            course.attempt += 1
            course.started_ms = self.now_ms
            course.legs = placement.legs
            self._waiting -= 1
            self.totals.starts += 1
            for leg in placement.legs:
                self._count(job, leg, leg.gpus)
                self._see(Event(self.now_ms, Kind.START, job, leg.site, leg.gpus, leg.nodes))
            self._push(self.now_ms + job.run_ms - course.kept_ms, Happens.FINISH, course, course.attempt)
        for eviction in plan.evictions:
            course = self._courses[eviction.job]
            if course.stopping:
                continue
            gpus, ran_ms = course.job.gpus_in_all, self.now_ms - course.started_ms
            self.totals.evictions += 1
            self.totals.evicted_gpu_ms += gpus * ran_ms
            self.totals.lost_gpu_ms += gpus * self._stop(course)

    def _stop(self, course: _Course, *, checkpoint: bool = False) -> int:
        """Tell a job to stop; it does so after `stop_s`. Return how long it ran and will run for nothing, in ms.

        What it ran up to its last training checkpoint is kept; all of it where it writes one now.
        """
        ran_ms = self.now_ms - course.started_ms
        every_ms = course.job.checkpoint_every_s * 1000
        kept_ms = ran_ms - ran_ms % every_ms if every_ms else 0
        course.gain_ms = ran_ms if checkpoint else kept_ms
        course.stopping = True
        left_ms = course.job.walltime_s * 1000 - ran_ms
        stop_ms = min(self._settings.stop_s * 1000, left_ms)  # at its walltime's end it is killed
        self._push(self.now_ms + stop_ms, Happens.STOPPED, course, course.attempt)
        return ran_ms - course.gain_ms + stop_ms

    def _stopped(self, course: _Course) -> None:
        course.kept_ms += course.gain_ms
        course.attempt += 1
        course.stopping = False
        self._release(course, Kind.PREEMPT)
        self._wait(course)

    def _finish(self, course: _Course) -> None:
        job = course.job
        self._release(course, Kind.FINISH)
        del self._courses[job.id]
        self.totals.waits_ms[job.id] = self.now_ms - job.submit_ms - job.run_ms
        self._run_times = observe(self._run_times, job.account, job.walltime_s, job.run_ms // 1000)

    def _release(self, course: _Course, kind: Kind) -> None:
        for leg in course.legs:
            self._scheduler.end(leg_name(course.job.id, leg.site))
            self._count(course.job, leg, -leg.gpus)
            self._see(Event(self.now_ms, kind, course.job, leg.site, leg.gpus, leg.nodes))
        course.legs = ()
        self._changed = True

    def _count(self, job: Job, leg: LegPlacement, gpus: int) -> None:
        key = job.account, leg.flavor, leg.site
        self._held[key] = self._held.get(key, 0) + gpus

    def _change_site(self, change: _Change) -> None:
        if change.recall:
            if self._recalls.get(change.site) == self.now_ms:
                self._interrupt(change.site, checkpoint=True)
            return
        self._recalls.pop(change.site, None)
        self._views[change.site] = replace(self._views[change.site], state=change.state)
        self._scheduler.set_sites(tuple(self._views.values()))
        self._changed = True
        if change.state is SiteState.LOST:
            self._interrupt(change.site, checkpoint=False)
        elif change.state is SiteState.WITHDRAWN:
            self._recalls[change.site] = self.now_ms + change.notice_ms
            self._push(self._recalls[change.site], Happens.SITE, change._replace(recall=True))

    def _interrupt(self, site: str, *, checkpoint: bool) -> None:
        """Stop every job with a leg at the site."""
        for course in self._courses.values():
            if not course.stopping and any(leg.site == site for leg in course.legs):
                lost_ms = self._stop(course, checkpoint=checkpoint)
                self.totals.interruptions += 1
                self.totals.interrupted_lost_gpu_ms += course.job.gpus_in_all * lost_ms

    def _advance_history(self) -> None:
        """Bring what accounts borrowed and lent up to now, as if what is held had been held since the last time."""
        from_ms, self._history_ms = self._history_ms, self.now_ms
        held = [_as_one_leg(*key, gpus) for key, gpus in sorted(self._held.items()) if gpus]
        self._history = fair_advance(
            self._history, self._accounts, held, self._views.values(), self._settings, self.now_ms - from_ms
        )
        self._scheduler.set_history(self._history)

    def _tick(self) -> None:
        self._ticking = True
        self._push(self.now_ms + self._scenario.history_s * 1000, Happens.HISTORY, None)

    def _push(self, t_ms: int, kind: Happens, what: object, attempt: int = 0) -> None:
        self._pushed += 1
        self._ahead += kind < Happens.HISTORY
        heapq.heappush(self._heap, (t_ms, kind, self._pushed, what, attempt))

    def _sift_out(self) -> None:
        """Find the jobs that could never start, whatever ends."""
        empty = world.snapshot(self._scenario)
        known: dict[tuple[object, ...], str] = {}
        for job in self._jobs:
            shape = (job.account, job.gpus, job.gpus_per_worker, job.flavors, job.allowed, job.gang)
            if shape not in known:
                known[shape] = self._never(job, empty)
            if known[shape]:
                self.totals.infeasible[job.id] = known[shape]

    def _never(self, job: Job, empty: Snapshot) -> str:
        """Why the job could never start; empty where it could."""
        if job.allowed and not set(job.gang) <= set(job.allowed):
            return f"it needs sites {', '.join(job.gang)} and may run at {', '.join(job.allowed)} only"
        if job.allowed and not job.gang:
            empty = replace(empty, sites=tuple(view for view in empty.sites if view.site.id in job.allowed))
        reason = never_fits(empty, world.pending(job, self._borders))
        return reason.message if reason else ""


def _as_one_leg(account: str, flavor: str, site: str, gpus: int) -> HeldLeg:
    """One leg that stands for all of an account's at a site: the history asks for sums only."""
    return HeldLeg(
        leg=f"{account} {flavor} {site}",
        job="",
        account=account,
        partner=ids.partner_of(account),
        site=site,
        flavor=flavor,
        nodes={"": gpus},
        priority=Priority.NORMAL,
        started_ms=0,
        walltime_s=1,
    )
