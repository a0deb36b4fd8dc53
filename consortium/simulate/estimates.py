"""How good the estimated starts are: of jobs that have to wait, some are told a range, and that is judged.

The range is the one `explain` states, from what the scheduler knew when the job had just begun to wait. It is worked
out after the replay, so that it costs the replay nothing.
"""

from __future__ import annotations

from consortium.scheduler import Snapshot, start_range
from consortium.simulate.events import Event, Kind
from consortium.simulate.world import EPOCH_MS


class Estimates:
    """Keeps what the scheduler knew when sampled jobs began to wait, and when they started."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._waiting = 0
        self._kept: dict[str, Snapshot] = {}
        self._started_ms: dict[str, int] = {}

    def wanted(self) -> bool:
        """Count one more job that has to wait; whether it is to be kept."""
        self._waiting += 1
        return self._waiting % self._every == 0

    def keep(self, job: str, known: Snapshot) -> None:
        """Keep what is known as the job begins to wait."""
        self._kept[job] = known

    def see(self, event: Event) -> None:
        """Note the first start of the jobs that are kept."""
        if event.kind is Kind.START and event.job.id in self._kept:
            self._started_ms.setdefault(event.job.id, EPOCH_MS + event.t_ms)

    def judge(self) -> dict[str, int]:
        """Return how many jobs had to wait, how many were judged, and how many started in their range or outside."""
        found = dict.fromkeys(("sampled", "inside", "sooner", "later", "unbounded"), 0)
        for job, started_ms in sorted(self._started_ms.items()):
            told = start_range(self._kept[job], job)
            if told is None:
                continue
            found["sampled"] += 1
            found["unbounded"] += told.latest_ms is None
            if started_ms < told.earliest_ms:
                found["sooner"] += 1
            elif told.latest_ms is not None and started_ms > told.latest_ms + _SLACK_MS:
                found["later"] += 1
            else:
                found["inside"] += 1
        return {"jobs": self._waiting, **found}


_SLACK_MS = 60_000
"""Cycles keep their distance: a start may be that much later than the end it waited for."""
