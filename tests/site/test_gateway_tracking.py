"""Calls of MLflow through the gateway: metrics rounded, known fields only, nothing that the policy keeps at home."""

from __future__ import annotations

from typing import Any

import pytest

from tests.site.border import Border, track
from tests.site.world import CONFIGS, now_ms

pytestmark = pytest.mark.integration


def test_metrics_stay_at_home_where_the_policy_has_come_to_say_so(border: Border) -> None:
    policy = (CONFIGS / "policy" / "fr.yaml").read_text()
    assert "[metric, control]" in policy
    border.world.sign("policy", "fr", policy.replace("[metric, control]", "[control]"), "policy-fr")
    border.gateway.documents.refresh(now_ms())
    body = {"metrics": {"loss": 1.25}, "manifest_digest": "sha256:" + "0" * 64}
    assert border.http.post("/leg/result", json=body, headers=border.leg).status_code == 204
    (leg,) = border.gateway.table.active()
    assert leg.result is not None
    assert (leg.result["metrics"], leg.result["manifest_digest"]) == ({}, "sha256:" + "0" * 64)


def test_metrics_are_rounded_and_only_known_fields_pass(border: Border) -> None:
    body = {
        "run_id": "run-1",
        "metrics": [{"key": "loss", "value": 3.14159265358979, "timestamp": 1, "step": 2, "secret": "x"}],
        "params": [{"key": "lr", "value": "0.1"}],
        "tags": [{"key": "consortium.phase", "value": "train"}],
        "attachment": "x" * 100,
    }
    assert track(border, "runs/log-batch", body).status_code == 200
    assert border.mlflow.heard[-1].body == {
        "run_id": "run-1",
        "metrics": [{"key": "loss", "value": 3.14159, "timestamp": 1, "step": 2}],
        "params": [{"key": "lr", "value": "0.1"}],
        "tags": [{"key": "consortium.phase", "value": "train"}],
    }
    assert "Authorization" not in border.mlflow.heard[-1].headers
    track(border, "runs/log-metric", {"run_id": "run-1", "key": "x", "value": "NaN"})
    assert border.mlflow.heard[-1].body["value"] == "NaN"


def test_progress_goes_without_measurements_where_metrics_stay_at_home(border: Border) -> None:
    policy = (CONFIGS / "policy" / "fr.yaml").read_text()
    border.world.sign("policy", "fr", policy.replace("[metric, control]", "[control]"), "policy-fr")
    said = {"phase": "train", "round": 3, "loss": 2.5}
    assert border.http.post("/leg/progress", json=said, headers=border.leg).status_code == 204
    (leg,) = border.gateway.table.active()
    assert leg.progress == {"phase": "train", "round": 3}


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("runs/set-tag", {"run_id": "run-1", "key": "consortium.ledger.index", "value": "x"}),
        ("runs/log-metric", {"run_id": "run-1", "key": "loss\n", "value": 1}),
        ("runs/log-batch", {"run_id": "run-2", "metrics": []}),
        ("runs/log-batch", {"metrics": []}),
        ("runs/log-parameter", {"run_id": "run-1", "key": "p", "value": "Traceback (most recent call last):\n  File"}),
        ("runs/log-parameter", {"run_id": "run-1", "key": "p", "value": "x" * 501}),
        ("runs/log-metric", {"run_id": "run-1", "key": "m", "value": "a word"}),
        ("runs/set-tag", {"run_id": "run-1", "key": "mlflow.note.content", "value": "x"}),
        ("runs/set-tag", {"run_id": "run-1", "key": "consortium.x", "value": "two\nlines"}),
        ("runs/log-batch", {"run_id": "run-1", "metrics": 7}),
        ("runs/log-batch", {"run_id": "run-1", "tags": ["x"]}),
        ("runs/update", {"run_id": "run-1", "end_time": "soon"}),
        ("runs/create", {"experiment_id": "0"}),
        ("runs/delete", {"run_id": "run-1"}),
        ("runs/search", {"experiment_ids": ["0"]}),
        ("experiments/create", {"name": "x"}),
        ("runs/../experiments/create", {"run_id": "run-1"}),
        ("logged-models", {"run_id": "run-1"}),
    ],
)
def test_other_runs_texts_and_other_calls_are_refused(border: Border, call: str, body: dict[str, Any]) -> None:
    refused = track(border, call, body)
    assert refused.status_code in (403, 404)
    assert border.mlflow.heard == []


def test_artifact_uploads_are_refused(border: Border) -> None:
    path = "/mlflow/api/2.0/mlflow-artifacts/artifacts/1/run-1/artifacts/model.bin"
    refused = border.http.put(path, content=b"\x80\x04weights", headers=border.leg)
    assert refused.status_code == 403
    assert refused.json()["error_code"] == "PERMISSION_DENIED"
    assert border.mlflow.heard == []
