"""The site's Ray cluster, through Ray's Jobs API.

One process talks to one cluster, because Ray reads the cluster's token from the process environment. Ray's own client
waits without end for a head that hangs; here every call has a deadline, because leases must end on time.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any

from consortium.errors import UnreachableError

CALL_TIMEOUT_S = 10.0
SLOW_TIMEOUT_S = 60.0


class RayStatus(StrEnum):
    """Where Ray says a job stands; `unknown` where the cluster never heard of it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        """Whether the job holds nothing any more."""
        return self in (RayStatus.STOPPED, RayStatus.SUCCEEDED, RayStatus.FAILED, RayStatus.UNKNOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayJob:
    """What Ray says of one job; times are UTC milliseconds."""

    status: RayStatus
    message: str = ""
    exit_code: int | None = None
    """Of the program; None where it did not end by itself."""
    start_ms: int | None = None
    end_ms: int | None = None


class _RefusedError(RuntimeError):
    """The head answered with an error."""

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(f"it answered {status}: {(text.strip().splitlines() or [''])[-1][:300]}")


def _job(info: Any) -> RayJob:
    """Read what Ray's client returns of one job."""
    return RayJob(
        status=RayStatus(info.status.value),
        message=info.message or "",
        exit_code=info.driver_exit_code,
        start_ms=info.start_time,
        end_ms=info.end_time,
    )


class RayCluster:
    """One Ray cluster. Every method raises UnreachableError where the head does not answer in time."""

    def __init__(self, dashboard_url: str, token_path: str) -> None:
        self.dashboard_url = dashboard_url
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = token_path
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
            os.environ.pop(name, None)
        self._made: Any = None

    def submit(
        self,
        submission_id: str,
        program: str,
        python: str,
        env: Mapping[str, str],
        *,
        node_label: str = "",
        nodes: Iterable[str] = (),
    ) -> None:
        """Start `python -P program` as a Ray job. A submission id is used once: the cluster refuses a second.

        Ray starts every program on the head, and a supervisor process beside it. With `node_label` both start on one
        of the Ray nodes that carry that label with one of `nodes` as its value; the job waits while there is none.
        """
        with self._translated():
            self._client().submit_job(
                # -P keeps the programs' folder off sys.path: its tokenize.py would hide the standard library's
                entrypoint=f"exec {shlex.quote(python)} -P {shlex.quote(program)}",
                submission_id=submission_id,
                runtime_env={"env_vars": dict(env)},
                entrypoint_label_selector={node_label: f"in({','.join(sorted(nodes))})"} if node_label else None,
            )

    def jobs(self) -> dict[str, RayJob]:
        """Return where every job stands that the cluster knows, by submission id: one call, however many there are."""
        with self._translated():
            found = self._client().list_jobs()
            return {str(info.submission_id): _job(info) for info in found if info.submission_id}

    def job(self, submission_id: str) -> RayJob:
        """Return where a job stands."""
        with self._translated():
            try:
                info = self._client().get_job_info(submission_id)
            except _RefusedError as fault:
                if fault.status != HTTPStatus.NOT_FOUND:
                    raise
                return RayJob(status=RayStatus.UNKNOWN)
            return _job(info)

    def stop(self, submission_id: str) -> None:
        """Ask Ray to stop a job; it is stopped when `job` says so."""
        self._unless_gone("stop_job", submission_id)

    def log(self, submission_id: str) -> str | None:
        """Return all that the program has written so far; empty where Ray has forgotten the job.

        None where that is no UTF-8, if only for a byte or for now: Ray gives nothing of it then.
        """
        with self._translated():
            try:
                return str(self._client().get_job_logs(submission_id))
            except _RefusedError as fault:
                if fault.status == HTTPStatus.NOT_FOUND:
                    return ""
                if UnicodeDecodeError.__name__ in fault.text:
                    return None
                raise

    def delete(self, submission_id: str) -> None:
        """Remove an ended job's record from the cluster: Ray's Jobs API suffers from many of them."""
        self._unless_gone("delete_job", submission_id)

    def _unless_gone(self, method: str, submission_id: str) -> Any:
        with self._translated():
            try:
                return getattr(self._client(), method)(submission_id)
            except _RefusedError as fault:
                if fault.status != HTTPStatus.NOT_FOUND:
                    raise
                return None

    def _client(self) -> Any:
        if self._made is None:
            from ray.job_submission import JobSubmissionClient

            class Timed(JobSubmissionClient):  # type: ignore[misc]  # Ray ships no types
                def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
                    slow = (method == "POST" and endpoint == "/api/jobs/") or endpoint.endswith("/logs")
                    options.setdefault("timeout", SLOW_TIMEOUT_S if slow else CALL_TIMEOUT_S)
                    return super()._do_request(method, endpoint, **options)

                def _raise_error(self, r: Any) -> None:
                    raise _RefusedError(r.status_code, r.text)

            self._made = Timed(self.dashboard_url)
        return self._made

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn Ray's and requests' errors into the package's own."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as fault:
            raise UnreachableError(
                f"the Ray cluster refuses the token: {str(fault).splitlines()[0]}",
                where=self.dashboard_url,
                fix="ray_token_path must hold the token that the head was started with",
            ) from fault
        except (requests.RequestException, ConnectionError, RuntimeError) as fault:
            first_line = (str(fault).splitlines() or [type(fault).__name__])[0][:300]
            raise UnreachableError(
                f"the Ray head does not answer: {first_line}",
                where=self.dashboard_url,
                fix="see the Ray head's log; its supervisor restarts it",
            ) from fault
