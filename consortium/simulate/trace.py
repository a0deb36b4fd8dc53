"""Reading a recorded trace: one CSV per partner, gzipped or not, with the columns `COLUMNS`."""

from __future__ import annotations

import csv
import gzip
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from consortium.config import Scenario
from consortium.config.scenario import Sharing, TraceEntry
from consortium.domain import ids
from consortium.errors import UsageError
from consortium.simulate.workload import Job, by_submission, draws, pinned, walltime_s, worker_gpus

VARIABLE = "CONSORTIUM_TRACES"
COLUMNS = ("job_id", "submission_time", "duration", "num_gpu")
_SUFFIXES = (".csv.gz", ".csv")
_LATEST_S = 10_000_000_000
"""Of submissions: seconds since 1970 are, milliseconds are not."""
_LONGEST_S = 1_000_000_000


def find_trace(given: Path | None, dataset: str) -> Path:
    """Return the folder named by `--trace`, else `$CONSORTIUM_TRACES/DATASET`, else `../shared/traces/DATASET`.

    Raises UsageError where it does not exist.
    """
    named = os.environ.get(VARIABLE)
    beside = Path(__file__).resolve().parents[3] / "shared" / "traces" / dataset
    folder = given or (Path(named).expanduser() / dataset if named else beside)
    if not folder.is_dir():
        found = f"${VARIABLE}/{dataset}, which is {folder}" if named else f"../shared/traces/{dataset}"
        raise UsageError(
            "the folder of the trace does not exist",
            where=f"--trace {given}" if given else found,
            fix=f"name the folder that holds its CSV files (columns {', '.join(COLUMNS)}): --trace DIR",
        )
    return folder


def read_trace(scenario: Scenario, folder: Path) -> tuple[tuple[Job, ...], int]:
    """Return the jobs of every partner's file in order of submission, and how many rows ask for no GPU or no time.

    Raises UsageError naming a file that is missing, or the row that is not as expected.
    """
    trace = scenario.trace
    assert trace is not None
    homes = {
        partner: tuple(sorted(site for site in scenario.sites if ids.partner_of(site) == partner))
        for partner in trace.files
    }
    jobs: list[Job] = []
    seen: set[str] = set()
    empty = 0
    for partner, stem in sorted(trace.files.items()):
        node_gpus = min(scenario.sites[site].node_gpus for site in homes[partner]) if homes[partner] else 8
        for where, job_id, submit_ms, run_ms, gpus in _rows(_file(folder, stem, trace)):
            if job_id in seen:
                raise UsageError(f"job {job_id} is there twice", where=where, fix="job ids are one per job")
            seen.add(job_id)
            if run_ms < 1 or gpus < 1:
                empty += 1
                continue
            first, second = draws(job_id, scenario.seed)
            at_home = scenario.sharing is Sharing.NONE or pinned(first, scenario.pinned_tenths)
            jobs.append(
                Job(
                    id=job_id,
                    account=partner,
                    partner=partner,
                    submit_ms=submit_ms,
                    run_ms=run_ms,
                    walltime_s=walltime_s(second, run_ms / 1000, trace.walltime_factor),
                    gpus=gpus,
                    gpus_per_worker=worker_gpus(gpus, node_gpus),
                    allowed=homes[partner] if at_home else (),
                    checkpoint_every_s=trace.checkpoint_every_s,
                )
            )
    ordered = by_submission(jobs)
    return (ordered[: trace.jobs] if trace.jobs else ordered), empty


def _file(folder: Path, stem: str, trace: TraceEntry) -> Path:
    for suffix in _SUFFIXES:
        path = folder / f"{stem}{suffix}"
        if path.is_file():
            return path
    expected = ", ".join(f"{name}{_SUFFIXES[0]}" for name in sorted(trace.files.values()))
    raise UsageError(
        f"the trace has no {stem}{_SUFFIXES[0]} and no {stem}{_SUFFIXES[1]}",
        where=str(folder),
        fix=f"expected are {expected}, or the same names with {_SUFFIXES[1]}",
    )


def _rows(path: Path) -> Iterator[tuple[str, str, int, int, int]]:
    """The rows of a file: where it stands, job id, submission and run time in ms, GPUs."""
    try:
        with _open(path) as text:
            rows = csv.reader(text)
            header = next(rows, [])
            if missing := [name for name in COLUMNS if name not in header]:
                raise UsageError(
                    f"no column {', '.join(missing)}", where=f"{path}:1", fix=f"expected are {', '.join(COLUMNS)}"
                )
            at = [header.index(name) for name in COLUMNS]
            for row in rows:
                where = f"{path}:{rows.line_num}"
                if not row:
                    continue
                try:
                    job, submitted, duration, gpus = (row[index] for index in at)
                    submit_s, run_s = _seconds(submitted, 0, _LATEST_S), _seconds(duration, -math.inf, _LONGEST_S)
                    yield where, job, round(submit_s * 1000), round(run_s * 1000), int(gpus)
                except (ValueError, IndexError, OverflowError) as fault:
                    raise UsageError(
                        f"not a job: {','.join(row)[:80]!r}",
                        where=where,
                        fix=f"a row has {', '.join(COLUMNS)}: an id, seconds (0 to {_LATEST_S:,}), seconds (to "
                        f"{_LONGEST_S:,}; a job that takes 0 or less is passed over) and whole GPUs",
                    ) from fault
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error) as fault:
        raise UsageError(f"cannot read the trace: {fault}", where=str(path)) from fault


def _seconds(text: str, least: float, most: float) -> float:
    """Return a number of seconds; raises ValueError where it is none or out of bounds."""
    value = float(text)
    if not least <= value <= most:
        raise ValueError(f"{value} is not between {least} and {most}")
    return value


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
