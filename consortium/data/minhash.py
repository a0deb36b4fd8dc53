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

from consortium.data.shingles import I64, U32, U64, Grams, blocks, draw, grams, hashing, mix, read
from consortium.domain.cleaning import NearConfig
from consortium.errors import VerificationError

U8 = npt.NDArray[np.uint8]

_MAGIC = b"CSMINHS1"
_HEADER = struct.Struct("<8s8sQ")


def mark(config: NearConfig, key: bytes) -> bytes:
    """Return 8 bytes that signatures share exactly when they can be compared."""
    made_with = f"{config.ngram} {config.bands} {config.rows}".encode()
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
    _HEADER.pack_into(data, 0, _MAGIC, mark(config, key), len(texts))
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
    _, made_with, documents = _HEADER.unpack_from(data)
    if made_with != mark(config, key):
        raise VerificationError(
            "these signatures were made with another n-gram, bands, rows or key and cannot be compared",
            where=where,
            fix="sign both sides with the same settings and key",
        )
    if len(data) != _HEADER.size + documents * (8 * config.bands + 12 + config.minima):
        raise VerificationError("these signatures are cut off", where=where)
    return _views(data, config)


def joined(parts: Sequence[Signatures]) -> Signatures:
    """Return several shards' signatures as one, a copy: 236 bytes per document with 14 bands of 8."""
    return Signatures(
        np.concatenate([part.bands for part in parts], axis=1),
        np.concatenate([part.sums for part in parts]),
        np.concatenate([part.words for part in parts]),
        np.concatenate([part.minima for part in parts]),
    )


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
