"""A site that says what a test tells it to: polls, reports, results, records."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx

from consortium.accounting.periods import period_of
from consortium.domain.codec import from_json, to_json
from consortium.domain.job import Epoch, Fault, LegState
from consortium.domain.protocol import LegReport, Pinned, PollRequest, PollResponse
from consortium.domain.records import Record, RecordType, UsageRow
from consortium.keys.canonical import digest_json
from consortium.keys.signing import SigningKey, sign_value
from consortium.ledger.proofs import parse_checkpoint

if TYPE_CHECKING:
    from tests.server.fed import Fed


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def until(what: Callable[[], Any], timeout_s: float = 15.0, message: str = "") -> Any:
    deadline = time.monotonic() + timeout_s
    while True:
        found = what()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(message or f"not within {timeout_s} s; last: {found!r}")
        time.sleep(0.02)


@dataclass
class ScriptedSite:
    """What a site's agent says, told step by step by a test."""

    fed: Fed
    name: str
    key: SigningKey
    legs: dict[str, LegReport] = field(default_factory=dict)
    chain: list[Record] = field(default_factory=list)
    pinned: Pinned | None = None
    healthy: bool = True
    last: PollResponse | None = None
    offers: dict[str, Any] = field(default_factory=dict)
    starts: list[tuple[str, Epoch]] = field(default_factory=list)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.fed.call(self.name, "POST", path, body)

    def poll(self) -> PollResponse:
        request = PollRequest(
            site=self.name,
            protocol=1,
            healthy=self.healthy,
            unhealthy_reason="" if self.healthy else "Ray does not answer",
            code_digest="sha256:test",
            policy_digest="sha256:policy",
            highest_epoch=max((r.epoch for r in self.legs.values()), default=Epoch(incarnation=0, counter=0)),
            legs=tuple(self.legs.values()),
            pinned=self.pinned,
            next_seq=len(self.chain),
        )
        answer = self.post(f"/v1/sites/{self.name}/poll", to_json(request))
        assert answer.status_code == 200, answer.text
        response = from_json(PollResponse, answer.json())
        self.last = response
        checkpoint = parse_checkpoint(response.checkpoint, self.fed.trust.log_name, self.fed.trust.log_key)
        self.pinned = Pinned(size=checkpoint.size, root=checkpoint.root)
        for command in response.acknowledged:
            self.legs.pop(command.leg, None)
        for offer in response.offers:
            self.offers[offer.leg] = offer
        for start in response.starts:
            if (start.leg, start.epoch) not in self.starts:
                self.starts.append((start.leg, start.epoch))
        return response

    def say(self, leg: str, epoch: Epoch, state: LegState, **more: Any) -> PollResponse:
        self.legs[leg] = LegReport(leg=leg, epoch=epoch, state=state, **more)
        return self.poll()

    def offer(self, job: str = "") -> Any:
        """Poll until an offer (of `job`) is there, and return it."""

        def found() -> Any:
            offers = [o for o in self.poll().offers if not job or o.job == job]
            return offers[0] if offers else None

        return until(found)

    def hold(self, job: str = "") -> Any:
        offer = self.offer(job)
        self.say(offer.leg, offer.epoch, LegState.HELD)
        return offer

    def wait_start(self, offer: Any) -> None:
        until(lambda: (offer.leg, offer.epoch) in self.starts or (self.poll() and False))

    def run(self, job: str = "") -> Any:
        """Take an offer, hold, wait for the start, run."""
        offer = self.hold(job)
        self.wait_start(offer)
        self.say(offer.leg, offer.epoch, LegState.RUNNING, progress={"phase": "run"})
        return offer

    def succeed(self, offer: Any, **result: Any) -> None:
        body = {"outputs": [], "manifest_digest": "sha256:manifest", "metrics": {}} | result
        self.say(offer.leg, offer.epoch, LegState.SUCCEEDED, result=body)

    def fail(self, offer: Any, fault: Fault, reason: str = "it broke") -> None:
        self.say(offer.leg, offer.epoch, LegState.FAILED, fault=fault, reason=reason)

    def record(self, kind: RecordType, body: dict[str, Any]) -> Record:
        """Add a record to the site's chain; `push` sends it."""
        previous = digest_json(self.chain[-1]) if self.chain else ""
        draft = Record(
            type=kind, origin=self.name, seq=len(self.chain), previous=previous, at_ms=now_ms(), body=to_json(body)
        )
        self.chain.append(sign_value(self.key, draft))
        return self.chain[-1]

    def usage(self, *rows: UsageRow) -> Record:
        """Add a usage record of one period, whose running sums go on from the site's last one."""
        period = period_of(rows[0].start_ms)
        earlier = [
            r.body["cumulative"] for r in self.chain if r.type is RecordType.USAGE and r.body["period"] == period
        ]
        last = earlier[-1] if earlier else {"rows": 0, "gpu_ms": 0}
        sums = {"rows": last["rows"] + len(rows), "gpu_ms": last["gpu_ms"] + sum(row.gpu_ms for row in rows)}
        return self.record(RecordType.USAGE, {"period": period, "rows": rows, "cumulative": sums})

    def push(self, *records: Record) -> httpx.Response:
        given = records or tuple(self.chain)
        return self.post(f"/v1/sites/{self.name}/records", {"records": to_json(given)})
