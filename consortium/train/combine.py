"""How the accepted pseudo-gradients of a round become one: weighted mean, trimmed mean or median, by coordinate.

Trimmed mean and median are those of Yin et al. (https://arxiv.org/abs/1803.01498), here with weights. Like the mean of
`consortium.train.outer` they are chains of single numpy operations on fp32, in site order, so that they give the same
bits whatever the processor's vector width and the order of arrival; sorting is stable and what it sorts has no NaN.

Both bound what one site can do to a coordinate, and both cost something where sites' texts differ: a coordinate that
only one language moves is cut. The mean behind gates is the default for that reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from consortium.domain.screening import ScreenRule
from consortium.domain.training import Contribution
from consortium.train.outer import aggregate
from consortium.train.sharded import Vector, by_slices

CHUNK = 1 << 20
"""Coordinates at a time: bounds the memory of sorting to some tens of MiB per site. Changes no bit."""


def combine(
    contributions: Iterable[Contribution], vectors: Mapping[str, Vector], size: int, rule: ScreenRule
) -> Vector:
    """Return one pseudo-gradient of `size` elements from those of the sites, clipped and weighted as certified.

    `vectors` are fp32 by site; without contributions the result is zero.
    """
    parts = sorted(contributions, key=lambda part: part.site)
    if rule.aggregate == "mean" or len(parts) < 2:
        return aggregate(parts, vectors, size)
    return _by_coordinate(parts, vectors, rule)


@by_slices
def _by_coordinate(parts: Sequence[Contribution], vectors: Mapping[str, Vector], rule: ScreenRule) -> Vector:
    size = len(vectors[parts[0].site])
    result = np.empty(size, dtype=np.float32)
    for start in range(0, size, CHUNK):
        rows = np.stack([_clipped(part, vectors[part.site][start : start + CHUNK]) for part in parts])
        if rule.aggregate == "median":
            result[start : start + CHUNK] = _median(rows, [part.tokens for part in parts])
        else:
            weights = [np.float32(float.fromhex(part.weight)) for part in parts]
            result[start : start + CHUNK] = _trimmed(rows, weights, trimmed_sites(len(parts), rule.trim))
    return result


def trimmed_sites(sites: int, trim: float) -> int:
    """Return how many of `sites` a trimmed mean leaves out at either end: at least one is kept."""
    return min(int(trim * sites + 0.5), (sites - 1) // 2)


def _clipped(part: Contribution, vector: Vector) -> Vector:
    clipped: Vector = np.multiply(vector, np.float32(float.fromhex(part.clip)))
    return clipped


def _trimmed(rows: npt.NDArray[np.float32], weights: list[np.float32], cut: int) -> Vector:
    """Return the weighted mean, by column, of the rows that are neither among its `cut` least nor `cut` greatest.

    The sums of values and of weights are taken in site order, then divided once. Of equal values the first site's is
    the lesser.
    """
    ranks = np.argsort(np.argsort(rows, axis=0, kind="stable"), axis=0, kind="stable")
    total = np.zeros(rows.shape[1], dtype=np.float32)
    weight = np.zeros(rows.shape[1], dtype=np.float32)
    for row, share, rank in zip(rows, weights, ranks, strict=True):
        kept = (rank >= cut) & (rank < len(rows) - cut)
        total = np.add(total, np.where(kept, np.multiply(row, share), np.float32(0)))
        weight = np.add(weight, np.where(kept, share, np.float32(0)))
    # Weights that are nothing in fp32 beside one that was cut have no say: zero, never 0 / 0.
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def _median(rows: npt.NDArray[np.float32], tokens: list[int]) -> Vector:
    """Return, by column, the middle of the least and the greatest weighted median of the rows."""
    low, high = medians_of(rows, tokens)
    half = np.float32(0.5)
    middle: Vector = np.add(np.multiply(low, half), np.multiply(high, half))
    return middle


def medians_of(rows: npt.NDArray[np.float32], tokens: Sequence[int]) -> tuple[Vector, Vector]:
    """Return, by column, the least and the greatest weighted median of the rows.

    A weighted median has at most half of the tokens below it and at most half above; tokens are counted as integers.
    They are the sites' own word: where twice their sum does not fit 63 bits, all are halved until it does.
    """
    order = np.argsort(rows, axis=0, kind="stable")
    values = np.take_along_axis(rows, order, axis=0)
    too_long = max(0, sum(tokens).bit_length() - 62)
    counts = np.asarray([count >> too_long for count in tokens], dtype=np.int64)[order]
    up_to = np.cumsum(counts, axis=0)
    least = np.argmax(2 * up_to >= up_to[-1], axis=0)
    greatest = np.argmax(2 * up_to > up_to[-1], axis=0)
    low = np.take_along_axis(values, least[np.newaxis], axis=0)[0]
    high = np.take_along_axis(values, greatest[np.newaxis], axis=0)[0]
    return low, high
