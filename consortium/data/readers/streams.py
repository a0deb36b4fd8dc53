"""gzip and zstd unpacked piece by piece: memory is a window, and what expands without end is stopped.

zstd frames may ask for a window of at most 128 MiB (libzstd's default limit); gzip's is 32 KiB.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

import pyarrow as pa

MAX_EXPANSION = 250
"""Bytes out per byte in that are read before a file is taken for a bomb; gzip reaches 1,030, texts 3 to 30."""
FREE_BYTES = 64 << 20
"""Bytes out that are never held against a file."""
FAULTS = (OSError, EOFError, zlib.error, pa.ArrowException)
"""What reading a broken file raises."""
_PIECE_BYTES = 64 << 10
PACKED = (".gz", ".zst")


class BombError(OSError):
    """A file that expands too much."""


class Counted(io.RawIOBase):
    """A stream that knows how many bytes were read from it; `moved` is told, with the place in the file."""

    def __init__(self, inner: BinaryIO, moved: Callable[[int], None]) -> None:
        self._inner, self._moved = inner, moved
        self.count = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place in the file."""
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        """Return the place in the file."""
        return self._inner.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader hands in
        """Read some bytes."""
        data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        self._moved(self._inner.tell())
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._inner.close()
        super().close()


def unpacked(name: str, raw: Counted) -> BinaryIO:
    """Return what is in a file, by the end of its name: gzip, zstd, or the file as it stands.

    Reading raises one of `FAULTS` where the file is cut, broken or a bomb.
    """
    file = cast(BinaryIO, io.BufferedReader(raw, 1 << 20))
    if name.lower().endswith(".gz"):
        inner: Any = gzip.GzipFile(fileobj=file, mode="rb").read1  # what it has, before it raises
    elif name.lower().endswith(".zst"):
        inner = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd").read
    else:
        return file
    return cast(BinaryIO, io.BufferedReader(_Guarded(inner, raw), 1 << 20))


def inner_name(name: str) -> str:
    """Return a file's name in lower case without the mark of its compression."""
    lower = name.lower()
    return lower.rpartition(".")[0] if lower.endswith(PACKED) else lower


class _Guarded(io.RawIOBase):
    def __init__(self, read: Callable[[int], bytes], raw: Counted) -> None:
        self._read, self._raw = read, raw
        self._out = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader hands in
        data = self._read(min(len(buffer), _PIECE_BYTES))
        self._out += len(data)
        if self._out > FREE_BYTES + MAX_EXPANSION * self._raw.count:
            raise BombError(f"{self._raw.count} bytes of it expand to more than {MAX_EXPANSION} times as many")
        buffer[: len(data)] = data
        return len(data)
