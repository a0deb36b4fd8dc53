"""What keeps sites whose texts differ from drifting apart between rounds: a correction that costs no byte.

In its inner steps a site with German text goes where German goes, and the mean of what three such sites did is less
than what one cluster with all texts would have done. But every site sees, after a round, its own pseudo-gradient and
the mean of all: the difference is how it deviates. In the next round it takes that deviation back, a share of it after
each inner step, so that what it adds of its own is what it learns about everybody's direction. This is SCAFFOLD's
control variate (https://arxiv.org/abs/1910.06378) with parameters in place of gradients: divided by the round's
learning rates, so that it follows their schedule, and therefore the same for every inner optimiser.

A deviation is the site's own. It is neither sent nor agreed on, and a site without one (new, or left out of the last
round) just trains. The deviations of all sites that took part add up to zero where weights are equal.

`lengths` is another remedy: equally many rounds, longer where the rate is high and shorter as it comes down. What sites
lose by averaging seldom weighs most at the end, when one cluster would settle; early on it matters little how often
they meet (docs/training.md has the figures; it is the reverse of https://arxiv.org/abs/2310.14423).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from consortium.train.outer import Vector


def deviation(own: Vector, mean: Vector, *, rates: float, before: Vector | None, share: float = 1.0) -> Vector:
    """Return how this site deviates, in parameters per unit of learning rate; inner steps add `share * rate` times it.

    `own` is its pseudo-gradient of the round (outer minus local), `mean` all sites' weighted mean, `rates` the sum of
    the learning rates of the round's inner steps. `before` is the deviation that was taken back in them: what the site
    would have done without is what counts. Raises ValueError where `rates` is not above zero.
    """
    if not rates > 0:
        raise ValueError(f"the learning rates of a round must add up to more than 0, got {rates}")
    found: Vector = np.multiply(np.subtract(own, mean), np.float32(1 / rates))
    return found if before is None else np.add(found, np.multiply(before, np.float32(share)))


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
