"""The mean of the sites' inner optimisers, from which all of them go on after a round (`outer.share: optimizer`).

Averaging the optimiser's state with the parameters is what makes local steps most like those of one cluster ("Local
Adam", https://arxiv.org/abs/2409.13155; DES-LOC, https://arxiv.org/abs/2505.22549). It crosses borders in bf16 behind
the pseudo-gradient, in one contribution with one digest, as class `optimizer_state`: it is a mean of gradients of the
last steps, so a policy may refuse it where it lets a pseudo-gradient pass.

What a site sends for it cannot be checked against its text. So it is screened like the pseudo-gradient (`screen`: its
size against the other sites', its direction against the pseudo-gradient that came of the same steps), and what it can
do besides is bounded. Of means of gradients no site's counts with more than `MOST` times the lower median of the sites'
norms, of AdamW's second moments no element with more than `HIGHEST` times theirs; each partner has one vote in medians.
Its first ones are held to what gradients with the second ones could have left, so a step changes no element by more
than AdamW's own bound; Muon orthogonalises its momentum, so that its size does not matter. All of it fades with the
optimiser's own rates. Between two sites nobody can tell who lies: the smaller is the median, so one can make both begin
anew, and no more.

Sites need not agree on it to the last bit: it is where each begins its own steps, which it answers for as before. It is
whole with rank 0, also where a site's ranks hold vectors in slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from consortium.domain.training import Contribution
from consortium.train.combine import CHUNK, medians_of
from consortium.train.outer import Layout, Moments, Vector, cosine_of, norm_of, tiles
from consortium.train.sharded import whole
from consortium.train.spread import spread
from consortium.train.votes import medians, shares

MOST = 2.0
"""Times the lower median norm that a site's vector counts with at the most."""
HIGHEST = np.float32(10)
"""Times the lower median that an element of a site's second moments counts with at the most."""
_FIRST, _SECOND = "exp_avg", "exp_avg_sq"
_ROUNDED = 1 + 2.0**-7
"""bf16 rounds both moments, each by 2^-8 of it at the most."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """What crosses of an inner optimiser's state: its vectors, one behind the other in order of their names."""

    layout: Layout
    """Of the model's parameters."""
    covered: Mapping[str, tuple[str, ...]]
    """By vector the parameters that it is of, in the layout's order."""

    @property
    def size(self) -> int:
        """Elements of all of it."""
        return sum(self._sizes.values())

    def packed(self, moments: Moments) -> Vector:
        """Return an optimiser's vectors as one."""
        return np.concatenate([whole(moments.vectors[name]) for name in sorted(self.covered)])

    def parts(self, state: Vector) -> dict[str, Vector]:
        """Return the vectors of a packed state by name; they share its memory."""
        return {name: state[where] for name, where in self._places()}

    def norms(self, state: Vector) -> dict[str, float]:
        """Return the norm of each vector of a packed state: of second moments that of their roots, as of gradients.

        Infinite where a second moment is negative, which none is.
        """
        return {name: _size_of(name, state[where]) for name, where in self._places()}

    def cosines(self, state: Vector, gradient: Vector) -> dict[str, float]:
        """Return the cosines of a packed state's means of gradients to the pseudo-gradient of the same parameters.

        Both come of the same steps, so honest ones point alike.
        """
        arrays = self.layout.split(whole(gradient))
        return {
            name: cosine_of(state[where], np.concatenate([arrays[one].reshape(-1) for one in self.covered[name]]))
            for name, where in self._places()
            if name != _SECOND
        }

    def mean(
        self, contributions: Iterable[Contribution], states: Mapping[str, Vector], betas: tuple[float, float]
    ) -> dict[str, Vector]:
        """Return the mean of the sites' optimisers by vector, weighted as the round's certificate says.

        `states` are finite and packed, by site; `betas` are AdamW's, the first squared below the second.
        """
        parts = sorted(contributions, key=lambda part: part.site)
        found = {}
        for name, where in self._places():
            vectors = {part.site: states[part.site][where] for part in parts}
            if name == _SECOND:
                found[name] = self._second(parts, vectors, where.stop - where.start)
                continue
            norms = {site: norm_of(vector) for site, vector in vectors.items()}
            most = MOST * medians(norms)[0]
            total = np.zeros(where.stop - where.start, dtype=np.float32)
            for part in parts:
                norm, weight = norms[part.site], float.fromhex(part.weight) * float.fromhex(part.clip)
                _add(total, vectors[part.site], np.float32(weight * (most / norm if norm > most else 1.0)))
            found[name] = total
        if _SECOND in found:
            _bound(found[_FIRST], found[_SECOND], betas)
        return found

    def _second(self, parts: list[Contribution], vectors: Mapping[str, Vector], size: int) -> Vector:
        """Return the mean of second moments, of which each counts with `HIGHEST` times the lower median at the most.

        Element by element, because one that is made large would stop its parameter, and a norm does not show it. Where
        most sites never saw a gradient, that is nothing: such an element begins anew.
        """
        total, votes = np.zeros(size, dtype=np.float32), shares([part.site for part in parts])
        for start in range(0, size, CHUNK):
            rows = np.stack([vectors[part.site][start : start + CHUNK] for part in parts])
            most, _ = medians_of(rows, [votes[part.site] for part in parts])
            np.multiply(most, HIGHEST, out=most)
            for part, row in zip(parts, rows, strict=True):
                scale = np.float32(float.fromhex(part.weight))
                total[start : start + CHUNK] += np.multiply(np.minimum(row, most), scale)
        return total

    @property
    def _sizes(self) -> dict[str, int]:
        elements = dict(zip(self.layout.names, self.layout.sizes, strict=True))
        return {name: sum(elements[one] for one in self.covered[name]) for name in sorted(self.covered)}

    def _places(self) -> Iterator[tuple[str, slice]]:
        start = 0
        for name, size in self._sizes.items():
            yield name, slice(start, start + size)
            start += size


def _size_of(name: str, vector: Vector) -> float:
    if name != _SECOND:
        return norm_of(vector)
    if min(spread(lambda part: float(vector[part].min()), tiles(len(vector)))) < 0:
        return math.inf
    return math.sqrt(sum(spread(lambda part: float(vector[part].sum(dtype=np.float64)), tiles(len(vector)))))


def _add(total: Vector, vector: Vector, scale: np.float32) -> None:
    def work(part: slice) -> None:
        total[part] += np.multiply(vector[part], scale)

    spread(work, tiles(len(total)))


def _bound(first: Vector, second: Vector, betas: tuple[float, float]) -> None:
    """Hold AdamW's moments to what any gradients leave: v >= 0, and |m| <= K sqrt(v).

    By Cauchy and Schwarz, K^2 = (1 - b1)^2 / ((1 - b2) (1 - b1^2 / b2)). What satisfies it goes on to with every step,
    and the mean of what satisfies it does, because the mean of roots is at most the root of the mean.
    """
    one, two = betas
    most = np.float32(_ROUNDED * (1 - one) / math.sqrt((1 - two) * (1 - one * one / two)))

    def work(part: slice) -> None:
        np.maximum(second[part], 0, out=second[part])
        bound = np.multiply(np.sqrt(second[part]), most)
        np.clip(first[part], -bound, bound, out=first[part])

    spread(work, tiles(len(first)))
