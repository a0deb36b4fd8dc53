"""The main job, end to end: what `consortium demo` does, on a generated sample."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from consortium.config import load_federation
from consortium.local.demo.corpora import Corpora
from consortium.local.demo.run import run
from tests.conftest import Embedded

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def document(embedded: Embedded) -> dict[str, Any]:
    corpora = Corpora(found={}, source="a sample")
    begun = time.monotonic()
    return run(embedded.directory, load_federation(), corpora, begun=begun, start_s=0.0, say=print)


def test_every_job_but_the_denied_one_succeeds(document: dict[str, Any]) -> None:
    states = {job["name"]: job["state"] for job in document["jobs"]}
    assert states.pop("read-uy-at-fr") == "denied"
    assert set(states.values()) == {"succeeded"}
    kinds = [job["kind"] for job in document["jobs"]]
    assert {kind: kinds.count(kind) for kind in ("clean", "tokenize", "pretrain")} == {
        "clean": 4,
        "tokenize": 1,
        "pretrain": 1,
    }


def test_the_denial_names_clause_file_and_line(document: dict[str, Any]) -> None:
    (denial,) = document["denied"]
    assert denial["clause"].startswith("uy/residency/")
    assert denial["file"] == "configs/policy/uy.yaml"
    lines = (Path(__file__).parents[2] / denial["file"]).read_text().splitlines()
    assert "raw" in lines[denial["line"] - 1]
    assert denial["would_pass"]


def test_loss_falls_in_all_three_languages(document: dict[str, Any]) -> None:
    before, after = document["loss"]["before"], document["loss"]["after"]
    assert set(before) == set(after) == {"de", "es", "fr"}
    assert all(after[language] < before[language] - 0.2 for language in before)


def test_rounds_close_with_agreeing_states_of_all_sites(document: dict[str, Any]) -> None:
    assert len(document["rounds"]) >= 4
    assert [item["round"] for item in document["rounds"]] == list(range(1, len(document["rounds"]) + 1))
    assert all(item["phase"] == "closed" and item["digest"] for item in document["rounds"])
    assert all(item["sites"] == ["de-1", "fr-1", "uy-1"] for item in document["rounds"])


def test_no_text_crosses_any_border(document: dict[str, Any]) -> None:
    assert document["crossings"]
    assert not {row["class"] for row in document["crossings"]} & {"raw", "clean", "tokens"}


def test_every_partner_delivers_and_consumes(document: dict[str, Any]) -> None:
    hours = document["gpu_hours"]
    assert set(hours) == {"de", "fr", "uy"}
    assert all(row["delivered"] > 0 and row["consumed"] > 0 for row in hours.values())
    total = {key: sum(row[key] for row in hours.values()) for key in ("delivered", "consumed")}
    assert total["delivered"] == pytest.approx(total["consumed"], abs=1e-5)


def test_reports_verify_and_a_changed_digit_is_refused(document: dict[str, Any]) -> None:
    assert document["verified"]
    assert document["audit"]["forged"]["exit_code"] == 7
    assert all(json.loads(Path(path).read_text()) for path in document["reports"].values())
