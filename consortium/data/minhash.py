"""MinHash signatures of a shard, as bytes: what near-duplicates are looked for with.

A text is the set of its word n-grams (see `shingles`). Permutation k takes the upper 32 bits of an n-gram's number
times an odd constant modulo 2^32; a text's k-th minimum is the least of these, so that two texts agree in it with a
probability of their Jaccard similarity J (Broder, 1997). `rows` minima make a band; texts that agree in one whole band
are candidates, with probability 1 - (1 - J^rows)^bands.

A shard's signatures, little-endian, D documents in their order:

    offset  size              what
    0       8                 magic `CSMINHS1`
    8       8                 what they were made with: n-gram, bands, rows and key, hashed
    16      8                 D
    24      8 D bands         band by band, a number per document
    ...     8 D               the sum of the document's n-grams' numbers: equal for equal word sequences
    ...     4 D               words; a document without words has no band
    ...     D bands rows      the lowest 8 bits of each minimum, document by document

So 14 times 8 cost 236 bytes a document. Band by band, so that one band of many shards is read without the rest.
With a secret `key` the numbers mean nothing to those who lack it, and signatures of two keys are refused together.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consortium.data.shingles import I64, MAX_NGRAM, U32, U64, Grams, blocks, draw, grams, hashing, mix, read
from consortium.errors import ConfigError, VerificationError

U8 = npt.NDArray[np.uint8]

_MAGIC = b"CSMINHS1"
_HEADER = struct.Struct("<8s8sQ")
_MOST_MINIMA = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class NearConfig:
    """Words per n-gram, bands, minima per band, and the Jaccard similarity from which two texts are near-duplicates."""

    ngram: int = 5
    bands: int = 14
    rows: int = 8
    threshold: float = 0.8

    def __post_init__(self) -> None:
        for name, most in (("ngram", MAX_NGRAM), ("bands", 512), ("rows", 64)):
            value = getattr(self, name)
            if not 1 <= value <= most:
                raise ConfigError(f"{name} is {value}, not between 1 and {most}", where=f"near.{name}")
        if self.minima > _MOST_MINIMA:
            raise ConfigError(f"bands times rows is {self.minima}, more than {_MOST_MINIMA}", where="near.bands")
        if not 0 < self.threshold <= 1:
            raise ConfigError(f"threshold is {self.threshold}, not above 0 and at most 1", where="near.threshold")

    @property
    def minima(self) -> int:
        """Minima per document."""
        return self.bands * self.rows

    def chance(self, similarity: float) -> float:
        """Return the probability that two texts of this Jaccard similarity become candidates."""
        return 1 - (1 - similarity**self.rows) ** self.bands

    def mark(self, key: bytes) -> bytes:
        """Return 8 bytes that signatures share exactly when they can be compared."""
        made_with = f"{self.ngram} {self.bands} {self.rows}".encode()
        return hashlib.blake2b(made_with, digest_size=8, key=key, person=b"signatures").digest()


@dataclass(frozen=True, slots=True)
class Signatures:
    """Views into one shard's signatures; no copy is made. Shapes: bands [B, D], sums, words [D], minima [D, B * R]."""

    bands: U64
    sums: U64
    words: U32
    minima: U8

    def __len__(self) -> int:
        return len(self.sums)


def sign(texts: Sequence[str], config: NearConfig, key: bytes = b"") -> bytes:
    """Return the signatures of a shard's texts.

    Memory: the result and about 10 MB, or 60 bytes per character of the longest text.
    """
    size = _HEADER.size + len(texts) * (8 * config.bands + 12 + config.minima)
    data = bytearray(size)
    _HEADER.pack_into(data, 0, _MAGIC, config.mark(key), len(texts))
    into = _views(data, config)
    constants = hashing(key)
    factors = (draw(key, b"permutations", config.minima) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    for first, last in blocks(texts):
        words = read(texts[first:last], constants)
        found = grams(words, config.ngram, constants)
        into.words[first:last] = np.diff(words.bounds)
        filled = np.flatnonzero(np.diff(found.bounds))
        if len(filled):
            into.sums[first + filled] = np.add.reduceat(found.hashes, found.bounds[filled])
            minima = _minima(found, filled, factors)
            into.minima[first + filled] = minima.T
            into.bands[:, first + filled] = _bands(minima, config)
    return bytes(data)


def view(data: bytes | memoryview, config: NearConfig, key: bytes = b"", *, where: str = "signatures") -> Signatures:
    """Read signatures; a memory map will do. Raises VerificationError where another key or config made them."""
    if len(data) < _HEADER.size or bytes(data[:8]) != _MAGIC:
        raise VerificationError("these bytes are no MinHash signatures", where=where)
    _, mark, documents = _HEADER.unpack_from(data)
    if mark != config.mark(key):
        raise VerificationError(
            "these signatures were made with another n-gram, bands, rows or key and cannot be compared",
            where=where,
            fix="sign both sides with the same settings and key",
        )
    if len(data) != _HEADER.size + documents * (8 * config.bands + 12 + config.minima):
        raise VerificationError("these signatures are cut off", where=where)
    return _views(data, config)


def _views(data: bytes | bytearray | memoryview, config: NearConfig) -> Signatures:
    documents = _HEADER.unpack_from(data)[2]
    at = [_HEADER.size]
    for width in (8 * config.bands, 8, 4, config.minima):
        at.append(at[-1] + width * documents)
    return Signatures(
        np.frombuffer(data, "<u8", config.bands * documents, at[0]).reshape(config.bands, documents),
        np.frombuffer(data, "<u8", documents, at[1]),
        np.frombuffer(data, "<u4", documents, at[2]),
        np.frombuffer(data, "u1", config.minima * documents, at[3]).reshape(documents, config.minima),
    )


def _minima(found: Grams, filled: I64, factors: U32) -> U32:
    """Return the minima [B * R, texts with words]: per permutation one product and one minimum, each in one pass."""
    upper = (found.hashes >> np.uint64(32)).astype(np.uint32)
    product = np.empty_like(upper)
    minima = np.empty((len(factors), len(filled)), dtype=np.uint32)
    starts = found.bounds[filled]
    for factor, line in zip(factors, minima, strict=True):
        np.multiply(upper, factor, out=product)
        np.minimum.reduceat(product, starts, out=line)
    return minima


def _bands(minima: U32, config: NearConfig) -> U64:
    by_band = minima.reshape(config.bands, config.rows, -1).astype(np.uint64)
    sums = np.zeros((config.bands, minima.shape[1]), dtype=np.uint64)
    for row in range(config.rows):
        sums = mix(sums ^ by_band[:, row])
    return sums
