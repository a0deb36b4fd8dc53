"""Top-k with two bits a value: of every chunk of 4,096 elements the k largest magnitudes cross, the rest is fed back.

The scheme is SparseLoCo's (https://arxiv.org/abs/2508.15706: chunks of 4,096, k 32 to 128, two-bit values, error
feedback); values and indices are coded otherwise, in fewer bytes:

- A value is its sign and one of two magnitudes of its chunk, each the mean of the selected values that it stands for
  (two steps of Lloyd's algorithm from their mean), rounded to bf16.
- Indices are an ascending list in Elias-Fano form: the lower log2(4096/k) bits each as they are, the upper ones in
  unary, log2(4096/k) + 2 bits an index in all. That is 8 at k = 64, where a plain index has 12 and no code can do with
  less than about 7.4. The length is fixed, so nothing is allocated on a sender's word, and a list has one form only.

Planes, each over all chunks: magnitudes (2 x bf16 a chunk), upper bits (2k), lower bits, signs (k), which of the two
magnitudes (k). Bit order within bytes is little-endian. Ties in magnitude go to the lower index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from consortium.errors import VerificationError
from consortium.train.spread import spread

CHUNK = 4096
COUNTS = (16, 32, 64, 128, 256)
"""Powers of two, so that planes are whole bytes and sums have one order."""
_GROUPS = 512
"""Each chunk is cut into this many groups of 8; the k-th largest of their maxima bounds the k-th largest of all from
below, and not many more than k elements reach it: only those are sorted."""
_CHUNKS = 64
"""Chunks worked on at a time."""
_LLOYD = 2

Vector = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Doubles = npt.NDArray[np.float64]
Halves = npt.NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class _Planes:
    """Views of a payload, one row a chunk."""

    magnitudes: Halves
    upper: Bytes
    lower: Bytes
    signs: Bytes
    which: Bytes

    @classmethod
    def of(cls, payload: Bytes, k: int) -> _Planes:
        chunks, start, views = len(payload) // _chunk_bytes(k), 0, []
        for width in widths(k):
            views.append(payload[start : start + chunks * width].reshape(chunks, width))
            start += chunks * width
        return cls(views[0].view("<u2"), *views[1:])


def bytes_for(size: int, k: int) -> int:
    """Return the bytes of `size` elements."""
    return -(-size // CHUNK) * _chunk_bytes(k)


def encode(carried: Vector, k: int, out: Bytes) -> None:
    """Write the code of `carried`, all finite, into `out`; `carried` becomes the residual."""
    planes = _Planes.of(out, k)
    rows = np.arange(_CHUNKS, dtype=np.int64)[:, None] * CHUNK

    def work(at: tuple[slice, slice]) -> None:
        part, elements = at
        tile = _whole_chunks(carried[elements])
        indices = _largest(tile, k)
        places = indices + rows[: len(tile)]
        values = tile.reshape(-1)[places]
        magnitudes, which = _two_levels(np.abs(values))
        planes.magnitudes[part] = magnitudes
        planes.signs[part] = np.packbits(np.signbit(values), axis=1, bitorder="little")
        planes.which[part] = np.packbits(which, axis=1, bitorder="little")
        planes.upper[part], planes.lower[part] = _pack(indices, k)
        left = values - _signed(magnitudes, which, np.signbit(values))
        inside = places < elements.stop - elements.start
        carried[elements][places[inside]] = left[inside]

    spread(work, _parts(len(carried)))


def decode(payload: Bytes, size: int, k: int) -> Vector:
    """Return the `size` elements that a payload of the right length stands for; raises VerificationError."""
    planes = _Planes.of(payload, k)
    vector = np.zeros(len(planes.upper) * CHUNK, dtype=np.float32)
    rows = np.arange(_CHUNKS, dtype=np.int64)[:, None] * CHUNK

    def work(at: tuple[slice, slice]) -> None:
        part, elements = at
        magnitudes = planes.magnitudes[part].astype(np.uint16)
        if bool((magnitudes >= 0x7F80).any()) or bool((magnitudes[:, 0] > magnitudes[:, 1]).any()):
            refuse("magnitudes are negative, not finite or out of order")
        indices = _unpack(planes.upper[part], planes.lower[part], k)
        last = elements.stop - elements.start - (len(indices) - 1) * CHUNK
        if int(indices[-1, -1]) >= max(last, k):
            refuse("an index lies beyond the vector's end")
        signs, which = _flags(planes.signs[part]), _flags(planes.which[part])
        tile = vector[part.start * CHUNK : part.start * CHUNK + len(indices) * CHUNK]
        tile[indices + rows[: len(indices)]] = _signed(magnitudes, which, signs)

    spread(work, _parts(size))
    return vector[:size]


def _flags(plane: Bytes) -> Flags:
    return np.unpackbits(plane, axis=1, bitorder="little").view(np.bool_)


def refuse(what: str) -> NoReturn:
    """Raise VerificationError for an encoded vector that is not what its code makes."""
    raise VerificationError(f"not an encoded pseudo-gradient: {what}")


def to_bf16(bits: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return finite fp32 bit patterns as bf16's, rounded to nearest, ties to even; never to infinity."""
    half = (bits >> np.uint32(16)) & np.uint32(1)
    half += bits
    half += np.uint32(0x7FFF)
    half >>= np.uint32(16)
    half -= ((half & np.uint32(0x7FFF)) == np.uint32(0x7F80)).view(np.uint8)
    return half


def _low_bits(k: int) -> int:
    return (CHUNK // k).bit_length() - 1


def widths(k: int) -> tuple[int, ...]:
    """Return the bytes of a chunk in each plane."""
    return 4, k // 4, k * _low_bits(k) // 8, k // 8, k // 8


def _chunk_bytes(k: int) -> int:
    return sum(widths(k))


def _parts(size: int) -> Iterator[tuple[slice, slice]]:
    """Yield the chunks to be worked on together, and their elements."""
    chunks = -(-size // CHUNK)
    for start in range(0, chunks, _CHUNKS):
        stop = min(start + _CHUNKS, chunks)
        yield slice(start, stop), slice(start * CHUNK, min(stop * CHUNK, size))


def _whole_chunks(part: Vector) -> Vector:
    count = -(-len(part) // CHUNK)
    if len(part) < count * CHUNK:
        part = np.concatenate([part, np.zeros(count * CHUNK - len(part), dtype=np.float32)])
    return part.reshape(count, CHUNK)


def _largest(tile: Vector, k: int) -> Ints:
    """Return, per chunk, the indices of its k largest magnitudes, ascending."""
    magnitudes = np.abs(tile).view(np.int32)
    tops = magnitudes.reshape(len(tile), CHUNK // _GROUPS, _GROUPS).max(axis=1)
    bound = np.partition(tops, _GROUPS - k, axis=1)[:, _GROUPS - k]
    found = np.flatnonzero(magnitudes >= bound[:, None])
    chunk, index = found >> 12, found & (CHUNK - 1)
    smallness = np.int64(0x7FFFFFFF) - magnitudes.reshape(-1)[found]
    keys = np.sort(chunk << 43 | smallness << 12 | index)
    counts = np.bincount(chunk, minlength=len(tile))
    firsts = np.cumsum(counts) - counts
    return np.sort(keys[firsts[:, None] + np.arange(k)] & (CHUNK - 1), axis=1)


def _two_levels(magnitudes: Vector) -> tuple[Halves, Flags]:
    """Return two bf16 magnitudes a chunk, the smaller first, and which of them stands for each value."""
    wide = magnitudes.astype(np.float64)
    split = _sum(wide) / wide.shape[1]
    for _ in range(_LLOYD):
        low, high, which = _means(wide, split)
        split = (low + high) / 2
    low, high, which = _means(wide, split)
    both = np.stack([low, high], axis=1).astype(np.float32)
    return to_bf16(both.view(np.uint32)).astype(np.uint16), which


def _means(wide: Doubles, split: Doubles) -> tuple[Doubles, Doubles, Flags]:
    which = wide > split[:, None]
    above, everything = _sum(np.where(which, wide, 0.0)), _sum(wide)
    count = which.sum(axis=1)
    low = _sum(np.where(which, 0.0, wide)) / np.maximum(wide.shape[1] - count, 1)
    high = np.where(count > 0, above / np.maximum(count, 1), everything / wide.shape[1])
    return np.minimum(low, high), high, which


def _sum(rows: Doubles) -> Doubles:
    """Return the sum of each row, halves added to halves: one order of additions on every processor."""
    while rows.shape[1] > 1:
        half = rows.shape[1] // 2
        rows = np.add(rows[:, :half], rows[:, half:])
    return rows[:, 0]


def _signed(magnitudes: Halves, which: Flags, signs: Flags) -> Vector:
    bits = np.where(which, magnitudes[:, 1:], magnitudes[:, :1]).astype(np.uint32)
    return (bits << np.uint32(16) | signs.astype(np.uint32) << np.uint32(31)).view(np.float32)


def _pack(indices: Ints, k: int) -> tuple[Bytes, Bytes]:
    """Return the upper and lower planes of ascending indices, shape (chunks, k)."""
    low = _low_bits(k)
    unary = np.zeros((len(indices), 2 * k), dtype=np.uint8)
    np.put_along_axis(unary, (indices >> low) + np.arange(k), 1, axis=1)
    rest = (indices & ((1 << low) - 1)).astype(np.uint8)[:, :, None]
    bits = np.unpackbits(rest, axis=2, count=low, bitorder="little")
    lower = np.packbits(bits.reshape(len(indices), k * low), axis=1, bitorder="little")
    return np.packbits(unary, axis=1, bitorder="little"), lower


def _unpack(upper: Bytes, lower: Bytes, k: int) -> Ints:
    low = _low_bits(k)
    unary = np.unpackbits(upper, axis=1, bitorder="little")
    if bool((unary.sum(axis=1, dtype=np.int64) != k).any()):
        refuse(f"a chunk does not have {k} indices")
    high = np.flatnonzero(unary).reshape(len(unary), k) - np.arange(len(unary))[:, None] * (2 * k) - np.arange(k)
    bits = np.unpackbits(lower, axis=1, bitorder="little").reshape(len(lower), k, low)
    indices = high << low | np.packbits(bits, axis=2, bitorder="little")[:, :, 0]
    if bool((np.diff(indices, axis=1) <= 0).any()) or bool((indices[:, -1] >= CHUNK).any()):
        refuse("indices do not ascend, or lie beyond their chunk")
    return indices
