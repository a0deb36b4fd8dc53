"""Rounds of unlike length: equally many, longer where the rate is high and shorter as it comes down.

What sites lose by averaging seldom weighs most at the end, when one cluster would settle; early on it matters little
how often they meet (docs/training.md has the figures; it is the reverse of https://arxiv.org/abs/2310.14423). Legs
cannot do it yet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def lengths(rates: Sequence[float], rounds: int, *, power: float) -> tuple[int, ...]:
    """Return how many steps each round has: as the rate to the `power`, of steps with these rates; 0: all alike.

    A warm-up counts as the highest rate. Every round has a step at least, and all together `len(rates)`. Raises
    ValueError where there are fewer steps than rounds, or a rate is not above zero.
    """
    values = np.asarray(rates, dtype=np.float64)
    if not 1 <= rounds <= len(values) or not bool((values > 0).all()):
        raise ValueError(f"{len(values)} steps of rates above 0 cannot be cut into {rounds} rounds")
    values[: int(values.argmax())] = values.max()
    shares = np.cumsum(values**-power)
    ends = np.searchsorted(shares, shares[-1] * (np.arange(rounds) + 1) / rounds * (1 - 1e-12)) + 1
    number = np.arange(rounds)
    # No round without a step: each ends later than the one before, and leaves one for each that follows.
    ends = np.minimum(np.maximum.accumulate(ends - number) + number, len(values) - rounds + 1 + number)
    return tuple(int(length) for length in np.diff(ends, prepend=0))
