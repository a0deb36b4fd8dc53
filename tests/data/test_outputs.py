from __future__ import annotations

import pytest

from consortium.data.manifest import Stage
from consortium.data.outputs import clean_metrics, expect_inputs, track, whole_manifest
from consortium.domain.data import ArtifactClass
from consortium.errors import UsageError
from consortium.tracking.tracker import Tracker

COUNTS = {
    "documents_in": {"fr": 5, "und": 1},
    "documents_out": {"fr": 3},
    "removed": {"length.min": {"fr": 2, "und": 1}},
    "edits": {"redact.email": 4},
    "chars_in": 100,
    "chars_out": 90,
}


def stage(digest: str) -> Stage:
    return Stage(outputs={}, manifest={"counts": COUNTS}, manifest_digest=digest, manifest_key="k")


def test_counts_of_several_datasets_are_added() -> None:
    assert clean_metrics([stage("a"), stage("b")]) == {
        "documents_in": 12,
        "documents_out": 6,
        "chars_in": 200,
        "chars_out": 180,
        "removed.length.min": 6,
        "edits.redact.email": 8,
    }


def test_one_stage_s_manifest_is_the_leg_s_and_several_are_listed() -> None:
    assert whole_manifest([stage("a")]) == ({"counts": COUNTS}, "a")
    assert whole_manifest([stage("a"), stage("b")])[0]["stages"] == ["a", "b"]


def test_inputs_must_be_there() -> None:
    with pytest.raises(UsageError, match="no input lives at this site"):
        expect_inputs((), (ArtifactClass.RAW,))


def test_a_tracking_server_that_is_away_is_said_and_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    warnings: list[str] = []
    away = Tracker("http://127.0.0.1:9")
    assert not track(away, "0" * 32, params={"a": 1}, metrics={}, inputs=(), outputs=(), warn=warnings.append)
    assert "could not be tracked" in warnings[0]
