"""Compute utilisation of a large federated training on a simulated clock, from costs measured here per parameter.

Nothing is trained. What a round does to each parameter besides training is timed in core seconds of this machine:
encode, decode of the peers' vectors, weighted sum and outer step, a site's own parameters mixed with the outer ones,
all of which go by tiles on all cores of a host, and the new state's digest, which one core computes. The rest is
assumed, and printed: `Assumed`.

Late application follows the order of events of `consortium.train.leg`. At the end of a round's steps the GPUs wait
until parameters and the optimiser's state are on the host. `delay_steps` of the next round are then trained beside
encoding, decoding for the norm, writing what was made to the store, sending, verdicts, fetching, the outer step and its
digest. Then the GPUs wait for what is missing of these, and while their parameters and state come to the host, are
mixed, and go back. Two rows of that: with `parallel: fsdp`, where each rank has a slice of the outer state, which its
GPU's bus carries, and what is encoded, decoded or hashed passes between slices and rank 0, hashed while the next piece
comes; and for comparison all of it in one process behind one bus, as `parallel: ddp` has it.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np

from consortium.domain.pretraining import OuterConfig
from consortium.domain.training import Contribution
from consortium.train.codes import Code
from consortium.train.fragments import Plan
from consortium.train.outer import Layout, Vector, aggregate, nesterov, vector_digest
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
    buses: int = 64
    """GPUs of a site that copy to their hosts and back, each its share."""
    bus_byte_s: float = 20e9
    """Of each of them, either way."""
    exchange_byte_s: float = 25e9
    """Of each of them to the others of its site, as slices and a GPU's parts of the model are not cut alike."""
    group_byte_s: float = 2e9
    """Between rank 0 and another rank, one connection: what gloo does here on loopback."""
    fragments: int = 1
    """Parts of the model that rounds exchange in turn (https://arxiv.org/abs/2501.18512), each every `inner_steps`."""
    delay_steps: int = 24
    """Inner steps between a fragment's departure and its application (`outer.delay`)."""
    poll_s: float = 2.0
    """Until a leg sees that a round's phase changed, of which there are three: fixed, certified, closed."""
    store_byte_s: float = 5e9
    """Of a site to its private store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Core seconds per parameter."""

    send: float
    receive: float
    apply: float
    mix: float
    digest: float


def utilisation(code: Code, size: int, given: Assumed | None = None) -> Iterator[Row]:
    """Rows: rounds that wait for each other, and rounds applied late."""
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
    late = late_s(given, cost, sent, step_s)
    yield row("utilisation: 7B, 110 Mb/s, applied late", 100 * train_s / (train_s + late), "%", 94.5, least=98)
    alone = replace(given, cores=16, buses=1, group_byte_s=math.inf, exchange_byte_s=math.inf)
    print(f"utilisation: in one process: cores {alone.cores}, buses {alone.buses}", file=sys.stderr)
    late = late_s(alone, cost, sent, step_s)
    share = 100 * train_s / (train_s + late)
    yield row("utilisation: the same with all of it in one process a site", share, "%", 94.5)


def measured(code: Code, size: int, sites: int) -> Costs:
    """Time each part of a round on `size` parameters, on one core."""
    draw = np.random.default_rng(0)
    vector = draw.standard_normal(size, dtype=np.float32)
    residual = code.encode(vector).residual
    send, sent = on_one_core(lambda: code.encode(vector, residual))
    receive, _ = on_one_core(lambda: code.decode(sent.data, size))
    names = [f"s{number}" for number in range(sites)]
    parts = [Contribution(site=name, digest="", tokens=1, weight=(1 / sites).hex(), clip=(1.0).hex()) for name in names]

    def outer() -> Vector:
        mean = aggregate(parts, dict.fromkeys(names, vector), size)
        return nesterov(vector, vector, mean, lr=0.7, momentum_decay=0.9)[0]

    apply, after = on_one_core(outer)
    plan = Plan.of(Layout.of({"all": (size,)}), OuterConfig(rounds=2, inner_steps=1, delay=1, mix=0.5))
    mix, _ = on_one_core(lambda: plan.mix(1, vector, after))
    digest, _ = on_one_core(lambda: vector_digest(after))
    of = (send, receive, apply, mix, digest)
    return Costs(**{one.name: value / size for one, value in zip(fields(Costs), of, strict=True)})


def on_one_core(work: Callable[[], T]) -> tuple[float, T]:
    """Return the least core seconds of three turns on one core, and the result."""
    took, cores = math.inf, os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # threads that share caches and memory would count for more
    try:
        for _ in range(3):
            begun = time.process_time()
            result = work()
            took = min(took, time.process_time() - begun)
    finally:
        os.sched_setaffinity(0, cores)
    return took, result


def blocking_s(given: Assumed, cost: Costs, sent: int) -> float:
    """Seconds of a round in which GPUs wait: copies, encode, the link, decode, outer step, one after another."""
    peers = given.sites - 1
    link = 8 * sent * peers / given.link_bit_s
    cores = given.parameters * (cost.send + peers * cost.receive + cost.apply) / given.cores
    digest = given.parameters * max(cost.digest, 4 / given.group_byte_s)
    return link + cores + (1 + peers) * sent / given.group_byte_s + digest + _copy_s(given, _OUT + _IN)


def late_s(given: Assumed, cost: Costs, sent: int, step_s: float) -> float:
    """Seconds of `inner_steps` steps in which GPUs wait, in the legs' order of events, all sites alike."""
    peers, parts = given.sites - 1, given.fragments
    share, steps = given.parameters / parts / given.cores, given.inner_steps / parts
    if given.delay_steps > steps:
        raise ValueError(f"a delay of {given.delay_steps} steps is longer than the {steps:g} between two exchanges")
    link = 8 * sent * peers / given.link_bit_s / parts
    out_s, in_s = _copy_s(given, _OUT), _copy_s(given, _IN)
    group_s = sent / parts / given.group_byte_s
    encoded = share * (cost.send + cost.receive) + 2 * group_s
    computed = share * (2 * peers * cost.receive + cost.apply) + 2 * peers * group_s
    digest = given.parameters * max(cost.digest, 4 / given.group_byte_s)
    beside = 3 * given.poll_s + link + computed + digest
    applied = out_s + share * cost.mix + in_s
    write_s = given.parameters / given.store_byte_s
    clock = waited = writer = 0.0
    for _ in range(20 * parts):
        clock += out_s
        writer = max(writer, clock + encoded) + _CONTRIBUTION * write_s
        clock += in_s + given.delay_steps * step_s
        late = max(0.0, writer + beside - clock)
        clock += late + applied
        writer = max(writer, clock) + _STATE * write_s
        clock += (steps - given.delay_steps) * step_s
        waited += out_s + in_s + late + applied
    return waited / 20


_CONTRIBUTION = 16.1
"""Bytes a parameter that a contribution keeps: own parameters, residual, AdamW's two vectors, and the code."""
_STATE = 24.0
"""Bytes a parameter that an outer state keeps: parameters, momentum, residual, own parameters, AdamW's two vectors."""


_OUT, _IN = 12.0, 4.0
"""Bytes a parameter that come from the GPUs: fp32 parameters and AdamW's two vectors; and that go back: parameters."""


def _copy_s(given: Assumed, of_each: float) -> float:
    """Seconds to bring so many bytes of each parameter from the GPUs to their hosts, or back."""
    of_all = of_each * given.parameters
    return of_all / given.buses / given.bus_byte_s + of_all / given.gpus / given.exchange_byte_s
