"""One replay from scenario to figures: the engine, with the auditor, the meter and the file of events looking on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consortium.config import Scenario
from consortium.errors import UsageError
from consortium.simulate.audit import Auditor
from consortium.simulate.engine import Engine
from consortium.simulate.estimates import Estimates
from consortium.simulate.events import Event, EventFile
from consortium.simulate.figures import Meter, Totals, summary
from consortium.simulate.streams import make_jobs
from consortium.simulate.trace import find_trace, read_trace
from consortium.simulate.workload import Job, by_submission


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a replay."""

    figures: dict[str, Any]
    """What `--json` prints. Only `wall_s` and `decisions_per_s` differ between two replays of the same."""
    infeasible: dict[str, str]
    """Jobs that could never start, and why."""
    broken: tuple[str, ...]
    """The auditor's findings in words; at most a hundred."""


def replay(
    scenario: Scenario,
    *,
    trace: Path | None = None,
    events: Path | None = None,
    plot: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """Replay a scenario through the real scheduler.

    `trace` is the folder of its trace where it has one. Writes the file of `events` and the `plot` where they are
    named. Raises UsageError where a file cannot be read or written, or the jobs are not told apart by their ids.
    """
    begun = time.perf_counter()
    jobs, empty = workload(scenario, trace)
    if not jobs:
        say("the workload has no jobs")
    first_ms, last_ms = (jobs[0].submit_ms, jobs[-1].submit_ms) if jobs else (0, 0)
    auditor = Auditor(scenario)
    meter = Meter(scenario, from_ms=first_ms, until_ms=last_ms, watch=plot is not None)
    with ExitStack() as stack:
        watchers = [auditor.see, meter.see]
        estimates = Estimates(scenario.estimate_every) if scenario.estimate_every else None
        if estimates is not None:
            watchers.append(estimates.see)
        if events is not None:
            watchers.append(stack.enter_context(EventFile(events)).see)

        def see(event: Event) -> None:
            for watcher in watchers:
                watcher(event)

        engine = Engine(scenario, jobs, see, estimates)
        totals = engine.run()
    auditor.close()
    meter.close(engine.now_ms)
    wall_s = time.perf_counter() - begun
    if plot is not None:
        from consortium.simulate.plot import draw

        draw(plot, scenario, meter)
    figures = {
        "scenario": scenario.name,
        "variant": scenario.variant,
        "seed": scenario.seed,
        **summary(jobs, totals, meter),
        "rows_without_work": empty,
        **({"estimates": estimates.judge()} if estimates is not None else {}),
        "violations": dict(auditor.violations),
        **_speed(totals, wall_s),
    }
    return Result(figures=figures, infeasible=totals.infeasible, broken=tuple(auditor.found))


def workload(scenario: Scenario, trace: Path | None) -> tuple[tuple[Job, ...], int]:
    """Return the scenario's jobs in order of submission, and how many rows of its trace ask for nothing.

    Raises UsageError where two jobs have one id.
    """
    jobs, empty = make_jobs(scenario), 0
    if scenario.trace is not None:
        read, empty = read_trace(scenario, find_trace(trace, scenario.trace.dataset))
        jobs = by_submission((*jobs, *read))
    seen: set[str] = set()
    for job in jobs:
        if job.id in seen:
            raise UsageError(
                f"two jobs of the workload are called {job.id}",
                where=scenario.name,
                fix="rename a job or a stream: a stream's are called NAME-00001 and so on, a trace's as in its files",
            )
        seen.add(job.id)
    return jobs, empty


def _speed(totals: Totals, wall_s: float) -> dict[str, float]:
    decisions = totals.starts + totals.evictions
    return {"wall_s": round(wall_s, 3), "decisions_per_s": round(decisions / wall_s, 1)}
