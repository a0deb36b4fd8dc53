"""Other people's files, read strictly: of bounded size, UTF-8, every key once, every digit of every number heeded."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import rfc8785

from consortium.domain.units import MAX_SAFE_INTEGER

STDIN = "-"
"""Names standard input."""
_CHUNK_BYTES = 1 << 20


class NotStrictError(ValueError):
    """A text that is no JSON object, or leaves open what it says; `line` where a line is to blame, else 0."""

    def __init__(self, what: str, line: int = 0) -> None:
        super().__init__(what)
        self.line = line

    def at(self, where: str) -> str:
        """Return the place of the fault in the file `where`."""
        return f"{where}:{self.line}" if self.line else where


def read_bounded(path: str | Path, most_bytes: int) -> bytes:
    """Return what is in a file, a pipe, or standard input (`-`).

    Raises OSError, also for more than `most_bytes` and for a pipe that nobody writes to: neither is waited for.
    """
    if str(path) == STDIN:
        return _read(0, most_bytes)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        kind = os.fstat(descriptor)
        if stat.S_ISREG(kind.st_mode) and kind.st_size > most_bytes:
            raise _too_large(most_bytes)
        first = b""
        if stat.S_ISFIFO(kind.st_mode):
            try:
                first = os.read(descriptor, _CHUNK_BYTES)
            except BlockingIOError:  # somebody will write
                pass
            else:
                if not first:
                    raise OSError(errno.EPIPE, "nobody writes to this pipe")
        os.set_blocking(descriptor, True)
        return _read(descriptor, most_bytes, first)
    finally:
        os.close(descriptor)


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the JSON object in a text.

    Keys that stand twice and numbers with digits beyond what they keep are refused: nothing may go unread. Raises
    NotStrictError.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            decoded, object_pairs_hook=_once, parse_float=_exact, parse_int=_whole, parse_constant=_refuse
        )
    except UnicodeDecodeError as fault:
        raise NotStrictError("the file is not UTF-8 text") from fault
    except json.JSONDecodeError as fault:
        raise NotStrictError(f"not valid JSON: {fault.msg}", fault.lineno) from fault
    except RecursionError as fault:
        raise NotStrictError("not valid JSON: nested too deep") from fault
    except ValueError as fault:
        raise NotStrictError(str(fault)) from fault
    if not isinstance(value, dict):
        raise NotStrictError("the JSON is not an object")
    return value


def _read(descriptor: int, most_bytes: int, first: bytes = b"") -> bytes:
    read = bytearray(first)
    while len(read) <= most_bytes:
        chunk = os.read(descriptor, _CHUNK_BYTES)
        if not chunk:
            return bytes(read)
        read += chunk
    raise _too_large(most_bytes)


def _too_large(most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {most_bytes >> 20:,} MiB")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return made


def _exact(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number {text} is beyond a double")
    if text not in (repr(value), rfc8785.dumps(value).decode()):
        raise ValueError(f"number {text} is not the shortest text of its value {value!r}")
    return value


def _whole(text: str) -> int:
    """Return a whole number that every reader of JSON keeps: what is signed of a larger one is its text."""
    try:
        value = int(text)
    except ValueError as fault:  # Python reads no more than some thousand digits
        raise ValueError(f"a number has {len(text):,} digits") from fault
    if text == "-0" or abs(value) > MAX_SAFE_INTEGER:
        raise ValueError(f"number {text[:40]} stands there as no writer of ours writes it; above 2^53 - 1 as a string")
    return value


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
