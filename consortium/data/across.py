"""Near-duplicates between states, without text: who keeps the copy.

All states sign what is left of their collections (`minhash.sign`) with one secret key agreed for one exchange, then:

1. Each sends every other its `offer`: per document and band one number, keyed BLAKE2b of the band (class `minhash`).
   Documents are in the order of these numbers, not in the collection's. With the policy `published` each document's
   date of publication goes with it. Documents of fewer than `min_words` words are not offered.
2. Each sends, of the documents `met` in another state's offer and of no others, the lowest 8 bits of each minimum
   (`detail`).
3. Each computes the same `decide` from the same messages. Pairs of two states that share a band, and whose share of
   equal minima, corrected for chance, reaches the threshold, are joined. Of a connected group one state keeps its
   documents, the first of `states` or the one with the earliest publication; the others give theirs up. The decision's
   digest is compared.

A second exchange over what is left drops nothing: one state remains of each group, pairs across groups were refused.

What this does not hide. A recipient without the key learns how many documents there are, which of them are alike, and
no content. A holder of the key, so every partner in the exchange and whoever steals it, can sign any text it has or can
guess and learn whether an offer holds a near-duplicate; where few words are unknown (a form with a name in it) it can
try them all, and equal details confirm the guess. It cannot read a text out of an offer that it does not guess, within
the bounds of `domain.cleaning.check_exchange`. So: a new key for every exchange; `min_words` keeps forms and single
sentences out; collections that must not be testable at all do not take part. A state may also lie: claim documents it
does not have, or early dates, so that others drop theirs. Similarity is estimated: with 112 minima, that of a pair at
the threshold of 0.8 is off by 0.04 (one standard deviation), so pairs near the threshold fall on either side. At home
the texts decide.

Two states whose offers repeat one band could make every site compare for days. Over a million pairs of one band, or
the larger of 10^8 and 100 per document in all, nothing is compared and the job fails, naming both. Over a thousand
documents of one form on both sides, alike but below the threshold, look the same.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from consortium.data.minhash import U8, Signatures, mark
from consortium.data.neardup import Components, buckets, pairs_apart
from consortium.data.shingles import I64, U32, U64
from consortium.domain.cleaning import NearConfig
from consortium.errors import ConfigError, VerificationError

_MAGIC = b"CSOFFER1"
_HEADER = struct.Struct("<8s8sQ")
_CHANCE = 1 / 256  # of two unequal minima to agree in 8 bits
_MOST_IN_BUCKET = 10**6
"""Pairs between states that share one band. At home near-duplicates are gone, so honest buckets are small."""
_MOST_PAIRS, _MOST_PER_DOCUMENT = 10**8, 100
"""Of all bands together, whichever allows more: one pair per band for every document that two states have is honest."""
_COMPARED = 1 << 16
"""Pairs whose minima are in memory at a time."""
NO_DATE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepConfig:
    """Who keeps a copy that several states have: `states` in order of precedence, or who published first.

    With `published` the order of states decides between equal or unknown dates.
    """

    states: tuple[str, ...]
    keeper: Literal["order", "published"] = "order"
    min_words: int = 50

    def __post_init__(self) -> None:
        if len(set(self.states)) != len(self.states) or len(self.states) < 2:
            raise ConfigError("an exchange names two or more states, each once", where="keep.states")


@dataclass(frozen=True, slots=True)
class Offer:
    """What one state sends first. Shapes: bands [B, D], published [D] as numbers like 20240131."""

    bands: U64
    published: U32


@dataclass(frozen=True, slots=True)
class Decision:
    """Per state, the places in its offer of the documents it gives up because another keeps the copy."""

    gives_up: Mapping[str, I64]

    def digest(self) -> str:
        """Return `sha256:` and 64 hex digits: equal at all states that decided alike."""
        whole = hashlib.sha256()
        for state, places in sorted(self.gives_up.items()):
            whole.update(f"{state} {len(places)}\n".encode() + places.astype("<i8").tobytes())
        return "sha256:" + whole.hexdigest()


def offer(
    signatures: Signatures, published: Sequence[str], near: NearConfig, keep: KeepConfig, key: bytes
) -> tuple[bytes, I64]:
    """Return what leaves home, and the row of each document in it, which stays at home.

    `published` are ISO dates, or empty. Raises ConfigError where there is no secret key.
    """
    if len(key) < 16:
        raise ConfigError("signatures that leave home need a secret key of 16 bytes or more", where="near.key")
    rows = np.flatnonzero(signatures.words >= max(keep.min_words, 1))
    bands = np.empty((near.bands, len(rows)), dtype="<u8")
    for band in range(near.bands):
        person = b"band" + band.to_bytes(2, "little")
        numbers = signatures.bands[band, rows].astype("<u8").tobytes()
        sealed = (
            hashlib.blake2b(numbers[at : at + 8], digest_size=8, key=key, person=person).digest()
            for at in range(0, len(numbers), 8)
        )
        bands[band] = np.frombuffer(b"".join(sealed), dtype="<u8")
    order = np.lexsort(bands[::-1])
    header = _HEADER.pack(_MAGIC, _mark(near, keep, key), len(rows))
    dates = b""
    if keep.keeper == "published":
        dates = np.array([_date(published[row]) for row in rows[order]], dtype="<u4").tobytes()
    return header + bands[:, order].tobytes() + dates, rows[order]


def read_offer(data: bytes, near: NearConfig, keep: KeepConfig, key: bytes, *, sender: str) -> Offer:
    """Read an offer; raises VerificationError naming the sender where other settings or another key made it."""
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise VerificationError(f"what {sender} sent is no offer of signatures", where=sender)
    _, made_with, count = _HEADER.unpack_from(data)
    if made_with != _mark(near, keep, key):
        raise VerificationError(
            f"{sender} made its offer with other settings or another key",
            where=sender,
            fix="agree on one config and key",
        )
    dated = keep.keeper == "published"
    if len(data) != _HEADER.size + count * (8 * near.bands + 4 * dated):
        raise VerificationError(f"the offer of {sender} is cut off", where=sender)
    bands = np.frombuffer(data, "<u8", near.bands * count, _HEADER.size).reshape(near.bands, count)
    at = _HEADER.size + bands.nbytes
    return Offer(bands, np.frombuffer(data, "<u4", count, at) if dated else np.full(count, NO_DATE, dtype=np.uint32))


def met(offers: Mapping[str, Offer], states: Sequence[str]) -> dict[str, I64]:
    """Return, per state, the places in its offer of documents that share a band with another state's, ascending."""
    starts, owner = _numbered(offers, states)
    found = np.zeros(len(owner), dtype=bool)
    for band in range(len(offers[states[0]].bands)):
        members, at = _buckets(offers, states, band)
        if len(members):
            here = owner[members]
            mixed = np.minimum.reduceat(here, at[:-1]) != np.maximum.reduceat(here, at[:-1])
            found[members[np.repeat(mixed, np.diff(at))]] = True
    parts = np.split(found, starts[1:-1])
    return {state: np.flatnonzero(part) for state, part in zip(states, parts, strict=True)}


def detail(signatures: Signatures, rows: I64, places: I64) -> bytes:
    """Return the minima of the documents met, in the order of `places`; `rows` is what `offer` returned."""
    return signatures.minima[rows[places]].tobytes()


def decide(offers: Mapping[str, Offer], details: Mapping[str, bytes], near: NearConfig, keep: KeepConfig) -> Decision:
    """Return who gives up what: a pure rule over the messages, the same at every state.

    Raises VerificationError where a state's detail is not that of the documents met, or where offers share bands in
    numbers too large to compare: it names the two states with most documents there.
    """
    if set(offers) != set(keep.states) or set(details) != set(keep.states):
        raise VerificationError(f"offers and details of {', '.join(sorted(keep.states))} are needed, no more, no fewer")
    names = keep.states
    starts, owner = _numbered(offers, names)
    _check_pairs(offers, names, owner)
    minima = _minima(offers, details, near, names, starts)
    components = Components(len(owner))
    for band in range(near.bands):
        for pairs in pairs_apart(*_buckets(offers, names, band), lambda these: owner[these]):
            for start in range(0, len(pairs), _COMPARED):
                part = pairs[start : start + _COMPARED]
                equal = np.count_nonzero(minima.of(part[:, 0]) == minima.of(part[:, 1]), axis=1) / near.minima
                components.join(part[(equal - _CHANCE) / (1 - _CHANCE) >= near.threshold])
    roots = components.roots(np.arange(len(owner)))
    dates = np.concatenate([offers[name].published for name in names])
    order = np.lexsort((owner, dates, roots))
    first = np.ones(len(order), dtype=bool)
    first[1:] = roots[order][1:] != roots[order][:-1]
    keeper = np.empty(len(owner), dtype=np.int64)
    keeper[order] = owner[order][first][np.cumsum(first) - 1] if len(order) else order
    gone = np.split(keeper != owner, starts[1:-1])
    return Decision({name: np.flatnonzero(part) for name, part in zip(names, gone, strict=True)})


def _check_pairs(offers: Mapping[str, Offer], names: Sequence[str], owner: I64) -> None:
    """Count the pairs that `decide` would look at, before it does: equal bands in two offers cost their product."""
    total, shared = 0, np.zeros(len(names), dtype=np.int64)
    most = max(_MOST_PAIRS, _MOST_PER_DOCUMENT * len(owner))
    for band in range(len(offers[names[0]].bands)):
        members, at = _buckets(offers, names, band)
        if not len(members):
            continue
        of = np.stack(
            [np.add.reduceat(owner[members] == state, at[:-1], dtype=np.int64) for state in range(len(names))]
        )
        pairs = (of.sum(axis=0) ** 2 - (of**2).sum(axis=0)) // 2
        total, shared = total + int(pairs.sum()), shared + of[:, pairs > 0].sum(axis=1)
        largest = int(pairs.argmax())
        if pairs[largest] > _MOST_IN_BUCKET:
            raise _too_alike(
                names, of[:, largest], f"one band makes {pairs[largest]:,} pairs, over {_MOST_IN_BUCKET:,}"
            )
        if total > most:
            raise _too_alike(names, shared, f"shared bands make over {most:,} pairs")


def _too_alike(names: Sequence[str], documents: I64, what: str) -> VerificationError:
    first, second = sorted(range(len(names)), key=lambda at: (-documents[at], at))[:2]
    return VerificationError(
        f"{names[first]} and {names[second]} offered {documents[first]:,} and {documents[second]:,} documents"
        f" with equal bands: {what}",
        where=f"{names[first]}, {names[second]}",
        fix="offers hold what near-dedup left at home: ask both how theirs were made, or clean without one of them",
    )


@dataclass(frozen=True, slots=True)
class _Minima:
    table: U8
    line: I64

    def of(self, positions: I64) -> U8:
        return self.table[self.line[positions]]


def _minima(
    offers: Mapping[str, Offer], details: Mapping[str, bytes], near: NearConfig, names: Sequence[str], starts: I64
) -> _Minima:
    line = np.full(int(starts[-1]), -1, dtype=np.int64)
    places, parts, held = met(offers, names), [], 0
    for name, start in zip(names, starts[:-1], strict=True):
        count = len(places[name])
        if len(details[name]) != count * near.minima:
            raise VerificationError(f"the detail of {name} is not that of the {count} documents met", where=name)
        line[start + places[name]] = np.arange(held, held + count)
        parts.append(np.frombuffer(details[name], dtype=np.uint8).reshape(count, near.minima))
        held += count
    return _Minima(np.concatenate(parts), line)


def _numbered(offers: Mapping[str, Offer], names: Sequence[str]) -> tuple[I64, I64]:
    """Return where each state's documents start (and the end), and each document's state by its place in `names`."""
    sizes = [len(offers[name].published) for name in names]
    return np.concatenate([[0], np.cumsum(sizes)]), np.repeat(np.arange(len(names)), sizes)


def _buckets(offers: Mapping[str, Offer], names: Sequence[str], band: int) -> tuple[I64, I64]:
    keys = np.concatenate([offers[name].bands[band] for name in names])
    return buckets(keys, np.arange(len(keys)))


def _mark(near: NearConfig, keep: KeepConfig, key: bytes) -> bytes:
    policy = f"{near.threshold!r} {keep.keeper} {keep.min_words} {' '.join(keep.states)}".encode()
    return hashlib.blake2b(mark(near, key) + policy, digest_size=8, key=key, person=b"offer").digest()


def _date(text: str) -> int:
    digits = text[:10].replace("-", "")
    return int(digits) if len(digits) == 8 and digits.isascii() and digits.isdigit() else NO_DATE
