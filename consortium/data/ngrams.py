"""Which documents may break a rule on repeated n-grams: bounds over many documents at once, so that few are counted.

Counting n-grams of 2 to 10 words exactly costs more than all other rules together, and most texts repeat little. So:

1. All n-grams of a batch become 64-bit hashes: sums of characters times powers, taken from one running sum (Rabin and
   Karp). Equal n-grams of one document have equal hashes; different ones may, by accident, which can only raise a
   bound. So the bounds are safe, and what is removed does not depend on a hash.
2. An n-gram can only be repeated where the (n-1)-gram at the same place is: each n looks at what the last one left.
3. `top_N_gram` is bounded by the largest product of an n-gram's characters and number; `duplicate_N_gram` by the words
   that stand in a repeated n-gram, its first place not counted.

A rule whose limit is above the bound is kept; only the other rules are measured, by their own definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
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


def suspects(
    texts: Sequence[Sequence[str]], chars: Sequence[int], limits: Sequence[GopherRepetition]
) -> list[list[bool]]:
    """Tell, for each document of a batch, which of `gopher.ngrams`' rules it must be measured for.

    `texts` holds words, `chars` the texts' lengths. Raises ValueError for a batch of MAX_BATCH_WORDS words or more,
    unless it is one document: that one is suspect in all.
    """
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    total = int(sizes.sum())
    rules = len(TOP_NGRAMS) + len(DUPLICATE_NGRAMS)
    if total >= MAX_BATCH_WORDS:
        if len(texts) > 1:
            raise ValueError(f"a batch holds fewer than {MAX_BATCH_WORDS:,} words, not {total:,}")
        return [[True] * rules]
    if not total:
        return [[False] * rules for _ in texts]
    batch = _Batch(texts, sizes, total)
    bounds = [
        *(batch.top_bound(n) for n in TOP_NGRAMS),
        *(batch.duplicate_bound(n) for n in DUPLICATE_NGRAMS),
    ]
    length = np.maximum(np.fromiter(chars, np.int64, len(texts)), 1)
    allowed = np.array([(*each.max_top_ngram_chars, *each.max_duplicate_ngram_chars) for each in limits])
    found: list[list[bool]] = (allowed * length[:, None] < np.array(bounds).T).tolist()
    return found


class _Batch:
    """The words of a batch in one row; `grouped` goes from n-grams to those one word longer."""

    def __init__(self, texts: Sequence[Sequence[str]], sizes: Ints, total: int) -> None:
        joined = " ".join(chain.from_iterable(texts))
        signs: npt.NDArray[np.uint32] = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
        gaps = np.flatnonzero(signs == ord(" "))
        begin = np.concatenate([[0], gaps + 1])
        powers, inverses = _powers(1 << len(signs).bit_length())
        running = np.zeros(len(signs) + 1, np.uint64)
        np.cumsum(signs * powers[: len(signs)], out=running[1:])
        self.before: Hashes = running[begin]
        self.behind: Hashes = running[np.append(gaps, len(signs))]
        self.scale: Hashes = inverses[begin]
        self.words = total
        self.sizes = sizes
        self.ends_chars: Ints = np.append(begin, len(signs) + 1) - np.arange(total + 1)
        """Characters before each word and after the last, spaces not counted."""
        ends = np.cumsum(sizes)
        self.starts: Ints = ends - sizes
        self.document: Ints = np.repeat(np.arange(len(sizes)), sizes)
        self.end: Ints = np.repeat(ends, sizes)
        self.salt: Hashes = self.document.astype(np.uint64) * _ODD
        self.places: Ints = np.arange(total)
        """Where an n-gram stands that may be repeated."""

    def chars(self, places: Ints, n: int) -> Ints:
        """Characters of the n words from each place on, spaces not counted."""
        return self.ends_chars[places + n] - self.ends_chars[places]

    def grouped(self, n: int) -> tuple[Ints, Flags]:
        """Return the places of repeated n-grams, equal ones together and in order, and which begin a group."""
        fits = self.places + n <= self.end[self.places]
        places = self.places[fits]
        keys = (self.behind[places + n - 1] - self.before[places]) * self.scale[places] + self.salt[places]
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
        self.places = places[keep[places]]
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
        again = np.sort(places[~begins])
        stop = np.minimum(again + n, np.append(again[1:], self.words))
        chars = self.ends_chars[stop] - self.ends_chars[again]
        found = np.bincount(self.document[again], weights=chars, minlength=len(self.sizes))
        return found.astype(np.int64)


@lru_cache(maxsize=4)
def _powers(number: int) -> tuple[Hashes, Hashes]:
    """Return the powers of an odd number modulo 2^64, from the 1st on, and their inverses, from the 0th on.

    So that no character is taken as it is: it would differ in the low bits alone, which the sort key has not.
    """
    inverse = np.uint64(pow(int(_ODD), -1, 1 << 64))
    both = [np.full(number, base, np.uint64) for base in (_ODD, inverse)]
    both[1][0] = 1
    return np.cumprod(both[0]), np.cumprod(both[1])
