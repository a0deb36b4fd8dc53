"""The inner steps of one round, in stretches of seconds: between them the leg looks up, and keeps what it has.

Where the steps are cut changes no bit of the parameters. What is kept is the site's own: it is never sent or committed.
While an exchange is under way the stretches are shorter, and between them its questions to the model are answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from consortium.domain.pretraining import PretrainConfig
from consortium.train.exchange import Exchange
from consortium.train.keep import Begun, Contribution, Keep, OuterState
from consortium.train.outer import Moments, Vector
from consortium.train.saving import Saving
from consortium.train.schedule import Pace, Rounds

LOOK_S = 10.0
"""How long a stretch lasts, about: how soon a leg learns that it is to stop."""
SERVE_S = 2.0
"""The same while an exchange is under way beside it."""
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
    """Parameters after the last step; of no length where they were not asked for."""
    loss: float
    """Mean training loss over the steps, nats per token."""
    tokens: int
    position: int
    """Sequences of this site's order read so far."""


class Inner(Protocol):
    """The inner steps of a site: `consortium.train.inner.InnerWorker`, rank 0."""

    def initial(self) -> Vector:
        """Return freshly drawn parameters."""

    def run(
        self, start: Vector | None, *, position: int, step: int, count: int, pace: Pace | None = None, take: bool = True
    ) -> InnerResult:
        """Train `count` steps, reading on from `position`: from `start`, or, where that is None, from where the last
        call ended; the result then counts from where that one began.

        `step` numbers the first of them over the whole training; `pace` says where in the schedule that is for a site
        with a pace of its own. Without `take` the result holds no parameters.
        """

    def parameters(self) -> Vector:
        """Return the parameters as they are."""

    def probe(self, outer: Vector, *, position: int, count: int) -> float:
        """Return the mean loss, nats per token, of `outer` on `count` sequences from `position` on; nothing learns."""

    def moments(self) -> Moments | None:
        """Return the inner optimiser's state."""

    def restore(self, moments: Moments) -> None:
        """Set the inner optimiser's state."""


class Exchanging(Protocol):
    """An exchange under way beside the steps: `consortium.train.beside.Beside`."""

    def asked(self) -> bool:
        """Whether it asks something of the model. Raises what ended it, where it failed."""

    def serve(self) -> None:
        """Answer it; the parameters are not what they were then."""


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
        self._saving = Saving(keep.save_begun)
        self._inner = inner
        self._rounds = Rounds.of(params)
        self._size = size
        self._keep_s = exchange.context.checkpoint_every_s or KEEP_S
        self._now_s = now_s

    def train(self, state: OuterState, number: int, steps: int) -> Begun:
        """Return the round's `steps` done, up to its sending.

        Raises Stopped where the leg is to end before; what it has is kept then.
        """
        return self._on(self._taken_up(state.ahead or _nothing(state, number)), steps, steps, None)

    def train_on(self, sent: Begun | Contribution, count: int, steps: int, beside: Exchanging) -> Begun:
        """Return the first `count` of the `steps` of the round after that of `sent`, whose exchange goes on meanwhile.

        Between stretches what the exchange asks of the model is answered. Raises what ended it, where it failed, and
        Stopped as `train` does.
        """
        return self._on(self._taken_up(self.begun_after(sent)), count, steps, beside)

    def begun_after(self, sent: Begun | Contribution) -> Begun:
        """Return the round after that of `sent` with nothing done of it yet, from this site's own parameters."""
        if sent.local is None:
            raise ValueError("a contribution that keeps no parameters has nothing to go on from")
        return Begun(
            round=sent.round + 1,
            previous_outer=sent.previous_outer,
            local=sent.local,
            steps=0,
            loss_sum=0.0,
            tokens=0,
            position=sent.position,
            moments=sent.moments,
        )

    def keep(self, now: Begun) -> None:
        """Keep steps that cannot be applied before the leg ends."""
        self._saving.begin(now)
        self._saving.ended(wait=True)

    def _taken_up(self, begun: Begun) -> Begun:
        """Return the steps kept of the round, where they go on from the same, or `begun`."""
        kept = self._keep.begun(begun.round, self._size)
        if kept is None or kept.previous_outer != begun.previous_outer:
            return begun
        if kept.moments is not None:
            self._inner.restore(kept.moments)
        return kept

    def _on(self, begun: Begun, until: int, steps: int, beside: Exchanging | None) -> Begun:
        """Train up to `until` of the round's `steps`. Nothing is being saved any more when it returns."""
        kept = begun.steps
        self._tell(begun, kept, steps)
        told_s = kept_s = self._now_s()
        start: Vector | None = begun.local
        now, since, count = begun, begun, 1
        while now.steps < until:
            began_s, count = self._now_s(), min(count, until - now.steps)
            done = self._stretch(start, now, count, steps, take=now.steps + count == until)
            here_s = self._now_s()
            start, now = None, _after(since, done, now, count, round(1000 * (here_s - began_s)))
            look_s = LOOK_S if beside is None else SERVE_S
            count = max(1, int(look_s * count / max(here_s - began_s, 1e-3)))
            if now.steps == until:
                break
            stopping = self._exchange.stopping()
            saved = self._saving.ended(wait=stopping)
            if stopping or (here_s - kept_s >= self._keep_s and not self._saving.busy):
                now = replace(now, local=self._inner.parameters(), moments=self._inner.moments())
                self._saving.begin(now)
                kept_s = self._now_s()
            if stopping:
                saved = self._saving.ended(wait=True)
            if saved is not None or here_s - told_s >= TELL_S:
                kept, told_s = saved.steps if saved else kept, self._now_s()
                self._tell(now, kept, steps)
            if stopping:
                raise Stopped
            if beside is not None and self._asked(beside, now):
                now = replace(now, local=self._inner.parameters())
                beside.serve()
                # The model was used for something else: its parameters are set anew, and sums begin from here.
                start, since = now.local, now
        self._saving.ended(wait=True)
        return replace(now, moments=self._inner.moments())

    def _asked(self, beside: Exchanging, now: Begun) -> bool:
        """Whether the exchange asks something. Where it ended because the leg is to, the steps so far are kept."""
        try:
            return beside.asked()
        except Stopped:
            self.keep(replace(now, local=self._inner.parameters(), moments=self._inner.moments()))
            raise

    def _stretch(self, start: Vector | None, now: Begun, count: int, steps: int, *, take: bool) -> InnerResult:
        begin, usual = self._rounds.before(now.round), self._rounds.steps(now.round)
        pace = None if steps == usual else Pace(begin, usual, steps)
        return self._inner.run(start, position=now.position, step=begin + now.steps, count=count, pace=pace, take=take)

    def _tell(self, now: Begun, kept: int, steps: int) -> None:
        self._exchange.progress(
            phase="train",
            round=now.round,
            rounds=self._rounds.rounds,
            step=now.steps,
            steps=steps,
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


def _after(begun: Begun, done: InnerResult, now: Begun, count: int, took_ms: int) -> Begun:
    """Add what was done since `begun`, of which the last `count` steps after `now`."""
    steps = now.steps + count
    return replace(
        begun,
        local=done.local,
        steps=steps,
        loss_sum=begun.loss_sum + done.loss * (steps - begun.steps),
        tokens=begun.tokens + done.tokens,
        position=done.position,
        train_ms=now.train_ms + took_ms,
    )
