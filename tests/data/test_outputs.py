from __future__ import annotations

import json

import pytest

from consortium.data import profile
from consortium.data.documents import Document
from consortium.data.manifest import Stage
from consortium.data.outputs import clean_metrics, expect_inputs, track, whole_manifest
from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass
from consortium.errors import UsageError
from consortium.storage.objects import ObjectStore
from consortium.tracking.tracker import Tracker

COUNTS = {
    "documents_in": {"fr": 5, "und": 1},
    "documents_out": {"fr": 3},
    "removed": {"length.min": {"fr": 2, "und": 1}},
    "edits": {"redact.email": 4},
    "chars_in": 100,
    "chars_out": 90,
}


SIZES = {"before": 40, "after": 20}


def document(text: str, row: int) -> Document:
    return Document(id=f"{row}", text=text, row=row, language="fr", declared="fr")


def stage(digest: str) -> Stage:
    return Stage(outputs={}, manifest={"counts": COUNTS}, manifest_digest=digest, manifest_key="k")


def test_counts_of_several_datasets_are_added() -> None:
    assert clean_metrics([stage("a"), stage("b")], at_least=1) == {
        "documents_in": 12,
        "documents_out": 6,
        "chars_in": 200,
        "chars_out": 180,
        "removed.length.min": 6,
        "edits.redact.email": 8,
        "language.fr.documents_in": 10,
        "language.fr.documents_out": 6,
        "language.und.documents_in": 2,
        "language.und.documents_out": 0,
    }


def test_small_numbers_do_not_leave_home() -> None:
    found = clean_metrics([stage("a"), stage("b")])
    assert found == {
        "documents_in": 12,
        "documents_out": 6,
        "chars_in": 200,
        "removed.other": 6,
        "language.other.documents_in": 12,
        "language.other.documents_out": 6,
    }


@pytest.mark.integration
def test_lengths_are_told_where_all_stages_have_profiles(store: ObjectStore) -> None:
    both = {side: to_json(profile.of(document("x" * 100, row) for row in range(n))) for side, n in SIZES.items()}
    digest = store.put_addressed("jobs/j/profiles", json.dumps(both).encode(), ".json").digest
    known = Stage(
        outputs={},
        manifest={"counts": COUNTS, "profiles": digest},
        manifest_digest="a",
        manifest_key="jobs/j/manifests/0.json",
    )
    found = clean_metrics([known, known], store)
    assert 64 <= found["length.p50_in"] <= 127
    assert 64 <= found["length.p50_out"] <= 127
    assert "length.p50_in" not in clean_metrics([known, stage("b")], store)
    assert "length.p50_in" not in clean_metrics([known, known])


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
