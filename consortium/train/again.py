"""Inner steps done again by sample, and held against what a site contributed.

`re_execute` does a round's inner steps again, inside the territory, from the kept state, the optimiser's vectors and
the position. On the same kind of machine, library and number of workers the pseudo-gradient is the same to the last
bit. Elsewhere kernels round otherwise, and training amplifies it: `TOLERANCE` says how much still passes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from consortium.domain.pretraining import MOST_PACE, PretrainConfig
from consortium.domain.records import RE_EXECUTION_TOLERANCE
from consortium.errors import NotFoundError, VerificationError
from consortium.keys.canonical import digest as digest_of
from consortium.train.book import RoundBook
from consortium.train.codes import Code
from consortium.train.fragments import Plan
from consortium.train.keep import Keep, OuterState
from consortium.train.outer import Vector, cosine_of, difference, norm_of
from consortium.train.schedule import Pace, Rounds
from consortium.train.shared import Sharing
from consortium.train.within import Inner

if TYPE_CHECKING:
    from consortium.storage.objects import ObjectStore

TOLERANCE = RE_EXECUTION_TOLERANCE
"""Relative L2 distance of two pseudo-gradients of the same inner steps that still passes."""
START_TOLERANCE = 1e-5
"""By how much of the sites' largest an element of two means of the same states may differ: last bits, as norms do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReExecuted:
    """What doing a round's inner steps again came to."""

    round: int
    digest: str
    """Of what is kept as this site's contribution, and was compared with."""
    steps: int
    """How many inner steps the site keeps it as made of."""
    reads_on: bool
    """Whether the data position it keeps after them is the one they come to."""
    same_bits: bool
    distance: float
    """L2 norm of the difference over the norm of what was committed, as decoded; of residuals, if that is more."""
    cosine: float
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether the figure may be called re-executed."""
        return self.reads_on and (self.same_bits or self.distance <= self.tolerance)


def draw(seed: str, job: str, site: str, rounds: Iterable[int], count: int) -> tuple[int, ...]:
    """Return `count` of `rounds`, ascending, drawn by `seed` so that anybody draws the same.

    They are those of which SHA-256 of `seed job site round` is least. A seed that the site did not know when it
    committed, such as the log's root after the last round or an auditor's own, leaves it no choice.
    """

    def lot(number: int) -> bytes:
        return hashlib.sha256(f"{seed} {job} {site} {number}".encode()).digest()

    return tuple(sorted(sorted(set(rounds), key=lot)[:count]))


def re_execute(keep: Keep, inner: Inner, params: PretrainConfig, number: int, size: int) -> ReExecuted:
    """Do the inner steps of round `number` again and compare with what this site contributed.

    `inner` is a fresh worker (or group) over the same token datasets, `size` the model's. Raises NotFoundError where
    the state before the round or the contribution is not kept.
    """
    before, rounds, origin = keep.outer(number - 1, size), Rounds.of(params), keep.measured(number - 1)[0]
    plan = Plan.of(origin.layout, params.outer)
    part = plan.fragment(number)
    made = keep.contribution(number, size, part.size)
    if made is None or made.previous_outer != before.digest:
        raise NotFoundError(f"no contribution to round {number} from that outer state is kept here")
    begin, usual = rounds.before(number), rounds.steps(number)
    pace = None if made.steps == usual else Pace(begin, usual, made.steps)
    if before.moments is not None:
        inner.restore(before.moments)
    local, over, position = before.outer, 0, before.position
    if before.ahead is not None:
        over = plan.delay(number - 1) * made.steps // params.outer.inner_steps
        if number == 1:  # it goes on from another job, in which this site may have had a pace that it has no more
            fastest = MOST_PACE if params.outer.pace == "measured" else 1
            over = min(before.ahead.steps, plan.delay_steps * fastest * usual // params.outer.inner_steps)
        local, over, position = _gone_on(keep, inner, plan, before, over=over, begin=begin, pace=pace)
    if made.steps > over:
        done = inner.run(local, position=position, step=begin + over, count=made.steps - over, pace=pace)
        local, position = done.local, done.position
    again = difference(part.take(before.outer), part.take(local))
    code = Code.of(params.outer, origin.sharing.size)
    carried = None if before.residual is None else part.take(before.residual)
    moments = inner.moments() if code.state else None
    encoded = code.encode(again, carried, None if moments is None else origin.sharing.packed(moments))
    if made.thinned and encoded.residual is not None:
        raise NotFoundError(f"what encoding dropped of the contribution to round {number} is no longer kept")
    # Compared is what was committed, as peers decode it, and what it left to the next round; with the residual that is
    # kept one could make any bytes stand for any vector.
    ours, theirs = code.decode(encoded.data, part.size), code.decode(made.data, part.size)
    # Rounding is other noise altogether where the last bits were others: then what is left counts by how much of the
    # contribution it is. Where the bytes are the same ones, it has to be the same too.
    left = _apart(encoded.residual, made.residual, 0.0 if encoded.data == made.data else norm_of(theirs))
    shared = states_apart(code, origin.sharing, encoded.data, made.data, size)
    return ReExecuted(
        round=number,
        digest=made.digest,
        steps=made.steps,
        reads_on=position == made.position,
        same_bits=digest_of(encoded.data) == made.digest and left == 0.0,
        distance=max(_apart(ours, theirs), left, shared),
        cosine=cosine_of(ours, theirs),
    )


def _gone_on(
    keep: Keep, inner: Inner, plan: Plan, before: OuterState, *, over: int, begin: int, pace: Pace | None
) -> tuple[Vector, int, int]:
    """Do the `over` steps again that this site did of a round before the one `before` it was applied.

    Returns its own parameters with that applied, the steps, and the data position. It went on from the parameters that
    are kept with its contribution to the round before: they are its own word, as the position is. Raises
    VerificationError where sites of this job do not go on so, NotFoundError where that contribution is not kept.
    """
    number, ahead = before.round, before.ahead
    assert ahead is not None
    if not plan.carries or ahead.steps != over:
        raise VerificationError(
            f"the state kept before it says that {ahead.steps} of its steps were done already; this job does {over} so"
        )
    if not number:  # what it went on from is with that job
        return ahead.local, ahead.steps, ahead.position
    size = len(before.outer)
    sent = keep.contribution(number, size, plan.fragment(number).size)
    if sent is None or sent.local is None:
        raise NotFoundError(f"of the contribution to round {number} no parameters are kept, from which it goes on")
    local, position = sent.local, sent.position
    if sent.moments is not None:
        inner.restore(sent.moments)
    if over:
        done = inner.run(local, position=position, step=begin, count=over, pace=pace)
        local, position = done.local, done.position
    return plan.mix(number, local, before.outer), over, position


def check_start(store: ObjectStore, job: str, params: PretrainConfig, number: int) -> bool:
    """Hold the optimiser's state that this site began round `number` from against the mean that the round before gave.

    Returns False where nothing says what it was: it is not shared, or that round's contributions are not kept whole.
    Raises VerificationError where it is another.
    """
    keep, book = Keep(store, job), RoundBook(store, job)
    origin, before = keep.measured(number - 1)[0], book.round(number - 1)
    code, size = Code.of(params.outer, origin.sharing.size), origin.layout.size
    if not code.state or before is None or before.certificate is None or not before.certificate.contributions:
        return False
    states = {}
    try:
        for part in before.certificate.contributions:
            data = book.received(number - 1, part.digest) or book.own(number - 1, part.digest)
            if data is None:
                return False
            states[part.site] = code.state_in(data, size)
    except VerificationError:  # what is damaged says nothing, like what is not kept
        return False
    wanted = origin.sharing.mean(before.certificate.contributions, states, params.optim.betas)
    largest = origin.sharing.parts(np.max([np.abs(state) for state in states.values()], axis=0))
    moments = keep.outer(number - 1, size).moments
    steps = Rounds.of(params).before(number)
    if moments is None or moments.steps != steps:
        raise VerificationError(f"the optimiser's state kept before it is not that after {steps} steps")
    for name, vector in wanted.items():
        off = ~(np.abs(moments.vectors[name] - vector) <= START_TOLERANCE * largest[name])
        if off.any():
            raise VerificationError(
                f"the optimiser's state kept before it is not the mean of what round {number - 1} counted: "
                f"{int(off.sum()):,} elements of {name} differ"
            )
    return True


def states_apart(code: Code, sharing: Sharing, ours: bytes, theirs: bytes, size: int) -> float:
    """Return the largest relative distance of the vectors of two contributions' optimiser states, each by itself.

    One vector may be millions of times smaller than another and matter as much.
    """
    if not code.state or ours == theirs:
        return 0.0
    if code.bytes_for(size) != len(ours) or len(ours) != len(theirs):  # one says that it is not finite
        return math.inf
    one, other = (sharing.parts(code.state_in(data, size)) for data in (ours, theirs))
    return max(_apart(one[name], other[name]) for name in one)


def _apart(ours: Vector | None, theirs: Vector | None, least: float = 0.0) -> float:
    """Return the distance of two vectors over the norm of the second, or over `least` where that is more.

    Of one that is there from one that is not, infinity.
    """
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else math.inf
    scale = max(least, norm_of(theirs))
    return norm_of(difference(ours, theirs)) / scale if scale else norm_of(ours)
