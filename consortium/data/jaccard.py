"""Whether two texts really are near-duplicates: the Jaccard similarity of their sets of word n-grams.

Exact but for hash collisions: within a text n-grams are told apart by 44 bits of their numbers, so that a pair of texts
of 1,000 n-grams each meets one false agreement in 17 million pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from consortium.data.minhash import NearConfig, Signatures
from consortium.data.shingles import I64, U64, blocks, grams, hashing, read

TextsOf = Callable[[int, I64], Sequence[str]]
"""The texts of some rows of a shard: by the shard's place in the dataset, rows ascending."""

_TAG_SHIFT = np.uint64(44)
_TAKEN = np.uint64(20)
_MOST_GRAMS = 1 << 21  # n-grams compared at a time: about 70 MB
_MOST_PAIRS = 1 << 19


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
        ends = np.cumsum(self._words[pairs[order]].sum(axis=1))
        first = 0
        while first < len(order):
            done = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, done + _MOST_GRAMS, side="right"))
            last = min(max(first + 1, last), first + _MOST_PAIRS)
            yield order[first:last]
            first = last

    def _compare(self, pairs: I64) -> npt.NDArray[np.float64]:
        sets = self._sets_of(np.unique(pairs))
        both = [sets[position] for position in pairs.T.ravel().tolist()]
        sizes = np.array([len(one) for one in both])
        tags = np.tile(np.arange(len(pairs), dtype=np.uint64), 2)
        tagged = np.concatenate(both) | np.repeat(tags << _TAG_SHIFT, sizes)
        tagged.sort()
        twice = tagged[1:][tagged[1:] == tagged[:-1]]
        shared = np.bincount((twice >> _TAG_SHIFT).astype(np.int64), minlength=len(pairs))
        of_either = sizes[: len(pairs)] + sizes[len(pairs) :] - shared
        similarity: npt.NDArray[np.float64] = shared / np.maximum(of_either, 1)
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
