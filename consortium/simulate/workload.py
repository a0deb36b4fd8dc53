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


def draws(job: str, seed: int = 0) -> tuple[int, int]:
    """Return two numbers of 32 bits that follow from a job's id: the first of its SHA-256. Another seed, others."""
    text = f"{job}:{seed}" if seed else job
    bits = sha256(text.encode()).hexdigest()
    return int(bits[:8], 16), int(bits[8:16], 16)


def pinned(first: int, tenths: int) -> bool:
    """Whether a job of a trace may run at its own partner's sites only: `tenths` of ten jobs, by their first draw."""
    return first % 10 < tenths


def walltime_s(second: int, run_s: float, factor: tuple[float, float]) -> int:
    """Return the walltime limit of a job of a trace: its run time times a factor, log-uniform by its second draw."""
    low, high = factor
    return math.ceil(run_s * low * math.pow(high / low, second / 2**32))
