"""The far end of training for tests: the round machine, agreements and envelopes, in this process or over HTTP.

The rules are the real ones (`consortium.train.rounds`); what is left out is keys, borders and the network.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from consortium.domain.codec import to_json
from consortium.domain.data import Artifact, ArtifactClass, Dataset
from consortium.domain.protocol import LegContext
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Commit, Round, RoundPhase, Verdict
from consortium.errors import ConflictError, ConsortiumError, NotFoundError
from consortium.keys.canonical import digest
from consortium.storage.objects import ObjectStore
from consortium.train import disputes
from consortium.train.rounds import certify, copied_from, left_out, shown_to, standing_before

JOB = "job-0000000000000000000000000a"


@dataclass
class Hub:
    """What server and gateways together are to the legs of one job. All methods are safe to call from threads."""

    sites: tuple[str, ...]
    quorum: int = 0
    screen: ScreenRule = field(default_factory=ScreenRule)
    fragments: int = 1
    resumed: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    rounds: dict[int, Round] = field(default_factory=dict)
    artifacts: list[tuple[Artifact, bytes]] = field(default_factory=list)
    agreed: dict[str, dict[str, str]] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    progress: list[dict[str, Any]] = field(default_factory=list)
    commits_seen: list[tuple[str, int, str]] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    mute: set[str] = field(default_factory=set)
    """Sites whose recomputation of a round is not waited for: their grace is over."""

    def send(self, site: str, cls: str, name: str, data: bytes, number: int, recipients: Iterable[str]) -> Artifact:
        with self.lock:
            artifact = Artifact(
                job=JOB,
                artifact_class=ArtifactClass(cls),
                name=name,
                round=number,
                sender=site,
                recipients=tuple(sorted(recipients)),
                digest=digest(data),
                key=f"{site}/{len(self.artifacts)}",
                size_bytes=len(data),
            )
            self.artifacts.append((artifact, data))
            return artifact

    def inbox(self, site: str, round: int | None = None) -> list[Artifact]:
        with self.lock:
            to = [artifact for artifact, _ in self.artifacts if site in artifact.recipients]
            return [artifact for artifact in to if round in (None, artifact.round)]

    def receive(self, site: str, wanted: str) -> bytes:
        with self.lock:
            for artifact, data in self.artifacts:
                if artifact.digest == wanted and site in artifact.recipients:
                    return data
        raise NotFoundError(f"no artifact {wanted} for {site}")

    def commit(self, commit: Commit) -> None:
        with self.lock:
            current = self.rounds.get(commit.round)
            if current is None:
                before = self.rounds.get(commit.round - 1)
                if before is not None and before.phase is not RoundPhase.CLOSED:
                    raise ConflictError(f"round {commit.round - 1} is not closed")
                current = Round(
                    job=JOB, number=commit.round, phase=RoundPhase.OPEN, expected=self._alive(), outer_digests={}
                )
            known = next((one for one in current.commits if one.site == commit.site), None)
            if known is None and current.phase is not RoundPhase.OPEN:
                raise ConflictError(f"round {commit.round} takes no more commits")
            if known is not None and known != commit:
                raise ConflictError(f"{commit.site} committed something else before")
            if twin := copied_from(commit, current.commits):
                raise ConflictError(f"{twin} committed that to the round")
            if known is None:
                commits = sorted((*current.commits, commit), key=lambda one: one.site)
                current = replace(current, commits=tuple(commits))
                self.commits_seen.append((commit.site, commit.round, commit.digest))
            self.rounds[commit.round] = current
            self._move(commit.round)

    def verdicts(self, number: int, verdicts: Sequence[Verdict]) -> None:
        with self.lock:
            current = self.rounds[number]
            if current.phase is not RoundPhase.JUDGING:
                raise ConflictError(f"round {number} takes no verdicts now")
            known = {(one.judge, one.site) for one in current.verdicts}
            new = [one for one in verdicts if (one.judge, one.site) not in known]
            self.rounds[number] = replace(current, verdicts=(*current.verdicts, *new))
            self._move(number)

    def round(self, number: int) -> Round:
        with self.lock:
            if number not in self.rounds:
                raise NotFoundError(f"round {number} is not open yet")
            self._move(number)
            return replace(self.rounds[number], outer_digests=dict(self.agreed.get(f"outer/{number}", {})))

    def agree(self, site: str, topic: str, value: str) -> None:
        with self.lock:
            if self.agreed.setdefault(topic, {}).setdefault(site, value) != value:
                raise ConflictError(f"{site} agreed to another {topic} before")

    def lose(self, site: str) -> None:
        """The server gives a leg up: no round waits for it any more."""
        with self.lock:
            self.lost.add(site)

    def _alive(self) -> tuple[str, ...]:
        return tuple(site for site in self.sites if site not in self.lost)

    def _move(self, number: int) -> None:
        current = self.rounds[number]
        alive = set(self._alive())
        committed = {one.site for one in current.commits}
        if current.phase is RoundPhase.OPEN:
            wanted = set(current.expected) & alive
            if wanted <= committed or 0 < self.quorum <= len(committed):
                current = replace(current, phase=RoundPhase.JUDGING)
        if current.phase is RoundPhase.JUDGING:
            said = {(one.judge, one.site) for one in current.verdicts}
            standing, _ = standing_before(self.screen, self.fragments, number, self.rounds.get)
            counting = committed - left_out(number, current.rulings, standing)
            if {(judge, site) for judge in committed & alive for site in counting} <= said:
                agreed = self.agreed[f"outer/{number - 1}"]
                earlier = replace(self.rounds[number - 1], outer_digests=agreed) if number > 1 else None
                begun = disputes.beginning(self.sites, agreed, resumed=self.resumed)
                previous = disputes.holding(earlier) if earlier else begun
                certificate = certify(JOB, number, previous, current.commits, current.verdicts, standing=standing)
                current = replace(current, phase=RoundPhase.CERTIFIED, certificate=certificate)
        if current.phase is RoundPhase.CERTIFIED:
            digests = self.agreed.get(f"outer/{number}", {})
            said = disputes.published(replace(current, outer_digests=digests))
            if len(set(said.values())) > 1:
                current = self._settle(replace(current, outer_digests=digests), committed & alive)
            elif committed & alive <= digests.keys():
                current = replace(current, phase=RoundPhase.CLOSED)
        self.rounds[number] = current

    def _settle(self, current: Round, awaited: set[str]) -> Round:
        said = {part: self.agreed.get(topic, {}) for part, topic in disputes.topics(current.number).items()}
        recomputed = disputes.recomputations(said)
        if not awaited <= recomputed.keys() | self.mute or current.certificate is None:
            return current
        found = disputes.settle(current, recomputed)
        phase = RoundPhase.CLOSED if found.outer else RoundPhase.DISPUTED
        return replace(current, phase=phase, settlement=found)


class Line:
    """One leg's `Exchange` with the hub, in this process."""

    tracking_uri = ""
    token = ""

    def __init__(self, hub: Hub, context: LegContext, store: ObjectStore) -> None:
        self.hub = hub
        self.context = context
        self._store = store
        self.site = context.site

    def store(self) -> ObjectStore:
        return self._store

    def progress(self, **numbers: Any) -> None:
        self.hub.progress.append(numbers)

    def stopping(self) -> bool:
        return False

    def failed(self, message: str, fault: str) -> None:
        """The program says why it is about to fail."""

    def send(
        self,
        artifact_class: ArtifactClass | str,
        name: str,
        data: bytes,
        *,
        round: int = 0,
        recipients: Iterable[str] | None = None,
    ) -> Artifact:
        peers = [peer for peer in self.context.peers if peer != self.site]
        return self.hub.send(
            self.site, str(artifact_class), name, data, round, peers if recipients is None else recipients
        )

    def inbox(self, round: int | None = None) -> list[Artifact]:
        return self.hub.inbox(self.site, round)

    def receive(self, artifact: Artifact) -> bytes:
        """What a test may replace."""
        return self.hub.receive(self.site, artifact.digest)

    def receive_into(self, artifact: Artifact, file: BinaryIO) -> int:
        return file.write(self.receive(artifact))

    def commit(
        self, round: int, *, tokens: int, steps: int, digest: str, norm: str, loss: str, train_ms: int = 0
    ) -> None:
        self.hub.commit(
            Commit(
                job=JOB,
                round=round,
                site=self.site,
                tokens=tokens,
                steps=steps,
                digest=digest,
                norm=norm,
                loss=loss,
                train_ms=train_ms,
            )
        )

    def verdicts(self, round: int, verdicts: Sequence[Mapping[str, Any]]) -> None:
        self.hub.verdicts(round, [Verdict(job=JOB, round=round, judge=self.site, **one) for one in verdicts])

    def round(self, number: int) -> Round:
        return shown_to(self.site, self.hub.round(number))

    def agree(self, topic: str, digest: str) -> None:
        self.hub.agree(self.site, topic, digest)

    def agreements(self, topic: str) -> dict[str, str]:
        return dict(self.hub.agreed.get(topic, {}))

    def result(
        self,
        *,
        outputs: Sequence[Dataset] = (),
        manifest_digest: str = "",
        manifest: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        self.hub.results[self.site] = dict(metrics or {})


@contextmanager
def serve(line: Line) -> Iterator[str]:
    """Serve a leg's line over the gateway's HTTP API on a free port of loopback; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def log_message(self, *_: Any) -> None:
            return

        def _answer(self, body: bytes) -> None:
            try:
                status, value = 200, _route(line, self.command, self.path, body)
            except ConsortiumError as fault:
                status = fault.status
                value = {"type": f"urn:consortium:{fault.slug}", "detail": fault.what}
            data = value if isinstance(value, bytes) else json.dumps(to_json(value)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def _route(line: Line, method: str, path: str, body: bytes) -> Any:
    url = urlsplit(path)
    parts = unquote(url.path).strip("/").split("/")[1:]
    query = {key: values[0] for key, values in parse_qs(url.query).items()}
    match [method, *parts]:
        case ["GET", "context"]:
            return line.context
        case ["GET", "stop"]:
            return {"stop": line.stopping()}
        case ["POST", "progress"]:
            return line.progress(**json.loads(body))
        case ["POST", "failure"]:
            said = json.loads(body)
            line.failed(said["message"], said["fault"])
            return line.progress(failure=said["message"])
        case ["POST", "result"]:
            return line.result(metrics=json.loads(body)["metrics"])
        case ["POST", "artifacts"]:
            recipients = [site for site in query["recipients"].split(",") if site]
            return line.send(query["class"], query["name"], body, round=int(query["round"]), recipients=recipients)
        case ["GET", "artifacts"]:
            return line.inbox(int(query["round"]) if "round" in query else None)
        case ["GET", "artifacts", wanted]:
            return line.hub.receive(line.site, wanted)
        case ["POST", "rounds", number, "commit"]:
            return line.commit(int(number), **json.loads(body))
        case ["POST", "rounds", number, "verdicts"]:
            return line.verdicts(int(number), json.loads(body))
        case ["GET", "rounds", number]:
            return line.round(int(number))
        case ["POST", "agreements", *topic]:
            return line.agree("/".join(topic), json.loads(body)["digest"])
        case ["GET", "agreements", *topic]:
            return line.agreements("/".join(topic))
    raise NotFoundError(f"no route {method} {url.path}")
