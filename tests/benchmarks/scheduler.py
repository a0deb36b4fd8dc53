"""The scheduler's figures: `python -m tests.benchmarks.scheduler [--json] [--only itp,kueue,state,cycle]`.

- `itp`: the real trace of ten clusters through `consortium simulate`; skipped, and said so, where it is missing.
- `kueue`: the workload of Kueue's own benchmark, 1,000 queues and 50,000 jobs, in process, admitted to the end.
- `state`: the same, every plan committed through `consortium.state` on SQLite and on PostgreSQL.
- `cycle`: one cycle over 100,000 pending jobs on 40 sites and 2,000 nodes; memory at 1,000,000 pending.

References: alone, with EASY backfill and exact run times, and counting GPUs only (the trace's README); the 42
admissions a second that Kueue publishes, with an API server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from consortium.domain.job import JobState
from consortium.errors import UsageError
from consortium.scheduler import Plan, Scheduler, schedule, violations
from tests.benchmarks import queues
from tests.benchmarks.federations import busy
from tests.benchmarks.table import Row, arguments, row, show
from tests.builders import new_id, spec

ALONE_EASY_H = (29.89, 52.05, 86.73, 30.48, 62.25, 43.92, 13.65, 24.44, 24.90, 10.59)
"""Mean wait per cluster 01..10 when each keeps to itself: EASY backfill, exact run times (the trace's README)."""

EVERY = 61
"""Of the jobs that had to wait, one in so many is asked when it will start; asking takes long."""


def itp(trace: Path | None) -> Iterator[Row]:
    """The rows of the real trace."""
    from consortium.config import load_scenario
    from consortium.simulate import find_trace, replay

    try:
        folder = find_trace(trace, "itp")
    except UsageError as fault:
        print(f"itp: skipped, {fault.what}", file=sys.stderr)
        return
    figures = replay(load_scenario("itp-ten-states", ["variant=sovereign"]), trace=folder).figures
    yield row("itp sovereign: mean wait", figures["mean_wait_h"], "h", 1.99, most=1.5)
    yield row("itp sovereign: p99 wait", figures["p99_wait_h"], "h", 19.59, most=15)
    waits = [figures["per_partner"][partner]["mean_wait_h"] for partner in figures["per_partner"]]
    worse = sum(wait >= alone for wait, alone in zip(waits, ALONE_EASY_H, strict=True))
    yield row("itp sovereign: partners that wait longer than alone", worse, "partners", 0, most=0)
    yield row("itp sovereign: violations", sum(figures["violations"].values()), "count", 0, most=0)
    total = sum(part["gpu_hours_consumed"] for part in figures["per_partner"].values())
    yield row("itp sovereign: work lost to preemption", 100 * figures["lost_gpu_hours"] / total, "%", None, most=1)
    yield row("itp sovereign: replay of all jobs", figures["wall_s"], "s", None, most=60)
    told = load_scenario("itp-ten-states", ["variant=sovereign", f"estimate_every={EVERY}"])
    estimates = replay(told, trace=folder).figures["estimates"]
    inside = 100 * estimates["inside"] / estimates["sampled"]
    what = f"itp sovereign: of {estimates['sampled']} jobs that had to wait, started inside the estimated range"
    yield row(what, inside, "%", None, least=80)
    figures = replay(load_scenario("itp-ten-states", ["variant=open"]), trace=folder).figures
    yield row("itp open: mean wait", figures["mean_wait_h"], "h", 1.98, most=1.5)
    yield row("itp open: violations", sum(figures["violations"].values()), "count", 0, most=0)


def kueue(number: int) -> Iterator[Row]:
    """The rows of Kueue's workload in process."""
    done = queues.run(number)
    what = f"{10 * number} queues, {done.jobs} jobs, in process, {done.cycles} cycles"
    yield row(what, done.jobs / done.seconds, "jobs/s", 42, least=4200)


def state(number: int) -> Iterator[Row]:
    """The same with every plan committed."""
    with tempfile.TemporaryDirectory(prefix="cs-bench-") as folder:
        yield committed(number, f"sqlite:///{folder}/state.db", "SQLite")
        try:
            import pgserver
        except ImportError:
            print("state: PostgreSQL skipped, the wheel pgserver is not installed", file=sys.stderr)
            return
        server = pgserver.get_server(Path(folder) / "pg", cleanup_mode="stop")
        try:
            yield committed(number, server.get_uri(), "PostgreSQL")
        finally:
            server.cleanup()


def committed(number: int, url: str, name: str) -> Row:
    """One run on a database: submissions are written before, placements and ends are not left out."""
    from consortium.state import tables as t
    from consortium.state.commit import commit_plan
    from consortium.state.database import Database

    db = Database(url.replace("postgresql://", "postgresql+psycopg://"))
    made = queues.workload(number)
    common = spec_json()
    rows = [
        {
            "id": job.id, "state": JobState.PENDING.value, "kind": "clean", "account": job.account, "version": 1,
            "submitter": "fr/amelie", "created_ms": job.created_ms, "updated_ms": job.created_ms, "spec": common,
            "spec_digest": job.id, "signature": "", "sites": list(job.sites), "denials": [], "result": {},
        }
        for job, _ in made
    ]  # fmt: skip
    with db.write() as connection:
        for start in range(0, len(rows), 1000):
            connection.execute(t.jobs.insert(), rows[start : start + 1000])
    versions = {job.id: 1 for job, _ in made}
    serial = iter(range(10_000_000))

    def commit(plan: Plan, now_ms: int) -> None:
        with db.write() as connection:
            done = commit_plan(
                connection, plan, versions, incarnation=1, now_ms=now_ms, new_id=lambda kind: new_id(kind, next(serial))
            )
        assert len(done.placed) == len(plan.placements)

    done = queues.run(number, commit)
    db.close()
    return row(f"the same, committed on {name}", done.jobs / done.seconds, "jobs/s", 42, least=1000)


def spec_json() -> dict[str, Any]:
    """A job spec as the state keeps it."""
    from consortium.domain.codec import to_json

    found: dict[str, Any] = to_json(spec(inputs=()))
    return found


def cycle(pending: int) -> Iterator[Row]:
    """The rows of one large cycle."""
    picture = busy(pending)
    took = []
    for _ in range(3):
        scheduler = Scheduler(picture)
        begun = time.perf_counter()
        plan = scheduler.cycle(reasons=False)
        took.append(time.perf_counter() - begun)
    seconds = median(took)
    what = (
        f"one cycle (median of three), {len(picture.pending)} pending, {len(picture.held)} held, 40 sites, 2,000 nodes"
    )
    yield row(what, seconds, "s", None, most=1)
    begun = time.perf_counter()
    told = schedule(picture)
    seconds = time.perf_counter() - begun
    yield row("the same from a snapshot, with the reason of every waiting job", seconds, "s", None)
    assert told.placements == plan.placements
    yield row("violations of that plan", len(violations(picture, told)), "count", 0, most=0)
    picture = busy(pending, hours=1)
    scheduler = Scheduler(picture)
    begun = time.perf_counter()
    plan = scheduler.cycle(reasons=False)
    seconds = time.perf_counter() - begun
    what = f"the same an hour on, when legs may be evicted: {len(plan.evictions)} are"
    yield row(what, seconds, "s", None)
    wrong = [what for what in violations(picture, plan) if not what.startswith("reason")]  # none were asked for
    yield row("violations of that plan", len(wrong), "count", 0, most=0)
    code = (
        "import resource; from consortium.scheduler import Scheduler; "
        "from tests.benchmarks.federations import federation; "
        f"s = Scheduler(federation({10 * pending})); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ)
    yield row(f"memory, {10 * pending} pending", int(found.stdout) / 1e6, "GB", None, most=2)


def main() -> None:
    """Print the table."""
    parts = {
        "itp": lambda: itp(choice.trace),
        "kueue": lambda: kueue(choice.queues),
        "state": lambda: state(choice.queues),
        "cycle": lambda: cycle(choice.pending),
    }
    parser = arguments(__doc__, parts)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--queues", type=int, default=100, help="queues per cohort of Kueue's workload")
    parser.add_argument("--pending", type=int, default=100_000)
    choice = parser.parse_args()
    show((found for part in choice.only for found in parts[part]()), as_json=choice.json)


if __name__ == "__main__":
    main()
