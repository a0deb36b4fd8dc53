"""What waits, by shape: jobs of one shape fit or do not fit together, so a cycle looks at shapes and not at jobs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from math import log2

from consortium.domain.decision import Reason
from consortium.scheduler.board import Board
from consortium.scheduler.rules import Rule, site_demand, standing
from consortium.scheduler.types import PendingJob, Settings

Shape = tuple[object, ...]
Key = tuple[float, str]


def order_key(job: PendingJob, settings: Settings) -> Key:
    """The sort key among jobs of one class and one fair-share level: smaller is served first.

    log2 of the expected remaining work in GPU-seconds, plus the time of submission in units of `ageing_s`: every
    `ageing_s` of waiting counts like half the work. Shortest expected processing time first minimises the mean wait
    (Smith 1956); the ageing makes every job the smallest in the end. Ties go to the smaller id.
    """
    work = max(1, (job.expected_s or job.walltime_s) * job.gpus * max(1, len(job.sites)))
    return log2(work) + job.created_ms / (settings.ageing_s * 1000), job.id


class Line:
    """The waiting jobs of one shape, in order of service."""

    __slots__ = ("_jobs", "keys", "need", "only", "standing", "usable")

    def __init__(self, jobs: dict[str, PendingJob]) -> None:
        self._jobs = jobs
        self.keys: list[Key] = []
        self.standing: dict[str, Rule | None] = {}
        """Site to the rule that keeps the shape from it, whatever is free."""
        self.usable: tuple[str, ...] = ()
        """Sites it may use, whatever is free there; empty where a gang misses one."""
        self.need: tuple[tuple[str, int], ...] = ()
        """GPUs it takes of each flavor it may use."""
        self.only: str = ""
        """The site it depends on, where there is just one for a job that could not go elsewhere."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def head(self) -> PendingJob:
        """The first in order of service."""
        return self._jobs[self.keys[0][1]]

    def before(self, key: Key) -> int:
        """How many jobs of the line come before `key`."""
        return bisect_left(self.keys, key)

    def after(self, key: Key, walltime_s: int, depth: int) -> PendingJob | None:
        """The next job behind `key`, among `depth` of them, that is done sooner than `walltime_s`."""
        at = bisect_right(self.keys, key)
        for _, job in self.keys[at : at + depth]:
            if self._jobs[job].walltime_s < walltime_s:
                return self._jobs[job]
        return None


class Queue:
    """All waiting jobs. Those that wait for an instant or for something outside are kept apart from the lines."""

    def __init__(self, board: Board, settings: Settings, jobs: Iterable[PendingJob]) -> None:
        self._board = board
        self._settings = settings
        self.jobs: dict[str, PendingJob] = {}
        self.lines: dict[Shape, Line] = {}
        self.apart: dict[str, PendingJob] = {}
        """Jobs that are not in line at all: a backoff, a dependency, a budget."""
        self._shapes: dict[str, Shape] = {}
        self._verdicts: dict[int, tuple[dict[str, Reason], Shape]] = {}
        for job in jobs:
            self.add(job)

    def add(self, job: PendingJob) -> None:
        """Let a job wait."""
        self.jobs[job.id] = job
        if job.waits_for is not None or job.not_before_ms > self._board.now_ms:
            self.apart[job.id] = job
        else:
            self._line_up(job)

    def remove(self, job: str) -> PendingJob:
        """Take a job out; raises KeyError where it does not wait."""
        found = self.jobs.pop(job)
        if self.apart.pop(job, None) is None:
            shape = self._shapes.pop(job)
            line = self.lines[shape]
            del line.keys[bisect_left(line.keys, order_key(found, self._settings))]
            if not line.keys:
                del self.lines[shape]
        return found

    def release(self) -> None:
        """Line up jobs whose backoff is over."""
        if self.apart:
            for job in [item for item in self.apart.values() if self.due(item)]:
                del self.apart[job.id]
                self._line_up(job)

    def due(self, job: PendingJob) -> bool:
        """Whether nothing keeps the job out of line."""
        return job.waits_for is None and job.not_before_ms <= self._board.now_ms

    def redraw(self) -> None:
        """Judge every line anew: sites or accounts have changed."""
        for line in self.lines.values():
            self._judge(line, line.head)

    def line_of(self, job: str) -> Line:
        """The line a job is in; raises KeyError for one that is kept apart."""
        return self.lines[self._shapes[job]]

    def spoken_for(self) -> frozenset[str]:
        """Sites that some waiting job depends on because it may run nowhere else."""
        return frozenset(line.only for line in self.lines.values() if line.only)

    def key(self, job: PendingJob) -> Key:
        """`order_key` under the settings in force."""
        return order_key(job, self._settings)

    def __iter__(self) -> Iterator[PendingJob]:
        return iter(self.jobs.values())

    def _line_up(self, job: PendingJob) -> None:
        shape = self._shape(job)
        self._shapes[job.id] = shape
        line = self.lines.get(shape)
        if line is None:
            line = self.lines[shape] = Line(self.jobs)
            self._judge(line, job)
        insort(line.keys, order_key(job, self._settings))

    def _judge(self, line: Line, job: PendingJob) -> None:
        line.standing = standing(self._board, job)
        if job.sites:
            barred = any(line.standing[site] for site in job.sites)
            line.usable = () if barred else tuple(sorted(set(job.sites)))
        else:
            line.usable = tuple(site for site, rule in line.standing.items() if rule is None)
        need = site_demand(self._board, job)
        flavors = sorted({self._board.flavors[site] for site in line.usable})
        line.need = tuple((flavor, need[flavor]) for flavor in flavors)
        line.only = line.usable[0] if len(line.usable) == 1 else ""

    def _shape(self, job: PendingJob) -> Shape:
        """What decides whether a job fits, but for its walltime, and its priority class."""
        denied = self._key(job.denied) if job.denied else None
        unfit = self._key(job.unfit) if job.unfit else None
        return (
            job.account, job.nominated, job.priority.rank, job.gpus, job.gpus_per_worker, job.flavors, job.sites,
            job.min_sites, job.avoid, denied, unfit,
        )  # fmt: skip

    def _key(self, verdicts: dict[str, Reason]) -> Shape:
        """A hashable value of a dict of verdicts; jobs often share one dict, so it is made once per object."""
        known = self._verdicts.get(id(verdicts))
        if known is None or known[0] is not verdicts:
            made = tuple((site, reason.code, reason.message) for site, reason in sorted(verdicts.items()))
            known = self._verdicts[id(verdicts)] = verdicts, made
        return known[1]
