"""Which sequence comes when: a pure function of (seed, site, position), so that a position is the whole checkpoint.

The tokens of a site's shards are cut into sequences of `context` + 1 tokens that overlap by one (the last token of one
is the first input of the next). Each pass over them is a pseudo-random permutation: a four-round Feistel network on the
index with cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). It needs no table,
so it holds for any number of tokens, and it is the same under every library version. It hides nothing and need not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

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
            raise UsageError("there is not one whole sequence of tokens to read", where=site)
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
        found = np.empty(count, dtype=np.uint64)
        passes = places // np.uint64(self.sequences)
        for number in np.unique(passes):
            chosen = passes == number
            found[chosen] = self._permute(places[chosen] % np.uint64(self.sequences), int(number))
        return found

    def seed_at(self, step: int, rank: int) -> int:
        """Return a seed below 2^63 for whatever a rank draws at random in a step."""
        text = f"{self._seed}/{self._site}/step/{step}/{rank}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1

    def _permute(self, index: Indices, number: int) -> Indices:
        keys = self._keys(number)
        result = self._feistel(index, keys)
        while bool((outside := result >= np.uint64(self.sequences)).any()):
            result[outside] = self._feistel(result[outside], keys)
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
        self, arrays: Sequence[npt.NDArray[np.unsignedinteger]], context: int, *, end: int | None = None
    ) -> None:
        self.end = end
        """The token that ends each document; None where that is not known."""
        self._arrays = list(arrays)
        self._packing = Packing([len(array) for array in self._arrays], context)

    def __len__(self) -> int:
        return len(self._packing)

    def read(self, numbers: Indices) -> npt.NDArray[np.int64]:
        """Return the sequences as an array of shape (len(numbers), context + 1)."""
        length = self._packing.context + 1
        rows = np.empty((len(numbers), length), dtype=np.int64)
        for row, number in enumerate(int(number) for number in numbers):
            array, start = self._packing.place(number)
            rows[row] = self._arrays[array][start : start + length]
        return rows
