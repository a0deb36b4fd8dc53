"""Trainings that the benchmark `training` compares, each asked for once and done by processes side by side.

A training takes one core, so as many run as there are cores. What is timed runs once they are done.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from types import TracebackType

import numpy as np
import torch

from consortium.domain.pretraining import PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.train.codes import FP32, Code
from consortium.train.outer import Vector
from tests.benchmarks.training_sites import Corpus, Federation, corpora

LIAR = "zz-1"
"""A fourth site, with the first one's text, so that only its lies set it apart."""
FROM_ROUND = 3
"""From which round on it lies."""
NO_GATES = ScreenRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training, from the first parameters to the loss on held-out text."""

    params: PretrainConfig
    single: bool = False
    """On one cluster, data parallel, in place of three sites."""
    code: Code = FP32
    rule: ScreenRule = NO_GATES
    lie: float = 0.0
    """What the liar multiplies its pseudo-gradients with; 0: there is none."""
    of_state: bool = False
    """Whether it does so with its optimiser's state, and sends honest pseudo-gradients."""
    killed: tuple[tuple[int, str, int], ...] = ()
    """Rounds in which a site's process ends: number, site, and after how many steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to."""

    loss: float
    """Nats per byte, the mean over the languages."""
    size: int
    """Parameters."""
    sent_bytes: int
    tokens: int
    again: int
    refused: dict[int, dict[str, str]]


class Trainings:
    """Runs side by side, within the `with`, of `sites`."""

    def __init__(self, sites: Iterable[str]) -> None:
        self.sites = tuple(sites)
        # Not forked: this process has threads.
        ways = multiprocessing.get_context("spawn")
        cores = len(os.sched_getaffinity(0))
        self._pool = ProcessPoolExecutor(cores, mp_context=ways, initializer=torch.set_num_threads, initargs=(1,))
        self._asked: dict[str, Future[Result]] = {}

    def __enter__(self) -> Trainings:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def ask(self, run: Run) -> Callable[[], Result]:
        """Begin the training, unless it was asked for before; return what waits for its result."""
        name = repr(run)
        if name not in self._asked:
            self._asked[name] = self._pool.submit(_result, run)
        return self._asked[name].result


@cache
def _texts() -> dict[str, Corpus]:
    return corpora()


def _result(run: Run) -> Result:
    texts = _texts()
    honest = Federation(run.params, texts)
    if run.single:
        out = honest.single()
    else:
        here = Federation(run.params, texts | {LIAR: next(iter(texts.values()))}) if run.lie else honest
        out = here.run(
            code=run.code,
            meddle=None if run.of_state else partial(_said, run),
            forge=partial(_said, run) if run.of_state else None,
            rule=run.rule,
            kill={number: (site, steps) for number, site, steps in run.killed},
        )
    return Result(
        loss=honest.loss(out),
        size=len(out.outer),
        sent_bytes=out.sent_bytes,
        tokens=out.tokens,
        again=out.again,
        refused=out.refused,
    )


def _said(run: Run, site: str, number: int, vector: Vector) -> Vector:
    return vector * np.float32(run.lie) if site == LIAR and number >= FROM_ROUND else vector
