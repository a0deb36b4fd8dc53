"""Which documents may break a rule on repeated n-grams: bounds over many documents at once, so that few are counted.

Counting n-grams of 2 to 10 words exactly costs more than all other rules together, and most texts repeat little. So:

1. All words of a batch become 64-bit hashes, and n-grams sums of these. Equal n-grams of one document have equal
   hashes; different ones may, by accident, which can only raise a bound. So the bounds are safe, and nothing that
   leaves this module depends on a hash, nor on its seed.
2. An n-gram can only be repeated where the (n-1)-gram at the same place is: each n looks at what the last one left.
3. `top_N_gram` is bounded by the largest product of an n-gram's characters and number; `duplicate_N_gram` by the words
   that stand in a repeated 5-gram, its first place not counted.

A document within its limits by these bounds stays; only the others are measured by the rules' own definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from consortium.data.gopher import DUPLICATE_NGRAMS, TOP_NGRAMS
from consortium.domain.cleaning import GopherRepetition

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]

MAX_BATCH_WORDS = 1 << 20
"""Places of a batch must fit the low bits of a sort key."""
_PLACE_BITS = np.uint64(20)
_PLACE = np.uint64((1 << 20) - 1)
_ODD = np.uint64(0x9E3779B97F4A7C15)


def suspects(texts: Sequence[Sequence[str]], chars: Sequence[int], limits: Sequence[GopherRepetition]) -> list[bool]:
    """Tell, for each document of a batch, whether it must be measured. `texts` holds words, `chars` the text's length.

    Raises ValueError for a batch of more than MAX_BATCH_WORDS words, unless it is one document: that one is suspect.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    total = int(sizes.sum())
    if total >= MAX_BATCH_WORDS:
        if len(texts) > 1:
            raise ValueError(f"a batch holds at most {MAX_BATCH_WORDS:,} words, not {total:,}")
        return [True]
    if not total:
        return [False] * len(texts)
    batch = _Batch(texts, sizes, total)
    length = np.maximum(np.fromiter(chars, np.int64, len(texts)), 1)
    found = np.zeros(len(texts), np.bool_)
    for at, n in enumerate(TOP_NGRAMS):
        bound = batch.top_bound(n)
        found |= bound > np.array([limit.max_top_ngram_chars[at] for limit in limits]) * length
    bound = batch.duplicate_bound(DUPLICATE_NGRAMS[0])
    found |= bound > np.array([min(limit.max_duplicate_ngram_chars) for limit in limits]) * length
    return [bool(suspect) for suspect in found]


class _Batch:
    """The words of a batch in one row; `advance` goes from n-grams to those one word longer."""

    def __init__(self, texts: Sequence[Sequence[str]], sizes: Ints, total: int) -> None:
        words = list(chain.from_iterable(texts))
        self.words = total
        self.hashes: Hashes = np.fromiter(map(hash, words), np.int64, total).view(np.uint64)
        lengths = np.fromiter(map(len, words), np.int64, total)
        self.ends_chars: Ints = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self.sizes = sizes
        ends = np.cumsum(sizes)
        self.starts: Ints = ends - sizes
        self.document: Ints = np.repeat(np.arange(len(sizes)), sizes)
        self.end: Ints = np.repeat(ends, sizes)
        self.n = 1
        self.places: Ints = np.arange(total)
        """Where an n-gram stands that may be repeated."""
        self.keys: Hashes = self.hashes + self.document.astype(np.uint64) * _ODD

    def chars(self, places: Ints, n: int) -> Ints:
        """Characters of the n words from each place on, spaces not counted."""
        return self.ends_chars[places + n] - self.ends_chars[places]

    def grouped(self, n: int) -> tuple[Ints, Flags]:
        """Return the places of repeated n-grams, equal ones together and in order, and which begin a group."""
        fits = self.places + n <= self.end[self.places]
        places = self.places[fits]
        keys = (self.keys[fits] * _ODD) + self.hashes[places + n - 1]
        order = (keys & ~_PLACE) | places.astype(np.uint64)
        order.sort()
        group = order >> _PLACE_BITS
        same = group[1:] == group[:-1]
        begins = np.ones(len(order), np.bool_)
        begins[1:] = ~same
        repeated = ~begins
        repeated[:-1] |= same
        standing = (order & _PLACE).astype(np.int64)
        keep = np.zeros(self.words, np.bool_)
        keep[standing[repeated]] = True
        inside = keep[places]
        self.n, self.places, self.keys = n, places[inside], keys[inside]
        return standing[repeated], begins[repeated]

    def top_bound(self, n: int) -> Ints:
        """Return, per document, at least the characters of its top n-gram, joined by spaces, times its number."""
        places, begins = self.grouped(n)
        first = np.minimum(self.starts, self.words - n) if self.words >= n else self.starts
        bound = np.where(self.sizes >= n, self.chars(first, n) + n - 1 if self.words >= n else 0, 0)
        if len(places):
            heads = np.flatnonzero(begins)
            numbers = np.diff(np.append(heads, len(places)))
            product = numbers * (self.chars(places[heads], n) + n - 1)
            np.maximum.at(bound, self.document[places[heads]], product)
        return bound

    def duplicate_bound(self, n: int) -> Ints:
        """Return, per document, at least the characters in repeated n-grams (and so in any longer ones)."""
        places, begins = self.grouped(n)
        again = places[~begins]
        steps = np.zeros(self.words + 1, np.int64)
        steps[again] += 1
        np.subtract.at(steps, again + n, 1)
        covered = np.cumsum(steps)[: self.words] > 0
        chars = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.diff(self.ends_chars) * covered)])
        return np.asarray(chars[self.starts + self.sizes] - chars[self.starts])
