"""Cycles kept as files: each one in `recorded/` is decided again; the command that does the same says what differs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consortium.errors import UsageError
from consortium.scheduler import schedule, violations
from consortium.scheduler.recorded import record, replay
from tests.conftest import Call
from tests.scheduler.record import FOLDER, WORLDS, a_busy_day, gpus_taken_back
from tests.scheduler.worlds import started

FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_cycle_is_decided_as_it_was(path: Path) -> None:
    found = replay(path.read_bytes(), where=path.name)
    assert found.difference == "", "a rule changed? on purpose: python -m tests.scheduler.record"
    assert violations(found.snapshot, found.plan) == ()
    assert record(found.snapshot, found.plan) == path.read_bytes()
    assert path.stat().st_size < 30_000


def test_the_worlds_made_by_hand_are_those_in_the_files() -> None:
    assert {path.stem for path in FILES} >= set(WORLDS)
    for name, make in WORLDS.items():
        assert replay((FOLDER / f"{name}.json").read_bytes()).snapshot == make()


def test_what_was_taken_back_for_a_job_goes_to_it_before_a_higher_class() -> None:
    taken = gpus_taken_back()
    owner, rival = (item.id for item in taken.pending[1:])
    plan = schedule(taken)
    assert (started(plan), plan.evictions) == ({owner: ["fr-1"]}, ())
    without = replace(taken, pending=tuple(replace(item, nominated=False) for item in taken.pending))
    assert started(schedule(without)) == {rival: ["fr-1"]}


def test_another_process_decides_the_same_bytes(tmp_path: Path) -> None:
    path = FOLDER / "a-busy-day.json"
    code = (
        "import sys; from pathlib import Path; from consortium.scheduler.recorded import record, replay\n"
        "found = replay(Path(sys.argv[1]).read_bytes()); sys.stdout.buffer.write(record(found.snapshot, found.plan))"
    )
    made = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
    assert made.stdout == path.read_bytes()


def test_replay_prints_the_decision_and_its_digest(call: Call) -> None:
    path = FOLDER / "a-busy-day.json"
    plan = schedule(a_busy_day())
    shown = call("snapshot", "replay", str(path))
    assert (shown.code, shown.err) == (0, "")
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"starts       {plan.placements[0].job} at {plan.placements[0].legs[0].site} (")
    assert lines[1].startswith(f"evicted      {plan.evictions[0].job} (8 GPUs) for {plan.evictions[0].for_job}: ")
    counts = ["placements   1", "evictions    1", f"reservations {len(plan.reservations)}", "waiting      7"]
    assert lines[2:6] == counts
    told = json.loads(call("snapshot", "replay", str(path), "--json").out)
    assert (told["equal"], told["difference"]) == (True, "")
    assert lines[6:] == [f"digest       {told['digest']}"]


def changed(tmp_path: Path, change: Any) -> Path:
    document = json.loads((FOLDER / "gpus-taken-back.json").read_bytes())
    change(document)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(document))
    return path


def test_another_plan_is_told_by_its_first_difference(call: Call, tmp_path: Path) -> None:
    def elsewhere(document: dict[str, Any]) -> None:
        document["plan"]["placements"][0]["legs"][0]["site"] = "de-1"

    shown = call("snapshot", "replay", str(changed(tmp_path, elsewhere)))
    assert shown.code == 7
    assert 'plan.placements[0].legs[0].site: "de-1" in the file, "fr-1" now' in shown.err
    assert "placements   1" in shown.out
    none = call("snapshot", "replay", str(changed(tmp_path, lambda document: document.update(plan=None))))
    assert none.code == 7, "the scheduler failed when it was dumped, and does not now"
    assert "plan: null in the file" in none.err


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda document: document.pop("snapshot"), "needs `snapshot` and `plan`"),
        (lambda document: document["snapshot"].pop("now_ms"), "now_ms"),
        (lambda document: document["snapshot"]["pending"][0].update(gpus="many"), "pending.0.gpus"),
        (lambda document: document["snapshot"]["pending"][0].update(nominatd=True), "snapshot.pending[0].nominatd"),
        (lambda document: document["snapshot"].update(now_ms=float("nan")), "canonical JSON"),
    ],
)
def test_a_file_that_cannot_be_read_exits_2(call: Call, tmp_path: Path, spoil: Any, words: str) -> None:
    shown = call("snapshot", "replay", str(changed(tmp_path, spoil)))
    assert (shown.code, shown.out) == (2, "")
    assert words in shown.err
    assert "changed.json" in shown.err


def test_what_is_no_json_is_refused_and_what_is_not_there_is_said(call: Call, tmp_path: Path) -> None:
    for data in (b"", b"[]", b'{"snapshot": ', b"\xff", b"[" * 100_000):
        with pytest.raises(UsageError, match="not a recorded cycle"):
            replay(data)
    assert call("snapshot", "replay", str(tmp_path)).code == 2
    assert call("snapshot", "replay", str(tmp_path / "none.json")).code == 5


def test_a_snapshot_from_before_a_field_came_is_read_with_its_default(tmp_path: Path) -> None:
    path = changed(tmp_path, lambda document: document["snapshot"]["pending"][0].pop("expected_s"))
    assert replay(path.read_bytes()).difference == ""
