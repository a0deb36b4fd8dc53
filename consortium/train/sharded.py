"""Vectors in slices: where workers hold a model in parts (FSDP2), the outer state and all that belongs to it does too.

Rank 0 alone runs the leg. What it has of such a vector is a handle, `Sharded`; each rank of the site holds one slice of
it, a contiguous one, cut where codes have blocks. What is computed of vectors element by element (`by_slices`) every
rank computes of its own slices, so that no bit depends on how many they are. Typed as the array that it stands for, a
handle is taken by functions that say so and by no other: numpy refuses it.

Here is what needs no process group; the ranks' side is `consortium.train.holders`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

P = ParamSpec("P")
R = TypeVar("R")
Vector = npt.NDArray[np.float32]
Ranges = tuple[tuple[int, int], ...]
"""Half-open, ascending, none reaching into the next."""
GRAIN = 4096
"""Slices begin at multiples of this: whole blocks and chunks of every code."""


class Holding(Protocol):
    """Those who hold slices: `consortium.train.holders.Holders`, on rank 0."""

    @property
    def world(self) -> int:
        """How many they are."""

    def map(self, function: Callable[..., Any], *given: Any) -> Any:
        """Let every rank compute `function` of its slices of what is `given`.

        Arrays that come of it stay where they are, and their handle is returned; all else is returned by rank. An
        `Each` gives every rank a value of its own.
        """

    def place(self, vector: npt.NDArray[Any], ranges: tuple[Ranges, ...] | None = None) -> Sharded:
        """Cut a vector of this process into slices, evenly or as `ranges` say by rank, and return its handle."""

    def pieces(self, vector: Sharded) -> Iterator[npt.NDArray[Any]]:
        """Yield the elements of a handle's slices, rank after rank, some tens of megabytes at a time."""

    def move(self, vector: Any, held: tuple[Ranges, ...], wanted: tuple[Ranges, ...]) -> Sharded:
        """Return a vector of the elements `wanted` by each rank, of one of which it has those `held`."""

    def drop(self, slot: int) -> None:
        """Forget the slices of a handle that is gone. Called at any time."""


class Sharded:
    """The handle of a vector in slices. It ends with its last reference, and the slices with it."""

    def __init__(self, holders: Holding, slot: int, lengths: tuple[int, ...]) -> None:
        self.holders = holders
        self.slot = slot
        self.lengths = lengths
        """Elements that each rank holds."""
        weakref.finalize(self, holders.drop, slot)

    def __len__(self) -> int:
        return sum(self.lengths)

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a vector in slices is no array: only functions that are computed by slices take it")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a handle means nothing in another process")


class Each(tuple[Any, ...]):
    """One value for each rank."""


def by_slices(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function` take handles too, where what it returns of vectors follows element by element.

    Its vectors, also those in lists and mappings, are of one length; one that it returns in place of an array is a
    handle, and what else it returns comes in a list by rank.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        held = handle_in((args, kwargs))
        if held is None:
            return function(*args, **kwargs)
        return cast(R, held.holders.map(functools.partial(call, **kwargs) if kwargs else call, *args))

    return call


def handle_in(given: Any) -> Sharded | None:
    """Return the first handle in arguments, or in lists and mappings among them."""
    if isinstance(given, Sharded):
        return given
    if isinstance(given, (tuple, list)):
        return next((found for one in given if (found := handle_in(one)) is not None), None)
    return handle_in(list(given.values())) if isinstance(given, Mapping) else None


def whole(vector: Vector) -> Vector:
    """Return all elements of a vector in this process."""
    if not isinstance(vector, Sharded):
        return vector
    result = np.empty(len(vector), dtype=np.float32)
    start = 0
    for piece in vector.holders.pieces(vector):
        result[start : start + len(piece)] = piece
        start += len(piece)
    return result


def as_vector(handle: Sharded) -> Vector:
    """Return a handle as what it stands for: functions that take it are typed by arrays."""
    return cast(Vector, handle)


def placed(vector: Vector, holders: Holding | None) -> Vector:
    """Return a vector as the site holds its vectors: in slices, where there are who hold them."""
    if holders is None or isinstance(vector, Sharded):
        return vector
    return as_vector(holders.place(vector))


def cut(size: int, world: int) -> tuple[Ranges, ...]:
    """Return by rank where the slice of a vector of `size` elements lies; the last may be empty."""
    grains = -(-size // GRAIN)
    edges = [min(size, grains * rank // world * GRAIN) for rank in range(world + 1)]
    return tuple(((start, stop),) if start < stop else () for start, stop in pairwise(edges))


def lengths(ranges: Iterable[Ranges]) -> tuple[int, ...]:
    """Return how many elements these are, by rank."""
    return tuple(sum(stop - start for start, stop in one) for one in ranges)


def common(one: Ranges, other: Ranges) -> Ranges:
    """Return what lies in both."""
    found, first, second = [], 0, 0
    while first < len(one) and second < len(other):
        start, stop = max(one[first][0], other[second][0]), min(one[first][1], other[second][1])
        if start < stop:
            found.append((start, stop))
        if one[first][1] <= other[second][1]:
            first += 1
        else:
            second += 1
    return tuple(found)


def within(ranges: Ranges, parts: Ranges) -> Ranges:
    """Return where those `parts`, counted over the elements of `ranges` only, lie."""
    found, passed = [], 0
    for start, stop in ranges:
        here = common(((passed, passed + stop - start),), parts)
        found += [(first - passed + start, last - passed + start) for first, last in here]
        passed += stop - start
    return tuple(found)


def places(ranges: Ranges, parts: Ranges) -> Ranges:
    """Return where `parts` of `ranges` lie if only the elements of `ranges` are counted: `within` the other way."""
    found, passed, at = [], 0, 0
    for start, stop in ranges:
        while at < len(parts) and parts[at][1] <= stop:
            found.append((parts[at][0] - start + passed, parts[at][1] - start + passed))
            at += 1
        passed += stop - start
    return tuple(found)
