"""Near-duplicates over a whole dataset: from all shards' signatures to the document that stands for each.

1. Documents with equal word sequences are joined (sum of n-grams, words and all minima are equal).
2. Of the rest, all that agree in a band are candidates. A pair whose minima are too few to be similar is passed over;
   `verify` says of every other whether it is similar (`Exact`: by the Jaccard similarity of their texts' n-grams).
3. Similar pairs are joined; what is connected is a cluster (union-find).
4. Of a cluster the document with most words survives; of several, the one with the lowest sum of n-grams, which its
   words alone decide; of several with the same words, the earliest in the dataset.

A verdict depends on the two texts only, and every pair of a bucket that is not yet in one cluster is looked at. So the
clusters depend neither on the order of shards nor on who verifies what when, and a second run over the survivors drops
nothing: what shares a band there shared it here, and was found dissimilar. A removed document is connected to its
survivor by a chain of similar documents; it need not be similar to it.

Memory: 31 bytes per document and about 100 MB, so 1 GB for 28 million documents, and what `verify` keeps. Signatures
may be memory maps. Time goes by the pairs that share a band: thousands of texts from one form, alike to 0.7, cost the
square of their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from consortium.data.minhash import Signatures
from consortium.data.shingles import I64, U64
from consortium.domain.cleaning import NearConfig

Mask = npt.NDArray[np.bool_]
Verify = Callable[[I64], Mask]
"""Which of some pairs (positions in the dataset, [pairs, 2], first below second) are similar."""

_Kind = TypeVar("_Kind", bound=np.generic)

_PART = 1 << 20  # documents of a band sorted together: about 80 MB
_PAIRS = 1 << 20  # pairs looked at together
_REMEMBERED = 1 << 23  # pairs found dissimilar that are not asked about again: 64 MB
_SIGMAS = 3.0


def survivors(
    shards: Sequence[Signatures], config: NearConfig, verify: Verify, *, among: Sequence[Mask] | None = None
) -> list[I64]:
    """Tell, for the documents of each shard in order, which document survives in their place.

    Documents are numbered over the dataset, as in `dedup.survivors`. Those outside `among` (what exact dedup removed,
    say) are left alone: they are their own survivors and stand for nobody.
    """
    search = _Search(shards, config, verify, among)
    search.join_equal()
    search.join_similar()
    chosen = search.choose()
    return list(np.split(chosen, search.starts[1:-1])) if shards else []


def stay(chosen: Sequence[I64]) -> list[Mask]:
    """Return, per shard, which documents are their own survivors: `among` them near-duplicates are looked for next."""
    starts = np.cumsum([0, *map(len, chosen)])
    return [part == np.arange(start, start + len(part)) for part, start in zip(chosen, starts[:-1], strict=True)]


class Components:
    """Union-find over numbers 0 to `count`: the least number of a component is its root."""

    def __init__(self, count: int) -> None:
        self.parent: I64 = np.arange(count, dtype=np.int64)

    def roots(self, members: I64) -> I64:
        """Return the roots of numbers."""
        found = self.parent[members]
        while True:
            above = self.parent[found]
            if np.array_equal(above, found):
                self.parent[members] = found
                return found
            found = above

    def flat(self) -> I64:
        """Return the root of every number: the object's own array, to be changed only when it has served."""
        for first in range(0, len(self.parent), _PART):
            self.roots(np.arange(first, min(first + _PART, len(self.parent))))
        return self.parent

    def join(self, pairs: I64) -> None:
        """Join the two of each pair [pairs, 2]."""
        left, right = pairs[:, 0], pairs[:, 1]
        while len(left):
            left, right = self.roots(left), self.roots(right)
            apart = left != right
            left, right = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
            np.minimum.at(self.parent, right, left)


class _Search:
    def __init__(
        self, shards: Sequence[Signatures], config: NearConfig, verify: Verify, among: Sequence[Mask] | None
    ) -> None:
        self.shards, self.config, self.verify = shards, config, verify
        self.starts: I64 = np.concatenate([[0], np.cumsum([len(shard) for shard in shards], dtype=np.int64)])
        self.count = int(self.starts[-1])
        self.words = _joined([shard.words for shard in shards], np.uint32)
        self.sums = _joined([shard.sums for shard in shards], np.uint64)
        self.components = Components(self.count)
        self.stands: Mask = self.words > 0
        """Takes part; after `join_equal` the first of equal documents only."""
        if among is not None:
            self.stands &= _joined(among, np.bool_)
        self.dissimilar: I64 = np.empty(0, dtype=np.int64)
        share = config.threshold
        self.least_equal = math.ceil(
            config.minima * (share - _SIGMAS * math.sqrt(share * (1 - share) / config.minima))
        )  # fewer equal minima have a probability of 0.2% at the threshold, and vanish above

    def join_equal(self) -> None:
        for part in range(self.parts):
            taking = np.flatnonzero(self.stands & self._in_part(self.sums, part))
            order = taking[np.lexsort((taking, self.words[taking], self.sums[taking]))]
            words, sums = self.words[order], self.sums[order]
            same = (sums[1:] == sums[:-1]) & (words[1:] == words[:-1])
            for chunk in _chunks(np.stack([order[:-1][same], order[1:][same]], axis=1)):
                equal = chunk[self._equal_minima(chunk) == self.config.minima]
                self.components.join(np.sort(equal, axis=1))
            self.stands[taking] = self.components.roots(taking) == taking

    def join_similar(self) -> None:
        """Ask first about each bucket's first document and its others, which joins most; then about all still apart."""
        waiting: list[I64] = []
        for stars in (True, False):
            for band in range(self.config.bands):
                for members, starts in self._buckets(band):
                    apart = _stars(members, starts) if stars else pairs_apart(members, starts, self.components.roots)
                    for pairs in apart:
                        waiting.append(self._open(pairs))
                        if sum(map(len, waiting)) >= _PAIRS:
                            self._ask(waiting)
            self._ask(waiting)

    def choose(self) -> I64:
        roots = self.components.flat()
        several = np.zeros(self.count, dtype=bool)
        for first in range(0, self.count, _PART):
            part = roots[first : first + _PART]
            several[part[part != np.arange(first, first + len(part))]] = True
        members = np.flatnonzero(several[roots])
        of = roots[members]
        order = np.lexsort((members, self.sums[members], -self.words[members].astype(np.int64), of))
        members, of = members[order], of[order]
        best = np.ones(len(members), dtype=bool)
        best[1:] = of[1:] != of[:-1]
        roots[members] = members[best][np.cumsum(best) - 1]
        return roots

    @property
    def parts(self) -> int:
        """Into how many parts what is sorted is cut, so that a part fits into memory."""
        return -(-self.count // _PART)

    def _in_part(self, keys: U64, part: int) -> Mask:
        if self.parts == 1:
            return np.ones(len(keys), dtype=bool)
        number = (keys >> np.uint64(32)).astype(np.uint32)
        edges = [(at << 32) // self.parts for at in (part, part + 1)]
        return (number >= edges[0]) & (number < edges[1])

    def _buckets(self, band: int) -> Iterator[tuple[I64, I64]]:
        for part in range(self.parts):
            yield buckets(*self._band(band, part))

    def _band(self, band: int, part: int) -> tuple[U64, I64]:
        keys, members = [], []
        for start, shard in zip(self.starts[:-1], self.shards, strict=True):
            line = shard.bands[band]
            rows = np.flatnonzero(self.stands[start : start + len(shard)] & self._in_part(line, part))
            keys.append(line[rows])
            members.append(rows + start)
        return np.concatenate(keys), np.concatenate(members)

    def _open(self, pairs: I64) -> I64:
        """Return the codes of pairs still apart that may be similar and were not yet found dissimilar."""
        pairs = pairs[self.components.roots(pairs[:, 0]) != self.components.roots(pairs[:, 1])]
        codes = np.unique(np.minimum(*pairs.T) * self.count + np.maximum(*pairs.T))
        if len(self.dissimilar):
            at = np.minimum(np.searchsorted(self.dissimilar, codes), len(self.dissimilar) - 1)
            codes = codes[self.dissimilar[at] != codes]
        return codes[self._equal_minima(self._pairs(codes)) >= self.least_equal]

    def _ask(self, waiting: list[I64]) -> None:
        """Have the pairs that wait verified, each once, and join the similar ones."""
        codes = np.unique(_joined(waiting, np.int64))
        waiting.clear()
        if len(codes):
            pairs = self._pairs(codes)
            similar = self.verify(pairs)
            self.components.join(pairs[similar])
            if len(self.dissimilar) + len(codes) <= _REMEMBERED:
                self.dissimilar = np.union1d(self.dissimilar, codes[~similar])

    def _pairs(self, codes: I64) -> I64:
        return np.stack(np.divmod(codes, max(self.count, 1)), axis=1)

    def _equal_minima(self, pairs: I64) -> I64:
        found = np.empty(len(pairs), dtype=np.int64)
        for first in range(0, len(pairs), 1 << 16):
            part = pairs[first : first + (1 << 16)]
            found[first : first + len(part)] = np.count_nonzero(
                self._minima(part[:, 0]) == self._minima(part[:, 1]), axis=1
            )
        return found

    def _minima(self, members: I64) -> npt.NDArray[np.uint8]:
        owner = np.searchsorted(self.starts, members, side="right") - 1
        found = np.empty((len(members), self.config.minima), dtype=np.uint8)
        for shard in np.unique(owner):
            here = owner == shard
            found[here] = self.shards[shard].minima[members[here] - self.starts[shard]]
        return found


def buckets(keys: U64, members: I64) -> tuple[I64, I64]:
    """Return those members whose key another has too, bucket by bucket, and where the buckets start (and the end)."""
    order = np.argsort(keys, kind="stable")
    keys, members = keys[order], members[order]
    like_next = np.zeros(len(keys), dtype=bool)
    like_next[:-1] = keys[1:] == keys[:-1]
    shared = like_next.copy()
    shared[1:] |= like_next[:-1]
    starts_one = np.ones(len(keys), dtype=bool)
    starts_one[1:] = ~like_next[:-1]
    return members[shared], np.append(np.flatnonzero(starts_one[shared]), np.count_nonzero(shared))


def _stars(members: I64, starts: I64) -> Iterator[I64]:
    leaders = np.repeat(members[starts[:-1]], np.diff(starts))
    others = leaders != members
    yield from _chunks(np.stack([leaders[others], members[others]], axis=1))


def pairs_apart(members: I64, starts: I64, group_of: Callable[[I64], I64]) -> Iterator[I64]:
    """Yield all pairs [pairs, 2] of members of one bucket but different groups, some million at a time.

    Bucket i holds `members[starts[i]:starts[i + 1]]`. The cost goes by the pairs yielded, not by the bucket's square.
    """
    bucket = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    roots = group_of(members)
    order = np.lexsort((members, roots, bucket))
    members, bucket, roots = members[order], bucket[order], roots[order]
    new_run = np.concatenate(
        [np.ones(min(1, len(members)), dtype=bool), (bucket[1:] != bucket[:-1]) | (roots[1:] != roots[:-1])]
    )
    runs = np.append(np.flatnonzero(new_run), len(members))
    run_end = runs[np.cumsum(new_run)]
    partners = starts[bucket + 1] - run_end  # those after a document's own component in its bucket
    ends = np.cumsum(partners)
    first = 0
    while first < len(members):
        done = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + _PAIRS, side="right")))
        many = partners[first:last]
        left = np.repeat(np.arange(first, last), many)
        right = np.arange(int(many.sum())) - np.repeat(np.cumsum(many) - many, many) + run_end[left]
        if len(left):
            yield np.stack([members[left], members[right]], axis=1)
        first = last


def _chunks(pairs: I64) -> Iterator[I64]:
    for first in range(0, len(pairs), _PAIRS):
        yield pairs[first : first + _PAIRS]


def _joined(parts: Sequence[npt.NDArray[_Kind]], kind: type[_Kind]) -> npt.NDArray[_Kind]:
    return np.concatenate([np.empty(0, dtype=kind), *parts])
