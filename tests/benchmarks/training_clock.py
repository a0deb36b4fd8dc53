"""Compute utilisation of a large federated training on a simulated clock, from costs measured here per parameter.

Nothing is trained. What a round does to each parameter besides training is timed on one core of this machine: encode,
decode of the peers' vectors, weighted sum, outer step and digest. The rest is assumed, and printed: `Assumed`.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from consortium.domain.training import Contribution
from consortium.train.codes import Code
from consortium.train.outer import aggregate, nesterov, to_bytes
from tests.benchmarks.table import Row, row

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What is not measured."""

    parameters: float = 7e9
    sites: int = 3
    gpus: int = 64
    peak_flop_s: float = 989e12
    """H100 SXM, bf16, dense."""
    model_flops_utilisation: float = 0.4
    tokens_per_step: float = 2**21
    """Per site."""
    inner_steps: int = 30
    link_bit_s: float = 110e6
    """Either way, shared by all peers."""
    cores: int = 128
    """Of all hosts of a site together, each with its share of the parameters."""
    bus_byte_s: float = 20e9
    """From each GPU to its host and back: fp32, once each way a round."""
    fragments: int = 10
    """Parts of the model synchronised one after another within a round (https://arxiv.org/abs/2501.18512)."""
    delay_steps: int = 6
    """Inner steps between a fragment's departure and its application."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Core seconds per parameter."""

    send: float
    receive: float
    apply: float


def utilisation(code: Code, size: int, given: Assumed | None = None) -> Iterator[Row]:
    """Rows: rounds that wait for each other, and rounds in fragments applied late."""
    given = given or Assumed()
    cost = measured(code, size, given.sites)
    for one in fields(given):
        print(f"utilisation: assumed {one.name} {getattr(given, one.name):,g}", file=sys.stderr)
    step_s = 6 * given.parameters * given.tokens_per_step / (given.gpus * given.peak_flop_s)
    step_s /= given.model_flops_utilisation
    sent = code.bytes_for(int(given.parameters))
    said = f"a step takes {step_s:.2f} s, a round sends {sent / 1e6:,.0f} MB to each peer's reach"
    print(f"utilisation: {said}; core ns per parameter: {cost}", file=sys.stderr)
    train_s = given.inner_steps * step_s
    waiting = blocking_s(given, cost, sent)
    yield row("utilisation: 7B, 110 Mb/s, rounds that wait", 100 * train_s / (train_s + waiting), "%", 94.5)
    late = streaming_s(given, cost, sent, step_s)
    yield row(
        "utilisation: 7B, 110 Mb/s, fragments applied late", 100 * train_s / (train_s + late), "%", 94.5, least=98
    )


def measured(code: Code, size: int, sites: int) -> Costs:
    """Time each part of a round on `size` parameters, on one core."""
    draw = np.random.default_rng(0)
    vector = draw.standard_normal(size, dtype=np.float32)
    residual = code.encode(vector).residual
    send, sent = _timed(lambda: code.encode(vector, residual))
    receive, _ = _timed(lambda: code.decode(sent.data, size))
    names = [f"s{number}" for number in range(sites)]
    parts = [Contribution(site=name, digest="", tokens=1, weight=(1 / sites).hex(), clip=(1.0).hex()) for name in names]

    def outer() -> str:
        mean = aggregate(parts, dict.fromkeys(names, vector), size)
        after, _ = nesterov(vector, vector, mean, lr=0.7, momentum_decay=0.9)
        return hashlib.sha256(to_bytes(after)).hexdigest()

    apply, _ = _timed(outer)
    return Costs(send=send / size, receive=receive / size, apply=apply / size)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begun = time.process_time()
    result = work()
    return time.process_time() - begun, result


def blocking_s(given: Assumed, cost: Costs, sent: int) -> float:
    """Seconds of a round in which GPUs wait: copies, encode, the link, decode, outer step, one after another."""
    peers = given.sites - 1
    link = 8 * sent * peers / given.link_bit_s
    cores = given.parameters * (cost.send + peers * cost.receive + cost.apply) / given.cores
    return link + cores + 2 * _copy_s(given)


def streaming_s(given: Assumed, cost: Costs, sent: int, step_s: float) -> float:
    """Seconds of a round in which GPUs wait where fragments leave at offsets and are applied `delay_steps` later.

    Copies between GPU and host stop the GPUs. Encoding, link and decoding run beside them, one fragment after another
    on each; a fragment that is not there when it is due makes the GPUs wait.
    """
    peers, parts = given.sites - 1, given.fragments
    link = 8 * sent * peers / given.link_bit_s / parts
    before = given.parameters * cost.send / given.cores / parts
    after = given.parameters * (peers * cost.receive + cost.apply) / given.cores / parts
    copy = _copy_s(given) / parts
    clock = waited = link_free = cores_free = 0.0
    rounds = 20
    due: list[tuple[int, float]] = []
    """Step at which a fragment is applied, and when it is there."""
    leaves = {round(part * given.inner_steps / parts) for part in range(parts)}
    for step in range(rounds * given.inner_steps):
        while due and due[0][0] <= step:
            there = due.pop(0)[1]
            stop = max(0.0, there - clock) + copy
            clock, waited = clock + stop, waited + stop
        if step % given.inner_steps in leaves:
            clock, waited = clock + copy, waited + copy
            encoded = cores_free = max(cores_free, clock) + before
            arrived = link_free = max(link_free, encoded) + link
            cores_free = max(cores_free, arrived) + after
            due.append((step + given.delay_steps, cores_free))
        clock += step_s
    return waited / rounds


def _copy_s(given: Assumed) -> float:
    """Seconds to bring all parameters in fp32 from the GPUs to their hosts, or back."""
    return 4 * given.parameters / given.gpus / given.bus_byte_s
