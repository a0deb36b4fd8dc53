"""Scenarios and jobs for the simulator's tests: sensible defaults, say what the test is about."""

from __future__ import annotations

from typing import Any

from consortium.config import Scenario
from consortium.config.scenario import JobEntry, SiteEntry
from consortium.simulate.events import Event, Kind
from consortium.simulate.workload import Job

H = 3_600_000
"""Milliseconds in an hour."""


def scenario(**changes: Any) -> Scenario:
    """Two states with one node of eight GPUs each, and one small job."""
    fields: dict[str, Any] = {
        "name": "test",
        "about": "a test",
        "sites": {"de-1": SiteEntry(gpus=8), "fr-1": SiteEntry(gpus=8)},
        "jobs": {"first": JobEntry(account="fr", run_s=60, walltime_s=100, gpus=1)},
    }
    return Scenario(**(fields | changes))


def job(id: str = "a", **changes: Any) -> Job:
    """A job of `fr` for one GPU and an hour, submitted at 0."""
    account = changes.pop("account", "fr")
    gpus = changes.get("gpus", 1)
    fields: dict[str, Any] = {
        "id": id,
        "account": account,
        "partner": account[:2],
        "submit_ms": 0,
        "run_ms": H,
        "walltime_s": 7200,
        "gpus": gpus,
        "gpus_per_worker": gpus if gpus <= 8 else 8,
        "checkpoint_every_s": 1800,
    }
    return Job(**(fields | changes))


def submit(what: Job, t_ms: int | None = None) -> Event:
    return Event(what.submit_ms if t_ms is None else t_ms, Kind.SUBMIT, what, "", what.gpus, {})


def start(what: Job, t_ms: int, site: str, nodes: dict[str, int]) -> Event:
    return Event(t_ms, Kind.START, what, site, sum(nodes.values()), nodes)


def finish(what: Job, t_ms: int, site: str, nodes: dict[str, int], kind: Kind = Kind.FINISH) -> Event:
    return Event(t_ms, kind, what, site, sum(nodes.values()), nodes)
