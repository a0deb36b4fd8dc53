"""One scheduling cycle over a board and a queue, and the scheduler that keeps both between cycles.

Lines of jobs of one shape are served in order: jobs GPUs were taken back for, then by priority class, then by
fair-share level, then by expected remaining work and age (`queue.order_key`). A job that fits in what is free, and in
the picture of every reservation that its walltime reaches, starts. One that does not fit but is within its nominal may
take back what was lent (`preempt`). The first jobs that only time will help get reservations: the earliest instant at
which each fits if every held leg runs for its whole walltime, with the nodes and the quota it takes then. A job behind
may start only if it ends before a reservation or fits beside it, so that it never delays the first in line (EASY
backfill; Lifka 1995, "The ANL/IBM SP scheduling system").

Within a cycle GPUs and quota are only taken, never freed. So once a job is blocked, so is every later job of the same
shape that does not end sooner: it shares the verdict and its `Reason` object. One that ends sooner may fare better
where a reservation or a window is in the way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from consortium.domain.decision import Reason
from consortium.scheduler.board import Board, Layer, Shadow, held_leg, stopping
from consortium.scheduler.fair import Pool
from consortium.scheduler.fit import find_legs
from consortium.scheduler.fixes import suggest
from consortium.scheduler.preempt import Choice, Evictor, evictions
from consortium.scheduler.queue import Key, Line, Queue
from consortium.scheduler.reasons import Case, describe, instant, makes_room, waits_out
from consortium.scheduler.reserve import Planner
from consortium.scheduler.rules import Rule, decisive, obstacles, permanent_obstacle, site_demand
from consortium.scheduler.types import (
    Eviction,
    History,
    LegPlacement,
    PendingJob,
    Placement,
    Plan,
    Reservation,
    Settings,
    SiteView,
    Snapshot,
)

Rank = tuple[bool, int, tuple[int, ...]]
"""What goes before expected work and age: not nominated, priority class, fair-share level."""


def schedule(snapshot: Snapshot) -> Plan:
    """Decide which pending jobs start now and where, whom they evict, and why every other one waits."""
    return Scheduler(snapshot).cycle()


def apply(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """Return the snapshot after the plan: placed jobs hold GPUs and quota, the legs of evicted ones are stopping."""
    jobs = {job.id: job for job in snapshot.pending}
    placed = {placement.job for placement in plan.placements}
    started = [
        held_leg(jobs[placement.job], leg, snapshot.now_ms) for placement in plan.placements for leg in placement.legs
    ]
    evicted = {eviction.job: eviction.for_job for eviction in plan.evictions}
    nominated = set(evicted.values())
    stop_s = snapshot.settings.stop_s
    return replace(
        snapshot,
        held=tuple(
            stopping(leg, evicted[leg.job], snapshot.now_ms, stop_s) if leg.job in evicted else leg
            for leg in snapshot.held
        )
        + tuple(started),
        pending=tuple(
            replace(job, nominated=True) if job.id in nominated else job
            for job in snapshot.pending
            if job.id not in placed
        ),
    )


def never_fits(snapshot: Snapshot, job: PendingJob) -> Reason | None:
    """Say why the job could never start, whatever ends and whatever policies permit; None where it could.

    Codes: `quota_never`, `gang_size`, `flavor`, `territory` (it names a site that is not in the consortium).
    """
    board = Board(replace(snapshot, held=(), pending=()))
    need = site_demand(board, job)
    answer: dict[str, Rule | None] = {site: Rule.TERRITORY for site in job.sites if site not in board.views}
    for site, view in board.views.items():
        answer[site] = permanent_obstacle(board, job, view.site, need)
    site = decisive(job, answer)
    rule = answer[site]
    return None if rule is None else describe(Case(board, job, site, (board,), answer), rule)


class Scheduler:
    """What waits and what is held, kept up to date by small changes; `cycle` decides and books its decisions.

    `Scheduler(snapshot).cycle()` is `schedule(snapshot)`. After any change, `schedule(scheduler.snapshot())` is what
    `scheduler.cycle()` would answer.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._settings = snapshot.settings
        self.board = Board(snapshot)
        self.queue = Queue(self.board, self._settings, snapshot.pending)
        self._windows = snapshot.windows
        self._history = snapshot.history
        self._planner = Planner(self.board)
        self.pool = Pool(snapshot.sites, snapshot.accounts, snapshot.history, self._settings)

    @property
    def now_ms(self) -> int:
        """The instant of the picture."""
        return self.board.now_ms

    def advance(self, now_ms: int) -> None:
        """Let time pass; jobs whose backoff is over line up."""
        self.board.now_ms = now_ms
        self.queue.release()

    def submit(self, job: PendingJob) -> None:
        """Let a job wait: a new one, or one that waits again."""
        self.queue.add(job)

    def end(self, leg: str) -> None:
        """Let the GPUs and quota of a leg be free; raises KeyError where it holds none."""
        item = self.board.items[leg]
        self.board.end(item)
        self.pool.forget(self.board.quota.path(item.held.account))

    def set_sites(self, views: Iterable[SiteView]) -> None:
        """Set what sites there are, their states and cordoned nodes."""
        sites = tuple(views)
        self.board.lay(sites, self.board.accounts, self.board.legs(), self._windows)
        self.queue.redraw()
        self._planner = Planner(self.board)
        self.pool = Pool(sites, self.board.accounts, self._history, self._settings)

    def set_history(self, history: Iterable[History]) -> None:
        """Set what accounts borrowed and lent so far."""
        self._history = tuple(history)
        self.pool = Pool(self.board.views.values(), self.board.accounts, self._history, self._settings)

    def snapshot(self) -> Snapshot:
        """Return the picture as a value."""
        return Snapshot(
            now_ms=self.board.now_ms,
            sites=tuple(self.board.views.values()),
            accounts=self.board.accounts,
            held=self.board.legs(),
            pending=tuple(self.queue),
            windows=self._windows,
            history=self._history,
            settings=self._settings,
        )

    def cycle(self, *, reasons: bool = True) -> Plan:
        """Decide, and book it: placed jobs hold, legs of evicted ones are stopping. `reasons` cost most of the time."""
        cycle = Cycle(self, reasons=reasons)
        cycle.run()
        return cycle.plan()

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    @property
    def planner(self) -> Planner:
        """What finds reservations."""
        return self._planner


class Blocked(NamedTuple):
    """The verdict on jobs of a line with at least this walltime: they do not start."""

    walltime_s: int
    reason: Reason | None
    waits: bool
    """Whether it goes away when legs end: such jobs are in line."""


class Cycle:
    """A cycle under way."""

    def __init__(self, scheduler: Scheduler, *, reasons: bool = True) -> None:
        self.board = scheduler.board
        self.queue = scheduler.queue
        self.shadows: list[Shadow] = []
        self._firm: list[Shadow] = []
        """Of these, the reservations of nominated jobs and of those within their partner's nominal."""
        self._settings = scheduler.settings
        self._pool = scheduler.pool
        self._planner = scheduler.planner
        self._evictor = Evictor(self.board, self._settings, self.queue.jobs)
        self.board.claimed = {}
        self._reasons = reasons
        self._placements: list[Placement] = []
        self._evictions: list[Eviction] = []
        self._blocked: dict[Line, list[Blocked]] = {}
        self._own: dict[str, Reason] = {}
        """Reasons of single jobs, where they differ from their line's."""
        self._moved: set[str] = set()
        """Partners whose accounts hold more than when the cycle began."""
        self._spoken_for = self.queue.spoken_for()
        self._binding = {
            flavor: self.board.quota.binds(flavor, gpus) for flavor, gpus in self._pool.totals.items()
        }  # fmt: skip

    def run(self, until: PendingJob | None = None) -> None:
        """Serve everybody; stop at the turn of the job `until`."""
        heap: list[tuple[Rank, Key, Line]] = []
        for line in self.queue.lines.values():
            heap.append((self.rank(line, line.head), line.keys[0], line))
        heapify(heap)
        while heap:
            rank, key, line = heappop(heap)
            job = self.queue.jobs[key[1]]
            fresh = self.rank(line, job) if job.account[:2] in self._moved else rank
            if fresh > rank and heap and heap[0][:2] < (fresh, key):
                heappush(heap, (fresh, key, line))
                continue
            if until is not None and (fresh, key) >= self.turn(until):
                return
            following = self._serve(line, job, key)
            if following is not None:
                heappush(heap, (self.rank(line, following), self.queue.key(following), line))

    def plan(self) -> Plan:
        """What has been decided."""
        return Plan(
            placements=tuple(self._placements),
            reasons=self._all_reasons() if self._reasons else {},
            reservations=tuple(
                Reservation(job=shadow.job.id, start_ms=shadow.start_ms, legs=shadow.legs) for shadow in self.shadows
            ),
            evictions=tuple(self._evictions),
        )

    def turn(self, job: PendingJob) -> tuple[Rank, Key]:
        """When the job is served: its place in the order of service, given what was placed so far."""
        return self.rank(self.queue.line_of(job.id), job), self.queue.key(job)

    def position(self, job: PendingJob) -> int:
        """1 for the first of the jobs that only time will help."""
        rank, key = self.turn(job)
        ahead = 0
        for line in self.queue.lines.values():
            if line.usable:
                theirs = self.rank(line, line.head)
                ahead += len(line) if theirs < rank else line.before(key) if theirs == rank else 0
        return ahead + 1

    def serve(self, job: PendingJob) -> Plan:
        """Serve one job out of turn, once `run` stopped there; the plan so far."""
        self._serve(self.queue.line_of(job.id), job, self.queue.key(job))
        return self.plan()

    def rank(self, line: Line, job: PendingJob) -> Rank:
        """What goes before work and age in the order of service."""
        return not job.nominated, job.priority.rank, self.level(line, job)

    def level(self, line: Line, job: PendingJob) -> tuple[int, ...]:
        """The fair-share level: at the site where it is lowest, of a gang that of the flavor where it is highest."""
        if not line.usable:
            return ()
        return self._pool.level_of(job.account, self.board.quota, line.need, everywhere=bool(job.sites))

    def layers(self, job: PendingJob) -> tuple[Layer, ...]:
        """The present, and every reservation that the job would still run into if it started now."""
        ends_ms = self.board.now_ms + job.walltime_s * 1000
        return (self.board, *(shadow for shadow in self.shadows if shadow.start_ms < ends_ms))

    def verdict(self, line: Line, job: PendingJob, layers: tuple[Layer, ...]) -> tuple[dict[str, Rule | None], Reason]:
        """Every site's obstacle, and the reason that stands for the job. Only for a job that does not start."""
        answer = obstacles(self.board, job, line.standing, layers)
        site = decisive(job, answer)
        rule = answer[site]
        assert rule is not None  # it does not start, so some rule keeps it from the decisive site
        reason = describe(Case(self.board, job, site, layers, answer), rule)
        if rule.passes_with_time:
            reason = replace(reason, fix=suggest(self.board, job, line.usable, layers))
        return answer, reason

    def _serve(self, line: Line, job: PendingJob, key: Key) -> PendingJob | None:
        """Start the job or note why not; return the next of its line that may still fare better."""
        bounds = self._blocked.get(line)
        if not line.usable:
            self._block(line, job, (self.board,), waits=False)
            return None
        layers = self.layers(job)
        legs = find_legs(self.board, job, line.usable, layers, self._spoken_for)
        if legs is not None:
            self._start(job, legs, layers)
            return line.after(key, bounds[-1].walltime_s if bounds else 1 << 62, self._settings.backfill_depth)
        delays = len(layers) > 1 and find_legs(self.board, job, line.usable, layers[:1]) is not None
        self._block(line, job, layers, waits=True)
        choice = None
        if not delays and not self._making_room(job):
            choice = self._choose(line, job)
            if choice is not None:
                job = self._evict(job, choice)
        self._reserve(line, job)
        if choice is not None:
            return line.after(key, 1 << 62, self._settings.backfill_depth)
        shorter = delays or any(self.board.windows(site) for site in line.usable)
        return line.after(key, job.walltime_s, self._settings.backfill_depth) if shorter else None

    def _start(self, job: PendingJob, legs: tuple[LegPlacement, ...], layers: tuple[Layer, ...]) -> None:
        need: dict[str, int] = {}
        for leg in legs:
            need[leg.flavor] = need.get(leg.flavor, 0) + leg.gpus
        borrowed = sum(self.board.quota.borrowed(job.account, flavor, gpus) for flavor, gpus in need.items())
        self._placements.append(Placement(job=job.id, legs=legs, borrowed=borrowed))
        self.queue.remove(job.id)
        self._moved.add(job.account[:2])
        self.board.start(job, legs, [layer for layer in layers if isinstance(layer, Shadow)])
        self._pool.forget(self.board.quota.path(job.account))
        self._evictor.forget(leg.site for leg in legs)

    def _block(self, line: Line, job: PendingJob, layers: tuple[Layer, ...], *, waits: bool) -> None:
        reason = self.verdict(line, job, layers)[1] if self._reasons else None
        self._blocked.setdefault(line, []).append(Blocked(job.walltime_s, reason, waits))

    def _ahead(self, job: PendingJob) -> tuple[Shadow, ...]:
        """Reservations that it runs into and no eviction may cost anything: of nominated jobs, and within nominal."""
        ends_ms = self.board.now_ms + (self._settings.stop_s + job.walltime_s) * 1000
        return tuple(shadow for shadow in self._firm if shadow.start_ms < ends_ms)

    def _choose(self, line: Line, job: PendingJob) -> Choice | None:
        """Whom the job evicts. Where only the age of legs is in the way, the job claims the sites instead.

        What is on loan does not start at a claimed site behind the job. Else borrowers that come and go would always be
        too young, and it would never start. It first waits as long as a leg takes to stop: most find room in that time.
        """
        claimed = self.board.claimed
        claims = self.board.now_ms - job.created_ms >= self._settings.stop_s * 1000
        claims = claims and any(site not in claimed for site in line.usable)
        ripe = self._evictor.any_ripe()
        if not claims and not ripe:
            return None
        prospects = self._evictor.prospects(job, line, self._ahead(job), but=() if ripe else claimed)
        choice = self._evictor.choose(prospects)
        if claims and choice is None:
            fresh = [prospect for prospect in prospects if any(site not in claimed for site in prospect.sites)]
            later = self._evictor.choose(fresh, ripe=False)
            for site in later.sites if later is not None else ():
                claimed.setdefault(site, job.id)
        return choice

    def _making_room(self, job: PendingJob) -> set[str]:
        """Sites at which legs are stopping for the job already."""
        if not job.nominated:
            return set()
        return {site for site, items in self.board.at.items() for item in items if item.held.stopping_for == job.id}

    def _evict(self, job: PendingJob, choice: Choice) -> PendingJob:
        self._evictions += evictions(job, choice)
        for victim in choice.victims:
            for item in victim.legs:
                leg = stopping(item.held, job.id, self.board.now_ms, self._settings.stop_s)
                self.board.mark(item, leg)
        self._evictor.forget({item.site for victim in choice.victims for item in victim.legs})
        self.queue.remove(job.id)
        nominated = replace(job, nominated=True)
        self.queue.add(nominated)
        if self._reasons:
            self._own[job.id] = makes_room(job, ", ".join(choice.sites), choice.gpus, len(choice.victims))
        return nominated

    def _reserve(self, line: Line, job: PendingJob) -> None:
        if len(self.shadows) >= self._settings.reservations and not job.nominated:
            return
        taken = {leg.site for shadow in self.shadows for leg in shadow.legs}
        free = tuple(site for site in line.usable if site not in taken or job.nominated)
        if not free or (job.sites and len(free) < len(line.usable)):
            return
        binding = any(self._binding[flavor] for flavor, _ in line.need)
        shadow = None
        room = set() if job.sites else self._making_room(job)
        if made := [site for site in free if site in room]:
            shadow = self._planner.earliest_fit(job, made, self.shadows, binding=binding)
        if shadow is None or shadow.start_ms > self._evictor.soon_ms:
            shadow = self._planner.earliest_fit(job, free, self.shadows, binding=binding)
        if shadow is None:
            return
        self.shadows.append(shadow)
        if job.nominated or not any(self.level(line, job)[:1]):
            self._firm.append(shadow)
            self._evictor.forget()
        if not self._reasons:
            return
        reason = self._own.get(job.id) or self._blocked[line][-1].reason
        assert reason is not None
        where = ", ".join(leg.site for leg in shadow.legs)
        self._own[job.id] = replace(
            reason,
            message=f"{reason.message}; reserved for it at {where} by {instant(shadow.start_ms)}",
            numbers={**reason.numbers, "reserved_start_ms": shadow.start_ms, "reserved_at": where},
        )

    def _all_reasons(self) -> dict[str, Reason]:
        found: dict[str, Reason] = {}
        for line in self.queue.lines.values():
            bounds = self._blocked.get(line)
            for _, name in line.keys:
                if (own := self._own.get(name)) is not None:
                    found[name] = own
                elif bounds:
                    walltime_s = self.queue.jobs[name].walltime_s
                    blocked = next((item for item in bounds if item.walltime_s <= walltime_s), bounds[-1])
                    assert blocked.reason is not None
                    found[name] = blocked.reason
        for job in self.queue.apart.values():
            found[job.id] = job.waits_for or waits_out(job)
        return dict(sorted(found.items()))
