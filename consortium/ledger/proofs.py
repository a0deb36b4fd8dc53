"""Verifying what a log says: leaves, checkpoints, inclusion, consistency. Pure; needs no server and no database.

Algorithms: RFC 9162 sections 2.1.3.2 and 2.1.4.2; checkpoints: https://c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consortium.domain.protocol import Pinned
from consortium.errors import VerificationError
from consortium.keys.canonical import canonical
from consortium.ledger.notes import open_note
from consortium.ledger.tree import EMPTY_ROOT, grow, hash_leaf, hash_node, split
from consortium.ledger.tree import root as tree_root

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The state of a log: how many leaves it has and the root over them (hex)."""

    name: str
    size: int
    root: str


def leaf_data(salt: str, payload: Any) -> bytes:
    """Return the 32 bytes of a leaf: SHA-256(salt || canonical payload); `salt` is hex."""
    return hashlib.sha256(_unhex(salt, "the salt") + canonical(payload)).digest()


def checkpoint_text(name: str, size: int, root: bytes) -> str:
    """Return the text that a log signs: name, size, root in base64."""
    return f"{name}\n{size}\n{base64.b64encode(root).decode()}\n"


def parse_checkpoint(note: str, name: str, key: str) -> Checkpoint:
    """Return the checkpoint in a signed note; raises VerificationError unless log `name` signed it with `key`."""
    found = _checkpoint(open_note(note, name, key))
    if found.name != name:
        raise VerificationError(f"the checkpoint is of log {found.name!r}, not of {name!r}")
    return found


def unsigned_checkpoint(note: str) -> Checkpoint:
    """Return what a note says that may be anybody's: its signatures are not looked at. Raises VerificationError."""
    text, gap, _ = note.rpartition("\n\n")
    if not gap:
        raise VerificationError("not a signed note: no signature block")
    return _checkpoint(text + "\n")


def _checkpoint(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) < 4:
        raise VerificationError("the checkpoint has no name, size and root")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except (binascii.Error, ValueError):
        root = b""
    if not _NUMBER.fullmatch(lines[1]) or len(root) != 32 or base64.b64encode(root).decode() != lines[2]:
        raise VerificationError("the checkpoint's size or root is malformed", where=f"log {lines[0]!r}")
    return Checkpoint(name=lines[0], size=int(lines[1]), root=root.hex())


def verify_inclusion(data: bytes, index: int, size: int, proof: Sequence[str], root: str) -> None:
    """Raise VerificationError unless leaf `data` stands at `index` in the tree of `size` leaves under `root` (hex)."""
    fault = VerificationError(f"leaf {index} is not proven to stand in the log of {size} leaves")
    if not 0 <= index < size:
        raise fault
    position, last, value = index, size - 1, hash_leaf(data)
    for step in _hashes(proof):
        if last == 0:
            raise fault
        if position & 1 or position == last:
            value = hash_node(step, value)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            value = hash_node(value, step)
        position, last = position >> 1, last >> 1
    if last != 0 or value.hex() != root:
        raise fault


def verify_latest(datas: Sequence[bytes], start: int, size: int, proof: Sequence[str], root: str) -> None:
    """Raise VerificationError unless `datas` are all leaves from `start` on of the tree of `size` leaves under `root`.

    `proof` is the inclusion proof of the first of them: what it names on the left stands for the leaves before.
    """
    if len(datas) != size - start or start < 0:
        raise VerificationError(f"{len(datas)} leaves are given where {size - start} follow in the log of {size}")
    if not datas:
        if root != EMPTY_ROOT.hex() or proof or size:
            raise VerificationError("no leaf is given, and the log is not empty")
        return
    verify_inclusion(datas[0], start, size, proof, root)
    known: dict[tuple[int, int], bytes] = {}
    first, count = 0, size
    for step in reversed(_hashes(proof)):
        half = split(count)
        if start - first < half:
            count = half
        else:
            level = half.bit_length() - 1
            known[level, first >> level] = step
            first, count = first + half, count - half
    made = grow(lambda *at: known[at], start, [hash_leaf(data) for data in datas])
    known |= {(level, index): value for level, index, value in made}
    if tree_root(lambda *at: known[at], size).hex() != root:
        raise VerificationError(f"the leaves from {start} on are not those of the log of {size} leaves")


def verify_consistency(old: int, old_root: str, new: int, new_root: str, proof: Sequence[str]) -> None:
    """Raise VerificationError unless the tree (`new`, `new_root`) extends the tree (`old`, `old_root`)."""
    fault = VerificationError(f"the log of {new} leaves does not extend the log of {old} leaves seen before")
    if old > new or (old == new and old_root != new_root):
        raise fault
    if old == 0:
        if old_root != EMPTY_ROOT.hex() or proof:
            raise fault
        return
    if old == new:
        if proof:
            raise fault
        return
    path = _hashes(proof)
    if old & (old - 1) == 0:
        path = [_unhex(old_root, "the old root"), *path]
    if not path:
        raise fault
    position, last = old - 1, new - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    first = second = path[0]
    for step in path[1:]:
        if last == 0:
            raise fault
        if position & 1 or position == last:
            first, second = hash_node(step, first), hash_node(step, second)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            second = hash_node(second, step)
        position, last = position >> 1, last >> 1
    if last != 0 or first.hex() != old_root or second.hex() != new_root:
        raise fault


def advance(pinned: Pinned | None, note: str, proof: Sequence[str], name: str, key: str) -> Pinned:
    """Return the new pin after checking a checkpoint and its consistency with the pinned one.

    Raises VerificationError where the signature fails, the log shrank (restored from a backup) or was rewritten.
    """
    seen = parse_checkpoint(note, name, key)
    if pinned is not None:
        if seen.size < pinned.size:
            raise VerificationError(
                f"log {name} shrank from {pinned.size} to {seen.size} leaves: an older backup, or rewritten",
                fix="stop; the operator must restore the log up to the pinned checkpoint, or all begin a new one",
            )
        verify_consistency(pinned.size, pinned.root, seen.size, seen.root, proof)
    return Pinned(size=seen.size, root=seen.root)


def _hashes(proof: Sequence[str]) -> list[bytes]:
    return [_unhex(text, "a proof's hash") for text in proof]


def _unhex(text: str, what: str) -> bytes:
    if not isinstance(text, str) or not re.fullmatch(r"[0-9a-f]{64}", text):
        raise VerificationError(f"{what} is not 64 hex digits in lower case")
    return bytes.fromhex(text)
