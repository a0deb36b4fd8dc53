"""Whether two texts really are near-duplicates: the Jaccard similarity of their sets of word n-grams.

Exact but for hash collisions: within a text n-grams are told apart by 44 bits of their numbers, so that a pair of texts
of 1,000 n-grams each meets one false agreement in 17 million pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from consortium.data.minhash import Signatures
from consortium.data.shingles import I64, U64, blocks, grams, hashing, read
from consortium.domain.cleaning import NearConfig

TextsOf = Callable[[int, I64], Sequence[str]]
"""The texts of some rows of a shard: by the shard's place in the dataset, rows ascending."""

_TAG_SHIFT = np.uint64(44)
_TAKEN = np.uint64(20)
_MOST_GRAMS = 1 << 20  # n-grams compared at a time: about 60 MB
_MOST_PAIRS = 1 << 18
_MOST_BITS = 1 << 28  # 32 MB


class Exact:
    """Says which pairs of documents are similar, by reading their texts; keeps the n-grams of those read last.

    `cache_bytes` bounds what is kept between pairs. A verdict never depends on it.
    """

    def __init__(
        self, shards: Sequence[Signatures], config: NearConfig, texts_of: TextsOf, *, cache_bytes: int = 256 << 20
    ) -> None:
        self._config, self._texts_of, self._most_kept = config, texts_of, cache_bytes // 8
        self._starts: I64 = np.concatenate([[0], np.cumsum([len(shard) for shard in shards], dtype=np.int64)])
        self._words: I64 = np.concatenate([np.empty(0, dtype=np.int64), *(shard.words for shard in shards)])
        self._constants = hashing()
        self._sets: dict[int, U64] = {}
        self._kept = 0

    def __call__(self, pairs: I64) -> npt.NDArray[np.bool_]:
        """Return, for pairs of positions in the dataset [pairs, 2], whether each is similar."""
        return self.similarity(pairs) >= self._config.threshold

    def similarity(self, pairs: I64) -> npt.NDArray[np.float64]:
        """Return the Jaccard similarity of each pair."""
        shard = np.searchsorted(self._starts, pairs, side="right")
        order = np.lexsort((pairs[:, 1], pairs[:, 0], shard[:, 1], shard[:, 0]))
        found = np.empty(len(pairs), dtype=np.float64)
        for chosen in self._portions(pairs, order):
            found[chosen] = self._compare(pairs[chosen])
        return found

    def _portions(self, pairs: I64, order: I64) -> Iterator[I64]:
        waiting = [order]
        while waiting:
            part = waiting.pop()
            too_many = len(part) > _MOST_PAIRS or int(self._words[np.unique(pairs[part])].sum()) > _MOST_GRAMS
            if too_many and len(part) > 1:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
            elif len(part):
                yield part

    def _compare(self, pairs: I64) -> npt.NDArray[np.float64]:
        positions, place = np.unique(pairs, return_inverse=True)
        of = self._sets_of(positions)
        sets = [of[position] for position in positions.tolist()]
        place = place.reshape(-1, 2)
        shared = _shared(sets, place)
        sizes = np.array([len(one) for one in sets])[place].sum(axis=1)
        similarity: npt.NDArray[np.float64] = shared / np.maximum(sizes - shared, 1)
        return similarity

    def _sets_of(self, positions: I64) -> dict[int, U64]:
        """Return the distinct n-grams of documents, from those kept or from their texts."""
        sets = {position: self._sets[position] for position in positions.tolist() if position in self._sets}
        missing = np.array([position for position in positions.tolist() if position not in sets], dtype=np.int64)
        owners = np.searchsorted(self._starts, missing, side="right") - 1
        for owner in np.unique(owners).tolist():
            here = missing[owners == owner]
            texts = self._texts_of(owner, here - self._starts[owner])
            for first, last in blocks(texts):
                found = self._distinct(texts[first:last])
                sets.update(zip(here[first:last].tolist(), found, strict=True))
        for position in missing.tolist():
            self._sets[position] = sets[position]
            self._kept += len(sets[position])
        while self._kept > self._most_kept and self._sets:
            self._kept -= len(self._sets.pop(next(iter(self._sets))))
        return sets

    def _distinct(self, texts: Sequence[str]) -> list[U64]:
        found = grams(read(texts, self._constants), self._config.ngram, self._constants)
        owner = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(found.bounds))
        tagged = found.hashes >> _TAKEN | owner << _TAG_SHIFT
        tagged.sort()
        first = np.ones(len(tagged), dtype=bool)
        first[1:] = tagged[1:] != tagged[:-1]
        tagged = tagged[first]
        bounds = np.searchsorted(tagged >> _TAG_SHIFT, np.arange(1, len(texts), dtype=np.uint64))
        return list(np.split(tagged & ((np.uint64(1) << _TAG_SHIFT) - np.uint64(1)), bounds))


def _shared(sets: Sequence[U64], place: I64) -> I64:
    """Return how many n-grams the two sets of each pair have in common; `place` [pairs, 2] are places in `sets`.

    One bit per n-gram that several sets have where that fits, so that a pair costs an `and` and a count: among many
    texts of one form every two are compared.
    """
    sizes = np.array([len(one) for one in sets])
    _, number, times = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    several = times > 1
    width = int(np.count_nonzero(several)) // 64 + 1
    if len(sets) * width > _MOST_BITS // 64:
        return _shared_of_few(sets, place)
    here = several[number]
    number = (np.cumsum(several) - 1)[number[here]]
    word = np.repeat(np.arange(len(sets)), sizes)[here] * width + number // 64  # ascending: sets are sorted
    first = np.flatnonzero(np.concatenate([np.ones(min(1, len(word)), dtype=bool), word[1:] != word[:-1]]))
    bits = np.zeros(len(sets) * width, dtype=np.uint64)
    if len(word):
        bits[word[first]] = np.add.reduceat(np.uint64(1) << (number % 64).astype(np.uint64), first)
    table = bits.reshape(len(sets), width)
    found = np.empty(len(place), dtype=np.int64)
    step = max(1, _MOST_BITS // 512 // width)
    for at in range(0, len(place), step):
        both = table[place[at : at + step, 0]] & table[place[at : at + step, 1]]
        found[at : at + step] = np.bitwise_count(both).sum(axis=1, dtype=np.int64)
    return found


def _shared_of_few(sets: Sequence[U64], place: I64) -> I64:
    """The same by sorting each pair's n-grams: where texts have little in common, as over a whole collection."""
    found = np.empty(len(place), dtype=np.int64)
    ends = np.cumsum(np.array([len(one) for one in sets])[place].sum(axis=1))
    first = 0
    while first < len(place):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _MOST_GRAMS, side="right")))
        both = [sets[at] for at in place[first:last].ravel().tolist()]
        tags = np.repeat(np.arange(last - first, dtype=np.uint64), 2) << _TAG_SHIFT
        tagged = np.concatenate(both) | np.repeat(tags, [len(one) for one in both])
        tagged.sort()
        twice = tagged[1:][tagged[1:] == tagged[:-1]]
        found[first:last] = np.bincount((twice >> _TAG_SHIFT).astype(np.int64), minlength=last - first)
        first = last
    return found
