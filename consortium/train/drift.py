"""What keeps sites whose texts differ from drifting apart between rounds: a correction that costs no byte.

In its inner steps a site with German text goes where German goes, and the mean of what three such sites did is less
than what one cluster with all texts would have done. But every site sees, after a round, its own pseudo-gradient and
the mean of all: the difference is how it deviates. In the next round it takes that deviation back, a share of it after
each inner step, so that what it adds of its own is what it learns about everybody's direction. This is SCAFFOLD's
control variate (https://arxiv.org/abs/1910.06378) with parameters in place of gradients: divided by the round's
learning rates, so that it follows their schedule, and therefore the same for every inner optimiser.

A deviation is the site's own. It is neither sent nor agreed on, and a site without one (new, or left out of the last
round) just trains. The deviations of all sites that took part add up to zero where weights are equal.
"""

from __future__ import annotations

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
