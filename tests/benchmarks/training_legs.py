"""Whole legs for the benchmark `training`: the real `FederatedLeg`s with real S3, in threads of one process.

The far end is `tests.train.hub`: the server's round machine without keys, borders or network.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from consortium.domain.codec import to_json
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.protocol import LegContext, StoreAccess
from consortium.storage.objects import ObjectStore
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep, Origin, OuterState
from consortium.train.leg import FederatedLeg
from consortium.train.order import Sequences
from consortium.train.outer import Layout, Moments, Vector
from consortium.train.schedule import Pace
from consortium.train.within import Inner, InnerResult
from tests.builders import new_id
from tests.s3 import S3, serving
from tests.train.hub import JOB, Hub, Line

VOCAB = 256


class CrashError(Exception):
    """The process died here."""


class Doomed(Line):
    """A line whose process dies at its `dies_at`-th call to the gateway, whatever call that is."""

    dies_at = 0
    calls = 0

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.dies_at:
            raise CrashError

    def send(self, *given: Any, **named: Any) -> Any:
        """Send, or die."""
        self._count()
        return super().send(*given, **named)

    def commit(self, *given: Any, **named: Any) -> None:
        """Commit, or die."""
        self._count()
        super().commit(*given, **named)

    def verdicts(self, *given: Any, **named: Any) -> None:
        """Judge, or die."""
        self._count()
        super().verdicts(*given, **named)

    def agree(self, *given: Any, **named: Any) -> None:
        """Agree, or die."""
        self._count()
        super().agree(*given, **named)


@dataclass
class Heard:
    """What a leg reports of its rounds."""

    rounds: list[dict[str, float]] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Keep the numbers of a round and when they came."""
        self.rounds.append(dict(values))
        self.at_s.append(time.monotonic())


class Costless:
    """Inner steps that take no time: what is left of a round is what the round itself costs."""

    def __init__(self, layout: Layout, seed: int, tokens_per_step: int) -> None:
        self.layout = layout
        self._tokens_per_step = tokens_per_step
        draw = np.random.default_rng(seed)
        self._outer = draw.standard_normal(layout.size, dtype=np.float32)
        self._gradient = draw.standard_normal(layout.size, dtype=np.float32) * np.float32(1e-3)

    def initial(self) -> Vector:
        """Return a random state."""
        return self._outer

    def run(
        self, start: Vector | None, *, position: int, step: int, count: int, pace: Pace | None = None, take: bool = True
    ) -> InnerResult:
        """Return the start less a fixed vector; the round is one step."""
        if start is None:
            raise ValueError("a round of more than one step")
        tokens = count * self._tokens_per_step
        return InnerResult(local=start - self._gradient, loss=1.0, tokens=tokens, position=position + count)

    def parameters(self) -> Vector:
        """No round is cut."""
        raise ValueError("a round of more than one step")

    def probe(self, outer: Vector, *, position: int, count: int) -> float:
        """There is no text."""
        return 1.0

    def moments(self) -> Moments | None:
        """There is no optimiser."""
        return None

    def restore(self, moments: Moments) -> None:
        """There is no optimiser."""


@dataclass(kw_only=True)
class Leg:
    """One site's leg, which lives again after every crash."""

    hub: Hub
    site: str
    store: ObjectStore
    params: PretrainConfig
    inner: Callable[[], Inner]
    origin: Origin
    peers: tuple[str, ...]
    access: StoreAccess
    dies_at: int = 0
    heard: Heard = field(default_factory=Heard)
    final: OuterState | None = None
    fault: BaseException | None = None
    crashes: int = 0

    def live(self) -> None:
        """Run to the end."""
        try:
            while self.final is None:
                try:
                    self._run()
                except CrashError:
                    self.crashes, self.dies_at = self.crashes + 1, 0
        except BaseException as fault:
            self.fault = fault

    def _run(self) -> None:
        context = LegContext(
            job=JOB,
            job_kind="pretrain",
            job_name="benchmark",
            attempt=new_id("att", 1),
            leg=new_id("leg", self.peers.index(self.site)),
            epoch="1.1",
            site=self.site,
            partner=self.site[:2],
            peers=self.peers,
            params=asdict(self.params),
            inputs=(),
            gpus=1,
            gpus_per_worker=1,
            gpu_resource="sim_gpu",
            store=self.access,
        )
        line = Doomed(self.hub, context, self.store)
        line.dies_at = self.dies_at
        leg = FederatedLeg(
            line,
            Keep(self.store, JOB),
            self.inner(),
            self.params,
            self.origin,
            self.heard,
            sleep=lambda _: time.sleep(0.005),
        )
        self.final = leg.run()


@contextmanager
def _server() -> Iterator[S3]:
    with tempfile.TemporaryDirectory(prefix="cs-train-") as folder, serving(Path(folder)) as s3:
        yield s3


def _legs(s3: S3, params: PretrainConfig, inner: Mapping[str, Callable[[], Inner]], layout: Layout) -> list[Leg]:
    sites = tuple(sorted(inner))
    hub, made = Hub(sites), []
    for site in sites:
        store = s3.fresh()
        made.append(
            Leg(
                hub=hub,
                site=site,
                store=store,
                params=params,
                inner=inner[site],
                origin=Origin(
                    model=to_json(params.model),
                    vocab_size=VOCAB,
                    tokenizer_digest="",
                    names=layout.names,
                    shapes=layout.shapes,
                ),
                peers=sites,
                access=StoreAccess(
                    endpoint=s3.endpoint,
                    bucket=store.bucket,
                    access_key=s3.access_key,
                    secret_key=s3.secret_key,
                    prefix="jobs/",
                ),
            )
        )
    return made


def _together(legs: list[Leg]) -> None:
    threads = [threading.Thread(target=leg.live, daemon=True) for leg in legs]
    with redirect_stdout(sys.stderr):  # a leg tells its rounds; stdout is the table's
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=600)
    for leg in legs:
        if leg.fault is not None:
            raise leg.fault
        if leg.final is None:
            raise SystemExit(f"the leg of {leg.site} did not end")


def differing_digests(params: PretrainConfig, texts: Mapping[str, Sequences], times: int, seed: int) -> tuple[int, int]:
    """Crash all legs at random calls, each somewhere else, `times` times; return differing final states and crashes."""
    draw = random.Random(seed)

    def workers() -> dict[str, Callable[[], Inner]]:
        return {site: lambda site=site: InnerWorker(params, VOCAB, texts[site], site) for site in texts}  # type: ignore[misc]  # mypy cannot infer a lambda with a default

    layout = InnerWorker(params, VOCAB, next(iter(texts.values())), "any").layout
    with _server() as s3:
        calm = _legs(s3, params, workers(), layout)
        _together(calm)
        wanted = {leg.final.digest for leg in calm if leg.final}
        calls = 2 + 4 * params.outer.rounds
        differing = crashes = 0
        for _ in range(times):
            legs = _legs(s3, params, workers(), layout)
            for leg in legs:
                leg.dies_at = draw.randint(1, calls - 1)
            _together(legs)
            crashes += sum(leg.crashes for leg in legs)
            differing += sum(leg.final is None or {leg.final.digest} != wanted for leg in legs)
    return differing, crashes


def round_seconds(params: PretrainConfig, layout: Layout, sites: tuple[str, ...]) -> float:
    """Median seconds of a round whose inner steps cost nothing, between legs of one machine."""
    tokens = params.data.batch_size * params.model.context
    with _server() as s3:
        made: dict[str, Callable[[], Inner]] = {
            site: lambda seed=seed: Costless(layout, seed, tokens)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            for seed, site in enumerate(sites)
        }
        legs = _legs(s3, params, made, layout)
        _together(legs)
        spans = [after - before for before, after in zip(legs[0].heard.at_s, legs[0].heard.at_s[1:], strict=False)]
    return statistics.median(spans)
