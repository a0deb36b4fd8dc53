"""What a leg tells of its speed, its waiting and its bytes."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest

from consortium.train.meter import Meter
from tests.train.hub import Hub, Line

SITES = ("de-1", "fr-1", "uy-1")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Slow(Line):
    """A line on which every transfer takes two seconds."""

    clock: Clock

    def send(self, *given: Any, **more: Any) -> Any:
        self.clock.now_s += 2
        return super().send(*given, **more)

    def receive(self, artifact: Any) -> bytes:
        self.clock.now_s += 2
        return super().receive(artifact)


def line(hub: Hub, site: str, clock: Clock) -> Slow:
    made = Slow(hub, SimpleNamespace(site=site, peers=SITES, job="job"), None)  # type: ignore[arg-type]
    made.clock = clock
    return made


class Log:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))


def test_speed_loss_bytes_and_waiting_of_a_round_are_told(tmp_path):
    hub, clock, log = Hub(SITES), Clock(), Log()
    meter = Meter(line(hub, "fr-1", clock), now_s=clock)
    leg, metrics = meter.exchange, meter.metrics(log, flops_per_token=6_000)
    leg.progress(phase="train", round=1, step=0, tokens=0)
    clock.now_s = 10
    leg.progress(phase="train", round=1, step=5, tokens=5_000, loss=3.5)
    said = hub.progress[-1]
    assert (said["tokens_s"], said["loss"], said["step"], said["sent"]) == (500, 3.5, 5, 0)
    assert "tokens" not in said, "of a round only, unlike the tokens told when it is closed"
    clock.now_s = 20
    leg.send("pseudo_gradient", "g", b"x" * 100, round=1)
    leg.commit(1, tokens=17_000, steps=17, digest="sha256:1", norm=(1.0).hex(), loss=(3.0).hex())
    leg.progress(phase="waiting", round=1)
    clock.now_s = 52
    line(hub, "de-1", clock).send("pseudo_gradient", "g", b"y" * 70, round=1)
    (theirs,) = leg.inbox()
    assert leg.receive_into(theirs, BytesIO()) == 70
    leg.progress(phase="round closed", round=1, tokens=17_000)
    said = hub.progress[-1]
    assert (said["tokens_s"], said["loss"], said["tokens"]) == (1000, 3.0, 17_000)
    assert (said["sent"], said["received"], said["waited_s"]) == (200, 70, pytest.approx(34))
    metrics.log({"loss": 3.0}, 1)
    metrics.log({"loss": 2.0, "tokens": 17_000.0}, 2)
    assert log.rows[0] == (
        1,
        {"loss": 3.0, "sent_bytes": 200.0, "received_bytes": 70.0, "sending_s": 2.0, "fetching_s": 2.0},
    )
    assert log.rows[1][1]["sent_bytes"] == 0.0
    assert log.rows[1][1]["flops"] == 17_000.0 * 6_000, "unknown in the first, which says no tokens"


def test_seconds_in_which_several_things_are_fetched_at_once_count_once():
    hub, clock = Hub(SITES), Clock()
    at = line(hub, "fr-1", clock)
    meter = Meter(at, now_s=clock)
    theirs = [line(hub, "de-1", clock).send("pseudo_gradient", "g", bytes([n]) * 70, round=1) for n in (1, 2)]
    plain = at.receive

    def beside(artifact: Any) -> bytes:
        at.receive = plain  # type: ignore[method-assign]
        other = threading.Thread(target=meter.receive_into, args=(theirs[1], BytesIO()))
        other.start()
        other.join()
        return plain(artifact)

    at.receive = beside  # type: ignore[method-assign]
    meter.receive_into(theirs[0], BytesIO())
    assert (meter.counts.fetching_s, meter.counts.received_bytes) == (4.0, 140)


def test_a_round_that_is_sent_while_the_next_is_trained_has_a_speed_of_its_own():
    hub, clock = Hub(SITES), Clock()
    meter = Meter(line(hub, "fr-1", clock), now_s=clock)
    meter.progress(phase="train", round=1, step=0, tokens=0)
    clock.now_s = 9
    meter.progress(phase="train", round=2, step=0, tokens=0)
    clock.now_s = 10
    meter.commit(1, tokens=9_000, steps=9, digest="sha256:1", norm=(1.0).hex(), loss=(3.0).hex())
    meter.progress(phase="round closed", round=1)
    assert (hub.progress[-1]["tokens_s"], hub.progress[-1]["loss"]) == (900, 3.0)
    clock.now_s = 19
    meter.progress(phase="train", round=2, step=4, tokens=4_000, loss=2.5)
    assert (hub.progress[-1]["tokens_s"], hub.progress[-1]["loss"]) == (400, 2.5)
