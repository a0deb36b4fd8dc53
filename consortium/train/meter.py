"""What a leg tells of its speed and its waiting: tokens a second, loss, bytes and seconds on borders, seconds waited.

A `Meter` stands between the leg and its gateway. It changes nothing that passes; it counts, and adds what it counted to
what the leg tells people (`progress`) and logs (`metrics`). All of it is of the whole site, sums and means over a
round's steps, and the gateway lets six digits of it through.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, Protocol, cast

from consortium.domain.data import Artifact, ArtifactClass
from consortium.train.exchange import Exchange


class Metrics(Protocol):
    """Where the numbers of a round go."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep the numbers of round `step`."""


@dataclass(slots=True)
class Counts:
    """What crossed this site's border."""

    sent_bytes: int = 0
    """Every recipient counted."""
    received_bytes: int = 0
    sending_s: float = 0.0
    fetching_s: float = 0.0


@dataclass(slots=True)
class _Told:
    """What is added to the next progress."""

    tokens_s: int = 0
    loss: float | None = None
    waited_s: float = 0.0
    waiting_since_s: float | None = None
    marks: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Of the last rounds, how many tokens each had come to, and when: one may be sent while the next is trained."""


class Meter:
    """An `Exchange` that counts. What it does not read passes through untouched."""

    def __init__(self, exchange: Exchange, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._exchange = exchange
        self._now_s = now_s
        self._told = _Told()
        self._lock = threading.Lock()
        self._fetching, self._fetching_since_s = 0, 0.0
        self.counts = Counts()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    @property
    def exchange(self) -> Exchange:
        """The line to the gateway, metered."""
        return cast(Exchange, self)

    def metrics(self, log: Metrics, *, flops_per_token: int | None = None) -> Metrics:
        """Return a log that adds what was counted since the round before.

        And, where `flops_per_token` is known, the FLOPs of all `tokens` this site trained on so far.
        """
        return _Metered(log, self, flops_per_token)

    def send(
        self,
        artifact_class: ArtifactClass | str,
        name: str,
        data: bytes,
        *,
        round: int = 0,
        recipients: Iterable[str] | None = None,
    ) -> Artifact:
        """Send, and count bytes and seconds."""
        began_s = self._now_s()
        sent = self._exchange.send(artifact_class, name, data, round=round, recipients=recipients)
        self.counts.sending_s += self._now_s() - began_s
        self.counts.sent_bytes += len(data) * len(sent.recipients)
        return sent

    def receive_into(self, artifact: Artifact, file: BinaryIO) -> int:
        """Fetch, and count bytes and seconds; of several calls at once, the seconds in which there was one."""
        with self._lock:
            self._fetching_since_s = self._now_s() if not self._fetching else self._fetching_since_s
            self._fetching += 1
        size_bytes = 0
        try:
            size_bytes = self._exchange.receive_into(artifact, file)
        finally:
            with self._lock:
                self._fetching -= 1
                self.counts.received_bytes += size_bytes
                if not self._fetching:
                    self.counts.fetching_s += self._now_s() - self._fetching_since_s
        return size_bytes

    def commit(self, round: int, *, tokens: int, steps: int, digest: str, norm: str, loss: str, **more: Any) -> None:
        """Commit; loss and speed of the round are known by now."""
        self._at(round, tokens, float.fromhex(loss))
        self._exchange.commit(round, tokens=tokens, steps=steps, digest=digest, norm=norm, loss=loss, **more)

    def progress(self, **numbers: Any) -> None:
        """Tell where the leg stands, with what was counted. `tokens` and `loss` of `train` are of its round."""
        now_s, told = self._now_s(), self._told
        if told.waiting_since_s is not None:
            told.waited_s += now_s - told.waiting_since_s
        told.waiting_since_s = now_s if numbers.get("phase") == "waiting" else None
        if numbers.get("phase") == "train":
            self._at(numbers["round"], numbers.pop("tokens", 0), numbers.pop("loss", None))
        added = {
            "tokens_s": told.tokens_s,
            "sent": self.counts.sent_bytes,
            "received": self.counts.received_bytes,
            "waited_s": round(told.waited_s, 1),
        }
        if told.loss is not None:
            added["loss"] = told.loss
        self._exchange.progress(**numbers, **added)

    def _at(self, number: int, tokens: int, loss: float | None) -> None:
        """See how far a round has come: the speed is that since it was seen before, in this process."""
        now_s, told = self._now_s(), self._told
        told.loss = told.loss if loss is None else loss
        seen, at_s = told.marks.get(number, (tokens, now_s))
        if tokens > seen:
            told.tokens_s = round((tokens - seen) / max(now_s - at_s, 1e-3))
        told.marks = {one: mark for one, mark in told.marks.items() if one >= number - 1} | {number: (tokens, now_s)}


class _Metered:
    """A log to which a meter's counts of each round are added."""

    def __init__(self, log: Metrics, meter: Meter, flops_per_token: int | None) -> None:
        self._log = log
        self._meter = meter
        self._flops_per_token = flops_per_token
        self._before = Counts()

    def log(self, values: Mapping[str, float], step: int) -> None:
        now, before = self._meter.counts, self._before
        self._before = replace(now)
        counted = {
            name: float(getattr(now, name) - getattr(before, name))
            for name in ("sent_bytes", "received_bytes", "sending_s", "fetching_s")
        }
        if self._flops_per_token is not None and "tokens" in values:
            counted["flops"] = values["tokens"] * self._flops_per_token
        self._log.log({**values, **counted}, step)
