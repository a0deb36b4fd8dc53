"""The learning rate of every step of a training, and how its steps are cut into rounds.

By default all rounds are alike. With `outer.taper` there are as many, over the same steps, but long where the rate is
high and short where it is low: what sites lose by meeting seldom weighs most at the end, when one cluster would
settle. (The reverse is right against drift alone, https://arxiv.org/abs/2310.14423; docs/experiments.md has figures.)
No round is shorter than a quarter of `outer.inner_steps`: what crosses a border stays the sum of so many steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from consortium.domain.pretraining import OptimConfig, PretrainConfig

SHORTEST = 4
"""A round has at least the `SHORTEST`th part of `outer.inner_steps`."""
Wide = npt.NDArray[np.float64]
_POINTS = 16
"""Places in a round of mean length at which the rate is looked at."""
_MOST_POINTS = 100_000
"""Of a training."""


def learning_rate(step: float, total: int, config: OptimConfig) -> float:
    """Return the rate at a step of `total`: a linear warm-up, then what `config.schedule` says.

    `cosine`: half a cosine down to `final_lr_share` of the rate at the last step (https://arxiv.org/abs/1608.03983).
    `wsd`: the full rate until the last `decay_share` of all steps (warm-up, stable, decay,
    https://arxiv.org/abs/2404.06395), then down as 1 - sqrt(progress) (https://arxiv.org/abs/2405.18392, section 3.3).
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    floor = config.lr * config.final_lr_share
    if config.schedule == "cosine":
        progress = min(1.0, (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps))
        return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    decay = round(config.decay_share * total)
    progress = min(1.0, max(0, step + 1 - (total - decay)) / max(1, decay))
    return floor + (config.lr - floor) * (1 - math.sqrt(progress))


@dataclass(frozen=True, slots=True)
class Rounds:
    """Where the rounds of a job begin and end in the steps of its whole training.

    Rounds are numbered from 1 as the job numbers them; steps from 0 over all of the training, with what was done before
    it was resumed.
    """

    inner_steps: int
    done: int
    """Rounds before the job's first."""
    rounds: int
    """Of the job."""
    ends: tuple[int, ...] = ()
    """Steps up to the end of each round, from the training's first; empty: all are `inner_steps` long."""

    @classmethod
    def of(cls, params: PretrainConfig) -> Rounds:
        """Return the rounds of a job."""
        rule = params.outer
        ends = _tapered(params.optim, params.all_rounds, rule.inner_steps, rule.taper) if rule.taper else ()
        return cls(rule.inner_steps, params.start.done, rule.rounds, ends)

    def before(self, number: int) -> int:
        """Return the number of round `number`'s first step."""
        at = self.done + number - 1
        if not self.ends:
            return at * self.inner_steps
        return self.ends[at - 1] if at else 0

    def steps(self, number: int) -> int:
        """Return how many steps a site does in a round, where its pace is the slowest's."""
        return self.before(number + 1) - self.before(number)

    @property
    def span(self) -> tuple[int, int]:
        """Steps of the shortest and of the longest round of the job."""
        if not self.ends:
            return self.inner_steps, self.inner_steps
        lengths = [self.steps(number) for number in range(1, self.rounds + 1)]
        return min(lengths), max(lengths)


@lru_cache(maxsize=32)
def _tapered(optim: OptimConfig, rounds: int, inner_steps: int, taper: float) -> tuple[int, ...]:
    """Return where rounds end whose lengths are as the rate to the power of `taper`, and none below the shortest.

    A warm-up counts as the highest rate. A round at a step with rate r has max(least, c r^taper) steps, with c such
    that there are as many rounds as asked for.
    """
    total, least = rounds * inner_steps, -(-inner_steps // SHORTEST)
    points = min(rounds * _POINTS, _MOST_POINTS)
    width = total / points
    at = (np.arange(points) + 0.5) * width
    rates = np.array([learning_rate(float(step), total, optim) for step in at])
    rates[: int(rates.argmax())] = rates.max()
    top = rates.max()
    wished = np.power(rates / top, taper) if top else np.ones(points)

    def counts(longest: float) -> Wide:
        """Return how many rounds there are at each point."""
        made: Wide = width / np.maximum(least, longest * wished)
        return made

    low, high = 0.0, float(total)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if counts(middle).sum() > rounds else (low, middle)
    made = np.append(0.0, np.cumsum(counts(high)))
    wanted = made[-1] * np.arange(1, rounds + 1) / rounds
    # Rounded before it is cut off: halves are common, and their last bit differs between machines.
    found = np.interp(wanted, made, np.append(0.0, at + width / 2)).round(4)
    ends = [0]
    for number, end in enumerate(found, start=1):
        ends.append(min(max(math.floor(end + 0.5), ends[-1] + least), total - least * (rounds - number)))
    return tuple(ends[1:])


@dataclass(frozen=True, slots=True)
class Pace:
    """How a round's steps at a site that does other than the round's own number map to the schedule."""

    begin: int
    """The number of the round's first step."""
    usual: int
    """The round's steps."""
    own: int
    """Steps of this site in it."""

    def at(self, step: int) -> float:
        """Return where in the schedule the site's step with this number lies: the rate comes down over rounds."""
        return self.begin + (step - self.begin) * self.usual / self.own

    def drawn(self, step: int) -> int:
        """Return the number that the site's step draws its dropout by: another for each step of like rounds."""
        return self.begin * self.own // self.usual + step - self.begin
