"""The numbers of a leg's rounds in MLflow, through the gateway. Only rank 0 writes."""

from __future__ import annotations

from collections.abc import Mapping

from consortium.tracking.tracker import Tracker


class RunMetrics:
    """A leg's run at the tracking server; writes nothing where the leg has no run."""

    def __init__(self, url: str, token: str, run: str) -> None:
        self._tracker = Tracker(url, token) if url and run else None
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log the numbers of round `step`."""
        if self._tracker is not None:
            self._tracker.log_metrics(self._run, values, step)
