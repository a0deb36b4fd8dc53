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
from typing import Literal

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happens once `step` inner steps are done; `exchange` counts from 1 in order of sending."""

    step: int
    exchange: int
    action: Literal["send", "apply"]
    fragment: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """When fragments are sent and applied. The defaults are DiLoCo: everything at once, every `period` steps."""

    period: int
    """Inner steps between two synchronisations of a fragment (H)."""
    count: int = 1
    """Fragments (F)."""
    delay: int = 0
    """Inner steps between sending a fragment and applying the result (tau)."""
    mixing: float = 0.0
    """Share of a site's own parameters that is kept when a result is applied (alpha)."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.period < self.count:
            raise ValueError(f"{self.count} fragments need a period of at least as many steps, got {self.period}")
        if not 0 <= self.delay <= self.period // self.count:
            raise ValueError(
                f"delay must be 0 to {self.period // self.count}, so that one exchange is under way at a time; "
                f"got {self.delay}"
            )
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"mixing must be 0 to 1, got {self.mixing}")

    def offset(self, fragment: int) -> int:
        """Return the step within a period after which a fragment is sent; the last one's is the period's end."""
        return (fragment + 1) * self.period // self.count

    def sent_at(self, exchange: int) -> int:
        """Return the inner step after which an exchange begins."""
        cycle, fragment = divmod(exchange - 1, self.count)
        return cycle * self.period + self.offset(fragment)

    def events(self, steps: int, *, since: int = 0) -> tuple[Event, ...]:
        """Return what happens after inner step `since` up to `steps`, in order; `steps` is whole periods.

        Where a result is due at the step at which the next fragment is sent, it is applied first. What is under way at
        the end is waited for and applied there, so that the model is whole.
        """
        if steps % self.period:
            raise ValueError(f"{steps} steps are not whole periods of {self.period}: a fragment would miss its turn")
        made = []
        for exchange in range(1, steps // self.period * self.count + 1):
            sent, fragment = self.sent_at(exchange), (exchange - 1) % self.count
            applied = min(sent + self.delay, steps)
            made.append(Event(step=sent, exchange=exchange, action="send", fragment=fragment))
            made.append(Event(step=applied, exchange=exchange, action="apply", fragment=fragment))
        return tuple(event for event in made if event.step > since)

    def wait_s(self, exchange_s: float, step_s: float) -> float:
        """Return the seconds that computation stands still for one exchange of `exchange_s`, at `step_s` a step."""
        return max(0.0, exchange_s - self.delay * step_s)

    def mix(self, local: Vector, outer: Vector) -> Vector:
        """Return a site's parameters of a fragment after a result is applied: alpha * local + (1 - alpha) * outer.

        A site's own affair: sites need not agree on its bits, only on the outer parameters.
        """
        return _mixed(local, outer, self.mixing) if self.mixing else outer


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
    streaming: Streaming
    rounds: int

    @classmethod
    def of(cls, layout: Layout, outer: OuterConfig) -> Plan:
        """Return the plan of a job over a model. Raises UsageError where the model has too few layers for it."""
        whole = (Fragment(((0, layout.size),)),)
        return cls(
            fragments=whole if outer.fragments == 1 else fragments_of(layout, outer.fragments),
            streaming=Streaming(
                period=outer.fragments * outer.inner_steps, count=outer.fragments, delay=outer.delay, mixing=outer.mix
            ),
            rounds=outer.rounds,
        )

    @property
    def carries(self) -> bool:
        """Whether sites go on from parameters of their own, where DiLoCo begins each round from the outer state."""
        plan = self.streaming
        return plan.count > 1 or plan.delay > 0 or plan.mixing > 0

    def fragment(self, number: int) -> Fragment:
        """Return the part of the model that a round exchanges."""
        return self.fragments[(number - 1) % len(self.fragments)]

    def delay(self, number: int) -> int:
        """Return the inner steps done between a round's sending and its application; none after the last."""
        return self.streaming.delay if number < self.rounds else 0

    def step(
        self, number: int, outer: Vector, momentum: Vector, gradient: Vector, *, lr: float, momentum_decay: float
    ) -> tuple[Vector, Vector]:
        """Return outer state and momentum, both whole, after a round; `gradient` is of its fragment."""
        part = self.fragment(number)
        after, speed = nesterov(part.take(outer), part.take(momentum), gradient, lr=lr, momentum_decay=momentum_decay)
        return part.put(outer, after), part.put(momentum, speed)

    def mix(self, number: int, local: Vector, outer: Vector) -> Vector:
        """Return a site's parameters, whole, once a round that counted its contribution is applied."""
        part = self.fragment(number)
        return part.put(local, self.streaming.mix(part.take(local), part.take(outer)))
