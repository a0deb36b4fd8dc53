"""Which stored hashes a root, an inclusion proof or a consistency proof is made of (RFC 6962 section 2.1). Pure.

A hash is stored at (level, index) once the subtree of 2^level leaves from index * 2^level is complete, and never
changes. Every root and proof is made of O(log n) of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

Stored = Callable[[int, int], bytes]
"""Returns the hash of the complete subtree at (level, index)."""

EMPTY_ROOT = hashlib.sha256(b"").digest()


def hash_leaf(data: bytes) -> bytes:
    """Return the RFC 6962 leaf hash of `data`."""
    return hashlib.sha256(b"\x00" + data).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """Return the RFC 6962 hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def split(size: int) -> int:
    """Return the largest power of two below `size` (at least 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def grow(stored: Stored, size: int, leaves: Iterable[bytes]) -> list[tuple[int, int, bytes]]:
    """Return the (level, index, hash) that appending leaf hashes to a tree of `size` completes."""
    edge: dict[int, bytes] = {}
    made: list[tuple[int, int, bytes]] = []
    for index, leaf in enumerate(leaves, start=size):
        level, position, value = 0, index, leaf
        made.append((0, index, leaf))
        while position & 1:
            left = edge.pop(level, None) or stored(level, position - 1)
            level, position, value = level + 1, position >> 1, hash_node(left, value)
            made.append((level, position, value))
        edge[level] = value
    return made


def root(stored: Stored, size: int) -> bytes:
    """Return the root of the first `size` leaves."""
    return _range(stored, 0, size) if size else EMPTY_ROOT


def inclusion(stored: Stored, index: int, size: int) -> list[bytes]:
    """Return the audit path of leaf `index` in the tree of `size` leaves, leaf upwards."""
    start, count, path = 0, size, []
    while count > 1:
        half = split(count)
        if index - start < half:
            path.append(_range(stored, start + half, count - half))
            count = half
        else:
            path.append(_range(stored, start, half))
            start, count = start + half, count - half
    return path[::-1]


def consistency(stored: Stored, old: int, new: int) -> list[bytes]:
    """Return the proof that the tree of `new` leaves extends that of its first `old`; empty where they are equal."""
    if old in (0, new):
        return []
    start, count, rest, whole, path = 0, new, old, True, []
    while rest != count:
        half = split(count)
        if rest <= half:
            path.append(_range(stored, start + half, count - half))
            count = half
        else:
            path.append(_range(stored, start, half))
            start, count, rest, whole = start + half, count - half, rest - half, False
    return ([] if whole else [_range(stored, start, count)]) + path[::-1]


def _range(stored: Stored, start: int, count: int) -> bytes:
    """Hash `count` leaves from `start`, a multiple of the least power of two that is not below `count`."""
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return stored(level, start >> level)
    half = split(count)
    return hash_node(_range(stored, start, half), _range(stored, start + half, count - half))
