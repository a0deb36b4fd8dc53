"""Jobs as the simulator knows them: with the run time that the scheduler is not told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from consortium.domain.job import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job of a workload. Times are virtual milliseconds from the workload's origin."""

    id: str
    account: str
    partner: str
    submit_ms: int
    run_ms: int
    """What it has to run in all, without interruptions. Nobody knows it before it ends."""
    walltime_s: int
    gpus: int
    """GPUs per site."""
    gpus_per_worker: int
    allowed: tuple[str, ...] = ()
    """Sites one of which it may run at; empty: every site."""
    gang: tuple[str, ...] = ()
    """The exact sites it needs, all together; empty: one."""
    flavors: tuple[str, ...] = ()
    priority: Priority = Priority.NORMAL
    checkpoint_every_s: int = 0
    preemptible: bool = True

    @property
    def gpus_in_all(self) -> int:
        """GPUs of all its legs together."""
        return self.gpus * max(1, len(self.gang))


def by_submission(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Return the jobs in order of submission, ties by id."""
    return tuple(sorted(jobs, key=lambda job: (job.submit_ms, job.id)))


def worker_gpus(gpus: int, node_gpus: int) -> int:
    """Return the GPUs of one worker: a job that fits on a node sits on one, a larger one on whole nodes if it can."""
    return gpus if gpus <= node_gpus else math.gcd(gpus, node_gpus)


def draw(job: str, seed: int, part: int) -> int:
    """Return 32 bits that follow from a job's id: `part` 0 or 1 of its SHA-256. Another seed gives other bits."""
    text = job if not seed else f"{job}:{seed}"
    return int(sha256(text.encode()).hexdigest()[8 * part : 8 * part + 8], 16)


def pinned(job: str, tenths: int, seed: int = 0) -> bool:
    """Whether a job of a trace may run at its own partner's sites only: `tenths` of ten jobs."""
    return draw(job, seed, 0) % 10 < tenths


def walltime_s(job: str, run_s: float, factor: tuple[float, float], seed: int = 0) -> int:
    """Return the walltime limit of a job of a trace: its run time times a factor, log-uniform by the job's id."""
    low, high = factor
    return math.ceil(run_s * low * math.pow(high / low, draw(job, seed, 1) / 2**32))
