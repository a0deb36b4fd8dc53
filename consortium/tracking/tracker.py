"""What the consortium writes to an MLflow tracking server, and a digest of what stands there.

MLflow is mutable, so it is never evidence: `contents_digest` of a finished run goes into the ledger. It leaves
out tags below `LINK_PREFIX`, which are for what is known of the run only then.

The token belongs to one `Tracker`. It is never put into the environment, so a child process does not inherit it, and
two trackers in one process may hold different ones.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from consortium.domain.data import Dataset
from consortium.errors import AuthError, ConsortiumError, NotFoundError, UnreachableError, UsageError
from consortium.keys.canonical import digest_json

LINK_PREFIX = "consortium.ledger."
"""Tags below it are added after the digest was taken, and are no part of it."""
DIGEST_CHARS = 32
"""MLflow keeps 36 characters of a dataset's digest: we give it 128 bits as hex, and the whole in a tag."""
STATUSES = ("FINISHED", "FAILED", "KILLED")
_PARENT, _RUN_NAME = "mlflow.parentRunId", "mlflow.runName"
_MAX_PARAMS, _MAX_METRICS, _MAX_VALUE = 100, 1000, 6000
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "ENDPOINT_NOT_FOUND")
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_INVALID = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS")


def is_here(artifacts: str) -> bool:
    """Return whether a run's artifacts, `ROOT/EXPERIMENT/RUN/artifacts`, can be written from here.

    A folder can where its root, or what holds the root, is one of this machine; of any other store its client knows.
    """
    place = urlsplit(artifacts)
    if place.scheme not in ("", "file"):
        return True
    folders = Path(place.path).parents
    return len(folders) > 3 and (folders[2].is_dir() or (folders[3].is_dir() and folders[3] != Path("/")))


def dataset_digest(dataset: Dataset) -> str:
    """Return the `sha256:` digest over a dataset's shard digests, in order: its content, whatever its name."""
    return digest_json([shard.digest for shard in dataset.shards])


class Tracker:
    """One tracking server (or a gateway in front of it) seen with one bearer token.

    Methods raise NotFoundError for an unknown run, AuthError where the token is refused, UsageError where MLflow
    refuses the values, UnreachableError where the server does not answer.
    """

    def __init__(self, url: str, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._token = token
        self._made: Any = None
        # Read by mlflow when it is first imported: nothing but our own calls leaves a state.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")

    def __repr__(self) -> str:
        return f"Tracker({self.url})"

    @property
    def _store(self) -> Any:
        if self._made is None:
            from mlflow.store.tracking.rest_store import RestStore
            from mlflow.utils.rest_utils import MlflowHostCreds

            credentials = MlflowHostCreds(self.url, token=self._token)
            self._made = RestStore(lambda: credentials)
        return self._made

    def experiment(self, name: str) -> str:
        """Return the id of the experiment, made where it is missing."""
        with self._translated(f"experiment {name}"):
            found = self._store.get_experiment_by_name(name)
            if found is None:
                try:
                    return str(self._store.create_experiment(name))
                except Exception as fault:  # mlflow's own class is only importable here
                    if getattr(fault, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = self._store.get_experiment_by_name(name)
            return str(found.experiment_id)

    def create_run(
        self, experiment: str, name: str, tags: Mapping[str, str] | None = None, parent: str | None = None
    ) -> str:
        """Start a run in the experiment of that name, below run `parent` where given; returns the run's id."""
        from mlflow.entities import RunTag

        all_tags = {**(tags or {}), _RUN_NAME: name}
        if parent:
            all_tags[_PARENT] = parent
        experiment_id = self.experiment(experiment)
        with self._translated(f"run {name}"):
            run = self._store.create_run(
                experiment_id,
                user_id="",
                start_time=_now_ms(),
                tags=[RunTag(key, str(value)) for key, value in sorted(all_tags.items())],
                run_name=name,
            )
        return str(run.info.run_id)

    def log_params(self, run: str, params: Mapping[str, Any]) -> None:
        """Log parameters; nested mappings become dotted keys, long values are cut at MLflow's limit."""
        from mlflow.entities import Param

        flat = [Param(key, str(value)[:_MAX_VALUE]) for key, value in sorted(_flattened(params))]
        with self._translated(f"run {run}"):
            for start in range(0, len(flat), _MAX_PARAMS):
                self._store.log_batch(run, metrics=[], params=flat[start : start + _MAX_PARAMS], tags=[])

    def log_metrics(self, run: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at `step`, all with one timestamp."""
        from mlflow.entities import Metric

        now_ms = _now_ms()
        rows = [Metric(key, float(value), now_ms, step) for key, value in sorted(metrics.items())]
        with self._translated(f"run {run}"):
            for start in range(0, len(rows), _MAX_METRICS):
                self._store.log_batch(run, metrics=rows[start : start + _MAX_METRICS], params=[], tags=[])

    def log_inputs(self, run: str, datasets: Sequence[Dataset], context: str = "input") -> None:
        """Log datasets as inputs of a run: digest (128-bit prefix), whole digest, id, version and site as tags."""
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput, InputTag

        inputs = []
        for dataset in datasets:
            whole = dataset_digest(dataset)
            tags = {
                "mlflow.data.context": context,
                "consortium.dataset": dataset.id,
                "consortium.version": str(dataset.version),
                "consortium.digest": whole,
                "consortium.manifest": dataset.manifest_digest,
                "consortium.site": dataset.site,
                "consortium.class": dataset.artifact_class.value,
            }
            described = MlflowDataset(
                name=dataset.name,
                digest=whole.removeprefix("sha256:")[:DIGEST_CHARS],
                source_type="consortium",
                source=f"consortium://{dataset.site}/{dataset.id}",
            )
            inputs.append(DatasetInput(described, [InputTag(key, value) for key, value in tags.items() if value]))
        with self._translated(f"run {run}"):
            self._store.log_inputs(run, datasets=inputs)

    def finish(self, run: str, status: str = "FINISHED") -> None:
        """End a run: FINISHED, FAILED or KILLED."""
        from mlflow.entities import RunStatus

        if status not in STATUSES:
            raise UsageError(f"no run ends as {status!r}", fix=f"one of {', '.join(STATUSES)}")
        with self._translated(f"run {run}"):
            self._store.update_run_info(run, RunStatus.from_string(status), _now_ms(), None)

    def history(self, run: str) -> dict[str, list[tuple[int, int, float]]]:
        """Return all that was logged of each metric of a run: rows of (step, when in Unix ms, value), sorted."""
        with self._translated(f"run {run}"):
            names = sorted(self._store.get_run(run).data.metrics)
            return {
                name: sorted((m.step, m.timestamp, float(m.value)) for m in self._store.get_metric_history(run, name))
                for name in names
            }

    def log_figure(self, run: str, name: str, data: bytes) -> None:
        """Put a picture among a run's artifacts, as `figures/NAME`, where the tracking server keeps artifacts.

        Raises UsageError where that is a folder of another machine.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with self._translated(f"run {run}"), tempfile.TemporaryDirectory(prefix="consortium-figure-") as folder:
            uri = self._store.get_run(run).info.artifact_uri
            if not is_here(uri):
                raise UsageError(
                    f"the tracking server keeps artifacts in {uri}, which is not on this machine",
                    where=self.url,
                    fix="give it an S3 store for artifacts, or let it serve them",
                )
            file = Path(folder) / name
            file.write_bytes(data)
            get_artifact_repository(uri, tracking_uri=self.url).log_artifact(str(file), "figures")

    def contents(self, run: str) -> dict[str, Any]:
        """Return what a run says, as plain sorted values; floats as hex strings, so that no digit is lost."""
        with self._translated(f"run {run}"):
            found = self._store.get_run(run)
            metrics = {
                key: sorted(
                    [metric.step, metric.timestamp, float(metric.value).hex()]
                    for metric in self._store.get_metric_history(run, key)
                )
                for key in sorted(found.data.metrics)
            }
        info, tags = found.info, dict(found.data.tags)
        return {
            "run": info.run_id,
            "experiment": info.experiment_id,
            "status": info.status,
            "start_ms": info.start_time,
            "end_ms": info.end_time or 0,
            "params": dict(sorted(found.data.params.items())),
            "metrics": metrics,
            "tags": {key: tags[key] for key in sorted(tags) if not key.startswith(LINK_PREFIX)},
            "inputs": sorted(
                [entry.dataset.name, entry.dataset.digest, sorted([tag.key, tag.value] for tag in entry.tags)]
                for entry in found.inputs.dataset_inputs
            ),
        }

    def contents_digest(self, run: str) -> str:
        """Return the `sha256:` digest of the canonical JSON of `contents(run)`."""
        return digest_json(self.contents(run))

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as fault:
            raise _error(fault, f"{self.url} {what}") from fault


def _error(fault: Any, where: str) -> ConsortiumError:
    code, message = fault.error_code, str(fault).splitlines()[0][:500]
    if code in _ABSENT:
        return NotFoundError(f"the tracking server knows no such thing: {message}", where=where)
    if code in _REFUSED:
        return AuthError(f"the tracking server refused the token: {message}", where=where)
    if code in _INVALID:
        return UsageError(f"the tracking server refused the values: {message}", where=where)
    return UnreachableError(f"the tracking server failed: {message}", where=where, fix="try again when it is up")


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
