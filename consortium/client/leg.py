"""What a running leg says to its site's border gateway: the SDK of the programs in `jobs/`.

A leg has two credentials and no others: a token for the gateway, and store keys that the gateway hands it in its
context. It reaches nothing outside its site; the gateway does that for it. Calls are repeated while the gateway or the
server behind it is away, because both may be restarted under a running leg; every call is safe to repeat.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import httpx

from consortium.domain import ids
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Artifact, ArtifactClass, Dataset
from consortium.domain.protocol import LegContext
from consortium.domain.training import Round
from consortium.errors import (
    ConfigError,
    ConsortiumError,
    UnreachableError,
    VerificationError,
    by_slug,
)

if TYPE_CHECKING:
    from consortium.storage.objects import ObjectStore

GATEWAY_ENV = "CONSORTIUM_GATEWAY"
TOKEN_ENV = "CONSORTIUM_LEG_TOKEN"  # noqa: S105  the variable's name, not a token
PATIENCE_S = 120.0
"""How long a call is repeated while gateway or server are away."""
_LOOK_EVERY_S = 0.5
"""Between two looks at whether others have sent."""
_AWAY = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


class LegSession:
    """One leg's connection to its gateway. Use `from_env()` inside a program; usable as a context manager.

    Every method may raise UnreachableError when gateway or server stayed away for `patience_s`, AuthError when the
    token is not (or no longer) a running leg's, and the error that a problem document from the gateway names.
    """

    def __init__(self, gateway: str, token: str, *, patience_s: float = PATIENCE_S) -> None:
        self.gateway = gateway.rstrip("/")
        self.token = token
        self.patience_s = patience_s
        self._http = httpx.Client(
            base_url=self.gateway,
            headers={"Authorization": f"Bearer {token}"},
            timeout=httpx.Timeout(120.0, connect=5.0),
            trust_env=False,
            verify=not gateway.startswith("http://"),  # without TLS there is no certificate: do not load a store
        )
        self._context: LegContext | None = None

    @classmethod
    def from_env(cls) -> LegSession:
        """Return the session that the site's agent prepared in this process's environment.

        Raises ConfigError outside a leg.
        """
        try:
            return cls(os.environ[GATEWAY_ENV], os.environ[TOKEN_ENV])
        except KeyError as fault:
            raise ConfigError(
                f"{fault.args[0]} is not set: this program runs as a leg, started by a site's agent",
                fix="submit the job with `consortium submit`",
            ) from fault

    def __enter__(self) -> LegSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    # -- what the leg is ------------------------------------------------------------------------------------------

    @property
    def context(self) -> LegContext:
        """What this leg is to do, fetched once."""
        if self._context is None:
            self._context = from_json(LegContext, self._call("GET", "/leg/context").json(), where="/leg/context")
        return self._context

    @property
    def tracking_uri(self) -> str:
        """Base URL of the MLflow API that the gateway lets through."""
        return f"{self.gateway}/mlflow"

    def store(self) -> ObjectStore:
        """Return the site's private store; write below `context.store.prefix` only."""
        from consortium.storage.objects import ObjectStore

        access = self.context.store
        return ObjectStore(
            endpoint=access.endpoint,
            access_key=access.access_key,
            secret_key=access.secret_key,
            bucket=access.bucket,
        )

    @staticmethod
    def new_id(prefix: str = "ds") -> str:
        """Return a fresh id, by default of a dataset."""
        return ids.make_id(prefix, time.time_ns() // 1_000_000, secrets.token_bytes(10))

    # -- reports --------------------------------------------------------------------------------------------------

    def progress(self, **numbers: Any) -> None:
        """Tell people where the leg stands: small numbers and words, `progress(phase="train", round=3, rounds=4)`."""
        self._call("POST", "/leg/progress", json=to_json(numbers))

    def stopping(self) -> bool:
        """Whether this leg is to keep its progress and end soon, because its GPUs are taken back.

        A program that asks, at least every few seconds, gets the time for it; one that does not is stopped at once.
        """
        return bool(self._call("GET", "/leg/stop").json()["stop"])

    def result(
        self,
        *,
        outputs: Sequence[Dataset] = (),
        manifest_digest: str = "",
        manifest: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Leave the leg's result with the site. The agent sends it on when the program has ended well.

        A second call replaces the first.
        """
        body = {
            "outputs": list(outputs),
            "manifest_digest": manifest_digest,
            "manifest": dict(manifest or {}),
            "metrics": dict(metrics or {}),
        }
        self._call("POST", "/leg/result", json=to_json(body))

    def failure(self, message: str, *, fault: str = "user") -> None:
        """Say why the program is about to fail, and whose fault it is: `user` (the program's) or `site`."""
        self._call("POST", "/leg/failure", json={"message": message[:2000], "fault": fault})

    # -- artifacts ------------------------------------------------------------------------------------------------

    def send(
        self,
        artifact_class: ArtifactClass | str,
        name: str,
        data: bytes,
        *,
        round: int = 0,
        recipients: Iterable[str] | None = None,
    ) -> Artifact:
        """Release `data` to the sites named in `recipients` (default: all peers but this site).

        The gateway asks the partner's policy, seals and announces it. Raises PolicyDeniedError naming clause, file
        and line where the partner's policy does not let it go.
        """
        if recipients is None:
            recipients = (peer for peer in self.context.peers if peer != self.context.site)
        query = {
            "class": ArtifactClass(artifact_class).value,
            "name": name,
            "round": str(round),
            "recipients": ",".join(sorted(recipients)),
        }
        headers = {"Content-Type": "application/octet-stream"}
        answer = self._call("POST", "/leg/artifacts", params=query, content=data, headers=headers)
        return from_json(Artifact, answer.json(), where="/leg/artifacts")

    def inbox(self, round: int | None = None) -> list[Artifact]:
        """Return the artifacts of this job, or of one round, addressed to this site, oldest first.

        Those of earlier attempts are included.
        """
        asked = {} if round is None else {"round": str(round)}
        answer = self._call("GET", "/leg/artifacts", params=asked)
        return from_json(list[Artifact], answer.json(), where="/leg/artifacts")

    def receive(self, artifact: Artifact) -> bytes:
        """Return the plaintext of an artifact of the inbox; the gateway has verified sender and digest."""
        asked = {"sender": artifact.sender, "round": str(artifact.round)}
        return self._call("GET", f"/leg/artifacts/{artifact.digest}", params=asked).content

    def receive_into(self, artifact: Artifact, file: BinaryIO) -> int:
        """Write the plaintext of an artifact of the inbox to `file` as it comes in, and return its size in bytes.

        The gateway has verified sender and digest. What an attempt that broke off wrote is taken back.
        """
        path, begin = f"/leg/artifacts/{artifact.digest}", file.tell()
        asked = {"sender": artifact.sender, "round": str(artifact.round)}

        def once() -> httpx.Response:
            file.seek(begin)
            file.truncate()
            with self._http.stream("GET", path, params=asked) as answer:
                if not answer.is_success:
                    answer.read()
                    return answer
                for piece in answer.iter_bytes():
                    file.write(piece)
            return answer

        self._repeated(once, path)
        size_bytes: int = file.tell() - begin
        return size_bytes

    def wait_for(self, name: str, round: int, senders: Iterable[str], timeout_s: float) -> dict[str, bytes]:
        """Return the plaintext named (`name`, `round`) from each of `senders`, waiting until all are there.

        Where a sender announced several (an earlier attempt's too), the latest counts. Raises UnreachableError naming
        the senders that sent nothing within `timeout_s`.
        """
        missing = set(senders)
        found: dict[str, bytes] = {}
        deadline = time.monotonic() + timeout_s
        while missing:
            for artifact in reversed(self.inbox(round)):
                if artifact.sender in missing and (artifact.name, artifact.round) == (name, round):
                    found[artifact.sender] = self.receive(artifact)
                    missing.discard(artifact.sender)
            if missing and time.monotonic() > deadline:
                raise UnreachableError(
                    f"no {name!r} of round {round} from {', '.join(sorted(missing))} in {timeout_s:.0f} s"
                )
            if missing:
                time.sleep(_LOOK_EVERY_S)
        return {site: found[site] for site in sorted(found)}

    # -- rounds and agreements ------------------------------------------------------------------------------------

    def commit(
        self, round: int, *, tokens: int, steps: int, digest: str, norm: str, loss: str, train_ms: int = 0
    ) -> None:
        """Commit this site's contribution to a round; the gateway signs it. `norm` and `loss` are hex floats."""
        body = {"tokens": tokens, "steps": steps, "digest": digest, "norm": norm, "loss": loss, "train_ms": train_ms}
        self._call("POST", f"/leg/rounds/{round}/commit", json=body)

    def verdicts(self, round: int, verdicts: Sequence[Mapping[str, Any]]) -> None:
        """Judge the commits of a round: `{"site", "digest", "accept", "reason", "norm"}` each; the gateway signs."""
        self._call("POST", f"/leg/rounds/{round}/verdicts", json=[dict(verdict) for verdict in verdicts])

    def round(self, number: int) -> Round:
        """Return the round as the server keeps it."""
        return from_json(Round, self._call("GET", f"/leg/rounds/{number}").json(), where=f"round {number}")

    def agree(self, topic: str, digest: str) -> None:
        """Publish this site's digest for `topic` (`tokenizer`, `outer/3`); the gateway signs it."""
        self._call("POST", f"/leg/agreements/{quote(topic)}", json={"digest": digest})

    def agreements(self, topic: str) -> dict[str, str]:
        """Return the digests published for `topic` so far, by site."""
        return from_json(dict[str, str], self._call("GET", f"/leg/agreements/{quote(topic)}").json(), where=topic)

    def wait_agreement(
        self,
        topic: str,
        digest: str,
        timeout_s: float,
        *,
        sites: Iterable[str] | None = None,
        poll_s: float = _LOOK_EVERY_S,
    ) -> None:
        """Publish `digest` and wait until all `sites` (default: all peers) published the same.

        Raises VerificationError naming who differs, UnreachableError naming who stayed silent.
        """
        self.agree(topic, digest)
        expected = set(self.context.peers if sites is None else sites)
        deadline = time.monotonic() + timeout_s
        while True:
            known = self.agreements(topic)
            differ = sorted(site for site in expected & known.keys() if known[site] != digest)
            if differ:
                raise VerificationError(f"{', '.join(differ)} hold another {topic} than this site: {known}")
            if expected <= known.keys():
                return
            if time.monotonic() > deadline:
                silent = ", ".join(sorted(expected - known.keys()))
                raise UnreachableError(f"no digest of {topic} from {silent} in {timeout_s:.0f} s")
            time.sleep(poll_s)

    # -- one call -------------------------------------------------------------------------------------------------

    def _call(self, method: str, path: str, **request: Any) -> httpx.Response:
        return self._repeated(lambda: self._http.request(method, path, **request), path)

    def _repeated(self, once: Callable[[], httpx.Response], path: str) -> httpx.Response:
        deadline = time.monotonic() + self.patience_s
        pause_s = 0.1
        while True:
            try:
                answer = once()
                if answer.status_code not in _AWAY:
                    break
                away: ConsortiumError = problem_of(answer)
            except httpx.TransportError as fault:
                away = UnreachableError(f"the gateway does not answer: {fault}", where=f"{self.gateway}{path}")
            if time.monotonic() + pause_s > deadline:
                raise away
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 3.0)
        if answer.is_success:
            return answer
        raise problem_of(answer)


def run(program: Callable[[LegSession], None]) -> int:
    """Run `program` as this process's leg and return its exit code.

    A ConsortiumError is printed as people read it and reported to the site with whose fault it was; any other
    exception goes to the log with its traceback, and only its type and first line are reported. The gateway keeps these
    words at home where the site's policy keeps logs at home. One that SIGTERM ended, as it does where a machine is shut
    down, has 143, by which the agent knows it for killed.
    """
    session = LegSession.from_env()
    try:
        with session:
            try:
                program(session)
            except ConsortiumError as fault:
                sys.stderr.write(fault.render() + "\n")
                whose = "site" if isinstance(fault, UnreachableError) else "user"
                session.failure(fault.render(), fault=whose)
                return fault.exit_code
            except SystemExit:  # Ray's, at SIGTERM, with a code that depends on where that struck: no program calls it
                return 128 + signal.SIGTERM
            except Exception as fault:
                session.failure(f"{type(fault).__name__}: {fault}".splitlines()[0])
                raise
    except UnreachableError as fault:
        sys.stderr.write(fault.render() + "\n")
        return fault.exit_code
    return 0


def problem_of(answer: httpx.Response) -> ConsortiumError:
    """Return the error that a problem document (RFC 9457) of server or gateway names."""
    try:
        document = answer.json()
        slug = str(document["type"]).rpartition(":")[2]
        return by_slug(slug)(str(document["detail"]), where=document.get("where"), fix=document.get("fix"))
    except (ValueError, KeyError, TypeError, RecursionError):
        what = f"{answer.request.method} answered {answer.status_code}: {answer.text[:200]}"
        kind = UnreachableError if answer.status_code in _AWAY else ConsortiumError
        return kind(what, where=str(answer.request.url))
