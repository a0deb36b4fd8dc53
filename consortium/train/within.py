"""The inner steps of one round, in stretches of seconds: between them the leg looks up, and keeps what it has.

Where the steps are cut changes no bit of the parameters. What is kept is the site's own: it is never sent or committed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from consortium.domain.pretraining import PretrainConfig
from consortium.train.exchange import Exchange
from consortium.train.keep import Begun, Keep, OuterState
from consortium.train.outer import Moments, Vector

LOOK_S = 10.0
"""How long a stretch lasts, about: how soon a leg learns that it is to stop."""
TELL_S = 30.0
"""How often people and the watchdog hear of it, at the most."""
KEEP_S = 600
"""How often the progress is kept where the job does not say."""


class Stopped(Exception):
    """The leg is to end now; what it has is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerResult:
    """What the inner steps came to, since they were begun or taken up again."""

    local: Vector
    """Parameters after the last step."""
    loss: float
    """Mean training loss over the steps, nats per token."""
    tokens: int
    position: int
    """Sequences of this site's order read so far."""


class Inner(Protocol):
    """The inner steps of a site: `consortium.train.inner.InnerWorker`, rank 0."""

    def initial(self) -> Vector:
        """Return freshly drawn parameters."""

    def run(self, start: Vector | None, *, position: int, step: int, count: int) -> InnerResult:
        """Train `count` steps, reading on from `position`: from `start`, or, where that is None, from where the last
        call ended; the result then counts from where that one began."""

    def probe(self, outer: Vector, *, position: int, count: int) -> float:
        """Return the mean loss, nats per token, of `outer` on `count` sequences from `position` on; nothing learns."""

    def moments(self) -> Moments | None:
        """Return the inner optimiser's state."""

    def restore(self, moments: Moments) -> None:
        """Set the inner optimiser's state."""


class RoundTrainer:
    """Does a round's inner steps, from its outer state or from where an earlier epoch of the leg stopped."""

    def __init__(
        self,
        exchange: Exchange,
        keep: Keep,
        inner: Inner,
        params: PretrainConfig,
        size: int,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exchange = exchange
        self._keep = keep
        self._inner = inner
        self._steps = params.outer.inner_steps
        self._rounds = params.outer.rounds
        self._size = size
        self._keep_s = exchange.context.checkpoint_every_s or KEEP_S
        self._now_s = now_s

    def train(self, state: OuterState, number: int) -> Begun:
        """Return the round's steps done. Raises Stopped where the leg is to end before; what it has is kept then."""
        begun = self._keep.begun(number, self._size)
        if begun is None or begun.previous_outer != state.digest:
            begun = _nothing(state, number)
        elif begun.moments is not None:
            self._inner.restore(begun.moments)
        self._tell(begun, begun.steps)
        told_s = kept_s = self._now_s()
        start: Vector | None = begun.local
        now, count = begun, 1
        while now.steps < self._steps:
            began_s, count = self._now_s(), min(count, self._steps - now.steps)
            step = (number - 1) * self._steps + now.steps
            done = self._inner.run(start, position=now.position, step=step, count=count)
            start, now = None, _after(begun, done, now.steps + count)
            here_s = self._now_s()
            count = max(1, int(LOOK_S * count / max(here_s - began_s, 1e-3)))
            if now.steps == self._steps:
                break
            stopping = self._exchange.stopping()
            if stopping or here_s - kept_s >= self._keep_s:
                now = replace(now, moments=self._inner.moments())
                self._keep.save_begun(now)
                kept_s = told_s = self._now_s()
                self._tell(now, now.steps)
            elif here_s - told_s >= TELL_S:
                told_s = here_s
                self._tell(now, begun.steps)
            if stopping:
                raise Stopped
        return replace(now, moments=self._inner.moments())

    def _tell(self, now: Begun, kept: int) -> None:
        self._exchange.progress(
            phase="train",
            round=now.round,
            rounds=self._rounds,
            step=now.steps,
            steps=self._steps,
            tokens=now.tokens,
            kept=f"{now.round - 1}.{kept}",
            **({"loss": now.loss_sum / now.steps} if now.steps else {}),
        )


def _nothing(state: OuterState, number: int) -> Begun:
    return Begun(
        round=number,
        previous_outer=state.digest,
        local=state.outer,
        steps=0,
        loss_sum=0.0,
        tokens=0,
        position=state.position,
        moments=None,
    )


def _after(begun: Begun, done: InnerResult, steps: int) -> Begun:
    """Add what was done since to what was kept before."""
    return replace(
        begun,
        local=done.local,
        steps=steps,
        loss_sum=begun.loss_sum + done.loss * (steps - begun.steps),
        tokens=begun.tokens + done.tokens,
        position=done.position,
    )
