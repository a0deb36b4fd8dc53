from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from consortium.domain.data import ArtifactClass, Dataset, Shard
from consortium.errors import NotFoundError, UnreachableError, UsageError
from consortium.tracking.tracker import DIGEST_CHARS, LINK_PREFIX, Tracker, dataset_digest, is_here

DATASET = Dataset(
    id="ds-00000000000000000000000001",
    name="laws-fr",
    version=1,
    site="fr-1",
    territory="fr",
    artifact_class=ArtifactClass.RAW,
    languages=("fr",),
    licence="open",
    source="sample",
    shards=(Shard(key="a", digest="sha256:" + "a" * 64, size_bytes=1, documents=1),),
)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "files")]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = (home / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=home)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}", process, home / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=20)
        log.close()


def _wait_until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


@pytest.mark.integration
def test_a_run_is_kept_and_its_digest_changes_with_any_of_its_contents(url: str) -> None:
    tracker = Tracker(url)
    job = tracker.create_run("laws", "job", {"kind": "clean"})
    run = tracker.create_run("laws", "leg", {"site": "fr-1"}, parent=job)
    tracker.log_params(run, {"rules": {"min_chars": 40}, "dedup": "exact"})
    tracker.log_metrics(run, {"documents": 10, "loss": 0.1}, step=1)
    tracker.log_metrics(run, {"loss": 0.05}, step=2)
    tracker.log_inputs(run, [DATASET])
    tracker.finish(run)
    contents = tracker.contents(run)
    assert contents["params"] == {"dedup": "exact", "rules.min_chars": "40"}
    assert [row[2] for row in contents["metrics"]["loss"]] == [(0.1).hex(), (0.05).hex()]
    assert contents["tags"]["mlflow.parentRunId"] == job
    [[name, short, tags]] = contents["inputs"]
    assert (name, short) == ("laws-fr", dataset_digest(DATASET).removeprefix("sha256:")[:DIGEST_CHARS])
    assert ["consortium.digest", dataset_digest(DATASET)] in tags
    assert [(step, value) for step, _, value in tracker.history(run)["loss"]] == [(1, 0.1), (2, 0.05)]
    before = tracker.contents_digest(run)
    tracker.log_figure(run, "training.svg", b"<svg/>")
    address = f"{url}/get-artifact?run_uuid={run}&path=figures/training.svg"
    with urllib.request.urlopen(address, timeout=10) as picture:
        assert picture.read() == b"<svg/>"
    mlflow = MlflowClient(url)
    mlflow.set_tag(run, LINK_PREFIX + "index", "7")
    assert tracker.contents_digest(run) == before
    mlflow.set_tag(run, "note", "changed")
    assert tracker.contents_digest(run) != before


@pytest.mark.integration
def test_unknown_runs_and_bad_values_are_clear_errors(url: str) -> None:
    tracker = Tracker(url)
    with pytest.raises(NotFoundError, match="knows no such"):
        tracker.contents("0" * 32)
    run = tracker.create_run("laws", "leg")
    tracker.log_params(run, {"a": 1})
    with pytest.raises(UsageError):
        tracker.log_params(run, {"a": 2})
    with pytest.raises(UsageError, match="FINISHED"):
        tracker.finish(run, "DONE")


def test_an_absent_server_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UnreachableError, match="tracking server"):
        Tracker("http://127.0.0.1:9").contents("0" * 32)


def test_artifacts_are_written_to_folders_of_this_machine_only(tmp_path: Path) -> None:
    assert is_here((tmp_path / "root" / "1" / "run" / "artifacts").as_uri()), "the root is made with the first of them"
    assert not is_here("file:///of-another-machine/root/1/run/artifacts")
    assert not is_here("file:///nowhere/1/run/artifacts")
    assert is_here("mlflow-artifacts:/1/run/artifacts")


def test_a_token_is_its_tracker_s_alone() -> None:
    tracker = Tracker("http://127.0.0.1:9/mlflow", "secret-token")
    assert tracker._store.get_host_creds().token == "secret-token"
    assert "secret-token" not in repr(tracker)
    assert "secret-token" not in os.environ.values()


def test_a_dataset_s_digest_is_its_content_s() -> None:
    assert dataset_digest(DATASET) == dataset_digest(replace(DATASET, name="other"))
    other = replace(DATASET.shards[0], digest="sha256:" + "b" * 64)
    assert dataset_digest(DATASET) != dataset_digest(replace(DATASET, shards=(other,)))
