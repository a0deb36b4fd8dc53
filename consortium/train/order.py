"""Which sequence comes when: a pure function of (seed, site, position), so that a position is the whole checkpoint.

The tokens of a site's shards are cut into sequences of `context` + 1 tokens that overlap by one (the last token of one
is the first input of the next). Each pass over them is a pseudo-random permutation: a four-round Feistel network on the
index with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). It needs no table,
so it holds for any number of tokens, and it is the same under every library version. It hides nothing and need not.

A mixture reads several sources in turn, each in its own such order with its own passes (`MixedOrder`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consortium.errors import UsageError

Indices = npt.NDArray[np.uint64]
_ROUNDS = 4
_AHEAD = 1024
"""Positions worked out at a time: a step asks for few, and small arrays cost as much as large ones."""


class DataOrder:
    """The order in which a site's `sequences` sequences are read, pass after pass."""

    def __init__(self, seed: int, site: str, sequences: int, *, shuffle: bool = True) -> None:
        if sequences < 1:
            raise UsageError(
                "there is not one whole sequence of tokens to read",
                where=site,
                fix="name a larger dataset, or take a smaller model.context: a sequence is one token longer",
            )
        self.sequences = sequences
        self._seed = seed
        self._site = site
        self._shuffle = shuffle
        bits = max(1, (sequences - 1).bit_length())
        self._half = (bits + 1) // 2
        self._mask = np.uint64((1 << self._half) - 1)
        self._start, self._ahead = 0, np.empty(0, dtype=np.uint64)

    def at(self, position: int, count: int) -> Indices:
        """Return the sequence numbers at positions [position, position + count)."""
        if not self._start <= position <= position + count <= self._start + len(self._ahead):
            self._start, self._ahead = position, self._found(position, max(count, _AHEAD))
        return self._ahead[position - self._start : position - self._start + count].copy()

    def _found(self, position: int, count: int) -> Indices:
        places = np.arange(position, position + count, dtype=np.uint64)
        if not self._shuffle:
            return places % np.uint64(self.sequences)
        passes, of = np.unique(places // np.uint64(self.sequences), return_inverse=True)
        keys = np.stack([self._keys(int(number)) for number in passes], axis=1)
        return self._permute(places % np.uint64(self.sequences), keys[:, of])

    def seed_at(self, step: int, rank: int) -> int:
        """Return a seed below 2^63 for whatever a rank draws at random in a step."""
        text = f"{self._seed}/{self._site}/step/{step}/{rank}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1

    def _permute(self, index: Indices, keys: Indices) -> Indices:
        """Return each index permuted by the keys of its pass, a column each: many passes over few sequences at once."""
        result = self._feistel(index, keys)
        outside = np.flatnonzero(result >= np.uint64(self.sequences))
        while len(outside):
            result[outside] = self._feistel(result[outside], keys[:, outside])
            outside = outside[result[outside] >= np.uint64(self.sequences)]
        return result

    def _keys(self, number: int) -> Indices:
        text = f"{self._seed}/{self._site}/{number}".encode()
        return np.frombuffer(hashlib.sha256(text).digest(), dtype="<u8")[:_ROUNDS].astype(np.uint64)

    def _feistel(self, index: Indices, keys: Indices) -> Indices:
        half = np.uint64(self._half)
        left, right = index >> half, index & self._mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return left << half | right


BLOCK = 10_000
"""Positions after which the turn of the sources begins anew: shares are whole multiples of 1/10,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A part of a site's sequences that is read in a share of its own."""

    name: str
    sequences: int
    weight: float
    """Above 0; only its ratio to the others' counts."""


class MixedOrder:
    """The order in which sources are read that are numbered one after another: shares from their weights.

    Of every `BLOCK` positions each source has a fixed number (largest remainders), spread evenly, so that any stretch
    of positions has the shares to within a few sequences. What was read of a source is a count, known at any position.
    """

    def __init__(self, seed: int, site: str, sources: Sequence[Source], *, shuffle: bool = True) -> None:
        self._sources = tuple(sources)
        self._orders = [DataOrder(seed, f"{site}/{one.name}", one.sequences, shuffle=shuffle) for one in sources]
        self._whole = DataOrder(seed, site, sum(one.sequences for one in sources))
        self._first = np.cumsum([0, *(one.sequences for one in sources)]).astype(np.uint64)
        self._counts = _largest_remainders([one.weight for one in sources], BLOCK)
        if 0 in self._counts:
            tiny = self._sources[self._counts.index(0)].name
            raise UsageError(
                f"the share of {tiny} is below 1/{BLOCK:,}",
                where=f"data.mixture at {site}",
                fix="give it a larger weight, or 0",
            )
        turns = np.concatenate([np.full(count, at) for at, count in enumerate(self._counts)])
        places = np.concatenate([np.arange(count) for count in self._counts])
        middles = np.concatenate([(2 * np.arange(count) + 1) / (2 * count) for count in self._counts])
        order = np.lexsort((turns, middles))
        self._turns, self._places = turns[order], places[order].astype(np.uint64)

    @property
    def sequences(self) -> int:
        """Sequences of all sources."""
        return self._whole.sequences

    def at(self, position: int, count: int) -> Indices:
        """Return the sequence numbers at positions [position, position + count)."""
        positions = np.arange(position, position + count, dtype=np.uint64)
        offsets = (positions % np.uint64(BLOCK)).astype(np.int64)
        found = np.empty(count, dtype=np.uint64)
        for source in np.unique(self._turns[offsets]):
            chosen = self._turns[offsets] == source
            blocks = positions[chosen] // np.uint64(BLOCK)
            own = blocks * np.uint64(self._counts[source]) + self._places[offsets[chosen]]
            # A source's own positions follow each other without a gap.
            found[chosen] = self._orders[source].at(int(own[0]), len(own)) + self._first[source]
        return found

    def seed_at(self, step: int, rank: int) -> int:
        """Return a seed below 2^63 for whatever a rank draws at random in a step."""
        return self._whole.seed_at(step, rank)

    def read(self, position: int) -> dict[str, dict[str, float]]:
        """Return each source's `share` of the sequences, and how many `passes` over it are done at a position."""
        blocks, rest = divmod(position, BLOCK)
        done = np.bincount(self._turns[:rest], minlength=len(self._sources))
        return {
            one.name: {"share": count / BLOCK, "passes": (blocks * count + int(more)) / one.sequences}
            for one, count, more in zip(self._sources, self._counts, done, strict=True)
        }


def order_of(
    seed: int, site: str, sequences: int, sources: Sequence[Source], *, shuffle: bool
) -> DataOrder | MixedOrder:
    """Return the order of a site's sequences, mixed where they are made of sources."""
    if sources:
        return MixedOrder(seed, site, sources, shuffle=shuffle)
    return DataOrder(seed, site, sequences, shuffle=shuffle)


def _largest_remainders(weights: Sequence[float], total: int) -> list[int]:
    """Share out `total` by weight in whole numbers; ties go to the earlier one."""
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(one) for one in exact]
    by_remainder = sorted(range(len(exact)), key=lambda at: (counts[at] - exact[at], at))
    for at in by_remainder[: total - sum(counts)]:
        counts[at] += 1
    return counts


def _mix(value: Indices) -> Indices:
    """Mix 64 bits (the finaliser of SplitMix64; Steele, Lea and Flood, OOPSLA 2014)."""
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)


class Packing:
    """Where the sequences of `context` + 1 tokens lie in token arrays of `lengths` tokens, which are not joined."""

    def __init__(self, lengths: Sequence[int], context: int) -> None:
        self.context = context
        counts = [max(0, (length - 1) // context) for length in lengths]
        self._ends = np.cumsum(np.asarray(counts, dtype=np.int64))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, number: int) -> tuple[int, int]:
        """Return a sequence's array and its first token there."""
        if not 0 <= number < len(self):
            raise UsageError(f"there are sequences 0 to {len(self) - 1}, not {number}")
        array = int(np.searchsorted(self._ends, number, side="right"))
        return array, (number - (int(self._ends[array - 1]) if array else 0)) * self.context


class Sequences:
    """All whole sequences of `context` + 1 tokens of a list of token arrays; arrays are not joined at their ends."""

    def __init__(
        self,
        arrays: Sequence[npt.NDArray[np.unsignedinteger]],
        context: int,
        *,
        end: int | None = None,
        sources: Sequence[Source] = (),
    ) -> None:
        self.sources = tuple(sources)
        """What the sequences are made of, in order, where they are mixed by weight."""
        self.end = end
        """The token that ends each document; None where that is not known."""
        self._arrays = list(arrays)
        self._packing = Packing([len(array) for array in self._arrays], context)

    def __len__(self) -> int:
        return len(self._packing)

    def order(self, seed: int, site: str, *, shuffle: bool) -> DataOrder | MixedOrder:
        """Return the order in which training at a site reads them."""
        return order_of(seed, site, len(self), self.sources, shuffle=shuffle)

    def read(self, numbers: Indices) -> npt.NDArray[np.int64]:
        """Return the sequences as an array of shape (len(numbers), context + 1)."""
        length = self._packing.context + 1
        rows = np.empty((len(numbers), length), dtype=np.int64)
        for row, number in enumerate(int(number) for number in numbers):
            array, start = self._packing.place(number)
            rows[row] = self._arrays[array][start : start + length]
        return rows
