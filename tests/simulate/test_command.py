"""`consortium simulate` as people and programs call it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from consortium.cli.simulate import simulate
from consortium.config import load_scenario
from tests.conftest import Call, Outcome

FIGURES = {
    "scenario", "variant", "jobs", "completed", "infeasible", "mean_wait_h", "median_wait_h", "p95_wait_h",
    "p99_wait_h", "utilisation", "preemptions", "evicted_gpu_hours", "lost_gpu_hours", "cycles", "decisions", "wall_s",
    "decisions_per_s", "per_partner", "violations",
}  # fmt: skip
PER_PARTNER = {
    "mean_wait_h", "p95_wait_h", "gpu_hours_delivered", "gpu_hours_consumed", "gpu_hours_lent", "gpu_hours_borrowed",
}  # fmt: skip
SHORT = ["bursts", *(f"streams.{name}-{kind}.until_h=31" for name in ("es", "fr", "pt") for kind in ("quiet", "burst"))]


def test_json_has_every_figure_and_nothing_else_is_printed(call: Call) -> None:
    shown = call("simulate", *SHORT, "--json")
    figures = json.loads(shown.out)
    assert (shown.code, shown.err) == (0, "")
    assert set(figures) >= FIGURES
    assert set(figures["per_partner"]) == {"es", "fr", "pt"}
    assert all(set(row) == PER_PARTNER for row in figures["per_partner"].values())
    assert figures["violations"] == {"quota": 0, "capacity": 0, "gang": 0, "territory": 0}
    assert figures["completed"] == figures["jobs"] > 100


def test_the_figures_agree_with_each_other_and_with_the_events(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    figures = json.loads(call("simulate", *SHORT, "--json", "--events", str(path)).out)
    events = [json.loads(text) for text in path.read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds.count("submit") == kinds.count("finish") == figures["jobs"]
    assert kinds.count("preempt") == figures["preemptions"] > 0
    assert figures["decisions"] == kinds.count("start") + figures["preemptions"]
    held: dict[str, float] = {}
    at_site: dict[str, float] = {}
    since: dict[tuple[str, str], float] = {}
    for event in events:
        key = event["job"], event["site"]
        if event["event"] == "start":
            since[key] = event["t"]
        elif event["event"] != "submit":
            hours = event["gpus"] * (event["t"] - since.pop(key)) / 3600
            held[event["partner"]] = held.get(event["partner"], 0) + hours
            at_site[event["site"][:2]] = at_site.get(event["site"][:2], 0) + hours
    for partner, row in figures["per_partner"].items():
        assert row["gpu_hours_consumed"] == pytest.approx(held[partner], abs=1e-3)
        assert row["gpu_hours_delivered"] == pytest.approx(at_site[partner], abs=1e-3)
    rows = figures["per_partner"].values()
    assert sum(row["gpu_hours_lent"] for row in rows) == pytest.approx(sum(row["gpu_hours_borrowed"] for row in rows))
    assert figures["lost_gpu_hours"] <= figures["evicted_gpu_hours"] + figures["preemptions"] * 16 * 120 / 3600


def test_people_see_a_short_table(call: Call) -> None:
    shown = call("simulate", *SHORT)
    assert shown.code == 0
    assert shown.out.startswith("bursts: three states, each with a burst of work")
    for words in ("wait         mean", "GPUs in use", "violations   quota 0", "partner  mean wait h", "\nfr  "):
        assert words in shown.out


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_plot_is_drawn(call: Call, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"plot.{ending}"
    shown = call("simulate", *SHORT, "--json", "--plot", str(path))
    assert shown.code == 0
    assert path.read_bytes().startswith(b"<?xml" if ending == "svg" else b"\x89PNG")
    assert str(path) in shown.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["burst"], ["unknown scenario 'burst'", "did you mean 'bursts'?"]),
        (["bursts", "cycle=60"], ["unknown key for a scenario: 'cycle'", "cycle_s"]),
        (["bursts", "variant=open"], ["unknown key"]),
        (["itp-ten-states", "variant=closed"], ["'closed' is not a choice for 'variant'"]),
        (["bursts", "streams.es-quiet.gpus.3=1"], ["unknown key"]),
        (["bursts", "settings.min_run=60"], ["settings.min_run_s"]),
        (["bursts", "settings.ageing_s=0"], ["settings: ageing_s must be 60 to"]),
        (["bursts", "cycle_s=-1"], ["cycle_s must be 0 to"]),
        (["bursts", "+hydra.run.dir=x"], ["Hydra's own settings are closed"]),
        (["bursts", "--plot", "picture.pdf"], ["--plot", ".svg or .png"]),
        (["bursts", "--trace", "."], ["bursts replays no trace"]),
        (["bursts", "--events", "/nowhere/events.jsonl"], ["cannot write the events", "/nowhere/events.jsonl"]),
        (["itp-ten-states", "--trace", "/nowhere"], ["--trace /nowhere", "job_id, submission_time, duration, num_gpu"]),
        (["itp-ten-states", "--trace", "."], ["the trace has no cluster01.csv.gz", "cluster10.csv.gz"]),
    ],
)
def test_what_is_wrong_is_said_with_what_would_be_right(call: Call, arguments: list[str], words: list[str]) -> None:
    shown = call("simulate", *arguments)
    assert (shown.code, shown.out) == (2, "")
    assert "Traceback" not in shown.err
    for word in words:
        assert word in shown.err


def test_the_examples_of_the_help_go_together() -> None:
    hints = get_type_hints(simulate, include_extras=True)
    scenario, overrides = (get_args(hints[name])[-1].help for name in ("scenario", "overrides"))
    name = scenario.partition("such as ")[2].rstrip(".")
    given = overrides.partition("Such as ")[2].rstrip(".").split()
    assert len(given) == 2
    assert load_scenario(name, given).name == name


def test_jobs_that_could_never_start_are_told(call: Call, tmp_path: Path) -> None:
    for number in range(1, 11):
        (tmp_path / f"cluster{number:02}.csv").write_text("job_id,submission_time,duration,num_gpu\n")
    (tmp_path / "cluster05.csv").write_text("job_id,submission_time,duration,num_gpu\nbig,0,60,520\nplain,0,60,12\n")
    shown = call("simulate", "itp-ten-states", "variant=open", "--trace", str(tmp_path), "--json")
    figures = json.loads(shown.out)
    assert (figures["jobs"], figures["completed"], figures["infeasible"]) == (2, 1, 1)
    assert "1 jobs could never start, such as big" in shown.err
    assert shown.code == 0


def _replay(folder: Path, seed: str, arguments: list[str]) -> tuple[bytes, dict[str, Any]]:
    events = folder / f"events-{seed}.jsonl"
    command = [sys.executable, "-m", "consortium.cli", "simulate", *arguments, "--json", "--events", str(events)]
    done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True)
    figures = json.loads(done.stdout)
    return events.read_bytes(), {key: figures[key] for key in figures if key not in ("wall_s", "decisions_per_s")}


@pytest.mark.integration
@pytest.mark.parametrize("scenario", ["heterogeneous-flavors", "federated-gangs", "site-loss"])
def test_another_process_with_other_hashes_decides_the_same(tmp_path: Path, scenario: str) -> None:
    first, second = (_replay(tmp_path, seed, [scenario, "seed=11"]) for seed in ("1", "2"))
    assert first == second


@pytest.fixture
def corpus() -> Path:
    named = os.environ.get("CONSORTIUM_TRACES")
    folder = (Path(named) if named else Path(__file__).parents[3] / "shared" / "traces") / "itp"
    if not folder.is_dir():
        pytest.skip(f"the real trace is not at {folder}")
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("variant", ["alone", "open", "sovereign"])
def test_the_first_3000_jobs_of_the_real_trace(
    corpus: Path, call: Callable[..., Outcome], tmp_path: Path, variant: str
) -> None:
    path = tmp_path / "events.jsonl"
    shown = call(
        "simulate", "itp-ten-states", f"variant={variant}", "trace.jobs=3000", "--trace", str(corpus), "--json",
        "--events", str(path),
    )  # fmt: skip
    figures = json.loads(shown.out)
    assert (figures["jobs"], figures["completed"], figures["infeasible"]) == (3000, 3000, 0)
    assert set(figures["violations"].values()) == {0}
    wait_h = _checked(path, corpus, variant)
    assert figures["mean_wait_h"] == pytest.approx(wait_h, abs=1e-5)


def _checked(path: Path, corpus: Path, variant: str) -> float:
    """Check the file of events against the trace alone, and return the mean wait in hours."""
    import csv
    import gzip
    from hashlib import sha256

    sizes = (64, 96, 144, 512, 16, 96, 272, 72, 32, 16)
    partners = ("au", "br", "ca", "de", "es", "fr", "it", "jp", "kr", "mx")
    trace: dict[str, tuple[str, int, int, int]] = {}
    for number, partner in enumerate(partners, start=1):
        with gzip.open(corpus / f"cluster{number:02}.csv.gz", "rt") as text:
            for job, submitted, duration, gpus in list(csv.reader(text))[1:]:
                trace[job] = partner, int(submitted), int(duration), int(gpus)
    taken: dict[str, int] = {}
    at_site: dict[str, int] = dict.fromkeys(partners, 0)
    running: dict[str, dict[str, Any]] = {}
    kept: dict[str, int] = {}
    waits = []
    for event in map(json.loads, path.read_text().splitlines()):
        partner, submitted, duration, gpus = trace[event["job"]]
        sign = {"submit": 0, "start": 1}.get(event["event"], -1)
        for node, count in event["nodes"].items():
            assert node.startswith(event["site"])
            taken[node] = taken.get(node, 0) + sign * count
            assert 0 <= taken[node] <= 8
        if sign == 0:
            assert event["t"] == submitted
            continue
        at_site[event["site"][:2]] += sign * gpus
        assert at_site[event["site"][:2]] <= sizes[partners.index(event["site"][:2])]
        if event["event"] == "start":
            assert event["job"] not in running
            assert event["gpus"] == gpus == sum(event["nodes"].values())
            assert len(event["nodes"]) == max(1, gpus // 8)
            pinned = int(sha256(event["job"].encode()).hexdigest()[:8], 16) % 10 < 3
            if variant == "alone" or (variant == "sovereign" and pinned):
                assert event["site"][:2] == partner
            running[event["job"]] = event
            continue
        begun = running.pop(event["job"])
        assert (begun["site"], begun["nodes"]) == (event["site"], event["nodes"])
        ran = event["t"] - begun["t"]
        if event["event"] == "preempt":
            kept[event["job"]] = kept.get(event["job"], 0) + (ran - 120) // 1800 * 1800
        else:
            assert kept.get(event["job"], 0) + ran == duration
            waits.append(event["t"] - submitted - duration)
    assert not running
    return sum(waits) / len(waits) / 3600
