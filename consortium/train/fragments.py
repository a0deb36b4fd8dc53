"""Fragments: parts of the model that are synchronised at different inner steps, and applied some steps later.

Streaming DiLoCo (https://arxiv.org/abs/2501.18512, algorithm 2) spreads what crosses a border over the period between
two synchronisations, and hides the exchange behind computation. With F fragments, period H, delay tau and mixing alpha,
after inner step t a site

- sends, for the fragment p whose turn it is, outer_p - local_p; outer_p is what the fragment's last exchange gave;
- tau steps later applies the exchange: outer_p becomes the outer optimiser's step from outer_p, and
  local_p = alpha * local_p + (1 - alpha) * outer_p, as the steps since the sending are not to be lost.

Everything here is pure: which fragment, when, and the arithmetic. An exchange is a round of `consortium.train.leg`: a
job's `inner_steps` lie between two of them, so that a fragment's period H is F times as long. One fragment without
delay is DiLoCo.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from consortium.domain.pretraining import OuterConfig
from consortium.errors import UsageError
from consortium.train.outer import Layout, Vector, nesterov, tiles
from consortium.train.sharded import Each, Ranges, Sharded, as_vector, by_slices, common, cut, places, within
from consortium.train.spread import spread

_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers|h)\.(\d+)\.")
"""The number of the layer in a parameter's name."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of the flat vector: half-open ranges, ascending, none touching the next."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Elements."""
        return sum(stop - start for start, stop in self.ranges)

    def take(self, vector: Vector) -> Vector:
        """Return the fragment's elements of a whole vector; a view of it where they lie together."""
        if isinstance(vector, Sharded):
            return self._take_slices(vector)
        if len(self.ranges) == 1:
            return vector[slice(*self.ranges[0])]
        return np.concatenate([vector[start:stop] for start, stop in self.ranges])

    def put(self, vector: Vector, part: Vector) -> Vector:
        """Return the whole vector with the fragment's elements replaced."""
        if self.size == len(vector):
            return part
        if isinstance(vector, Sharded):
            return self._put_slices(vector, part)
        return _replaced(vector, part, self.ranges)

    def _take_slices(self, vector: Sharded) -> Vector:
        """Cut the fragment into slices of its own: `take` where the vector lies in slices."""
        if self.size == len(vector):
            return as_vector(vector)
        world = vector.holders.world
        held, wanted = cut(len(vector), world), [within(self.ranges, one) for one in cut(self.size, world)]
        return as_vector(vector.holders.move(vector, held, tuple(wanted)))

    def _put_slices(self, vector: Sharded, part: Vector) -> Vector:
        world = vector.holders.world
        held = tuple(within(self.ranges, one) for one in cut(self.size, world))
        whole = cut(len(vector), world)
        wanted = tuple(common(self.ranges, one) for one in whole)
        moved = vector.holders.move(part, held, wanted)
        return as_vector(vector.holders.map(_replaced, vector, moved, Each(map(places, whole, wanted))))


def _replaced(vector: Vector, part: Vector, ranges: Ranges) -> Vector:
    whole, done = vector.copy(), 0
    for start, stop in ranges:
        whole[start:stop] = part[done : done + stop - start]
        done += stop - start
    return whole


def fragments_of(layout: Layout, count: int) -> tuple[Fragment, ...]:
    """Cut a model into `count` fragments: layer i goes to fragment i modulo `count` (the paper's strided pattern).

    Parameters of no layer (embeddings, final norm) go, the largest first, to the fragment that is smallest so far. The
    result depends on names and shapes only, so all sites cut alike. Raises UsageError where a fragment would be empty.
    """
    sizes = dict(zip(layout.names, layout.sizes, strict=True))
    owner = (
        {name: int(found[1]) % count for name in layout.names if (found := _LAYER.search(name))} if count > 0 else {}
    )
    filled = [sum(size for name, size in sizes.items() if owner.get(name) == number) for number in range(count)]
    for name in sorted(sizes.keys() - owner.keys(), key=lambda name: (-sizes[name], name)):
        smallest = min(range(count), key=lambda number: (filled[number], number), default=0)
        owner[name] = smallest
        if count > 0:
            filled[smallest] += sizes[name]
    if count < 1 or not all(filled):
        raise UsageError(
            f"a model of {len(layout.names)} parameters in {len(set(_layers(layout)))} layers has no {count} fragments",
            fix="ask for at most as many fragments as the model has layers",
        )
    ranges: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    start = 0
    for name in layout.names:
        stop, held = start + sizes[name], ranges[owner[name]]
        if held and held[-1][1] == start:
            held[-1] = (held[-1][0], stop)
        elif stop > start:
            held.append((start, stop))
        start = stop
    return tuple(Fragment(tuple(held)) for held in ranges)


def _layers(layout: Layout) -> list[str]:
    return [found[1] for name in layout.names if (found := _LAYER.search(name))]


@by_slices
def _mixed(local: Vector, outer: Vector, mixing: float) -> Vector:
    kept, taken = np.float32(mixing), np.float32(1 - mixing)
    mixed = np.empty_like(local)

    def add(part: slice) -> None:
        np.add(np.multiply(kept, local[part]), np.multiply(taken, outer[part]), out=mixed[part])

    spread(add, tiles(len(local)))
    return mixed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What each round of a job exchanges and when it is applied; the same at all its sites. Rounds count from 1."""

    fragments: tuple[Fragment, ...]
    rounds: int
    delay_steps: int
    """Inner steps between the sending of a fragment and the application of the result (tau)."""
    mixing: float
    """Share of a site's own parameters that is kept when a result is applied (alpha)."""

    @classmethod
    def of(cls, layout: Layout, outer: OuterConfig) -> Plan:
        """Return the plan of a job over a model. Raises UsageError where the model has too few layers for it."""
        whole = (Fragment(((0, layout.size),)),)
        return cls(
            fragments=whole if outer.fragments == 1 else fragments_of(layout, outer.fragments),
            rounds=outer.rounds,
            delay_steps=outer.delay,
            mixing=outer.mix,
        )

    @property
    def carries(self) -> bool:
        """Whether sites go on from parameters of their own, where DiLoCo begins each round from the outer state."""
        return len(self.fragments) > 1 or self.delay_steps > 0 or self.mixing > 0

    def fragment(self, number: int) -> Fragment:
        """Return the part of the model that a round exchanges."""
        return self.fragments[(number - 1) % len(self.fragments)]

    def delay(self, number: int) -> int:
        """Return the inner steps done between a round's sending and its application; none after the last."""
        return self.delay_steps if number < self.rounds else 0

    def step(
        self, number: int, outer: Vector, momentum: Vector, gradient: Vector, *, lr: float, momentum_decay: float
    ) -> tuple[Vector, Vector]:
        """Return outer state and momentum, both whole, after a round; `gradient` is of its fragment."""
        part = self.fragment(number)
        after, speed = nesterov(part.take(outer), part.take(momentum), gradient, lr=lr, momentum_decay=momentum_decay)
        return part.put(outer, after), part.put(momentum, speed)

    def mix(self, number: int, local: Vector, outer: Vector) -> Vector:
        """Return a site's parameters, whole, once a round that counted its contribution is applied.

        Those of the round's fragment become alpha * local + (1 - alpha) * outer: a site's own affair. Sites need not
        agree on its bits, only on the outer parameters.
        """
        part = self.fragment(number)
        came = part.take(outer)
        return part.put(local, _mixed(part.take(local), came, self.mixing) if self.mixing else came)
