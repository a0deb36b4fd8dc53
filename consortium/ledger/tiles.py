"""The log as static files (https://c2sp.org/tlog-tiles): tiles of 256 hashes, bundles of 256 entries.

`tile/L/N` holds hashes of tree level 8*L; `tile/entries/N` the leaves, each with a 16-bit length; a right edge that is
not full yet has the suffix `.p/W`. Files are derived from the database and written again where they are missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WIDTH = 256
HASH_BYTES = 32
LEAF_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One file: `level` of hashes, or -1 for entries; `width` items, 256 where full."""

    level: int
    index: int
    width: int

    @property
    def path(self) -> str:
        """Its path below the log's folder."""
        kind = "entries" if self.level < 0 else str(self.level)
        return f"tile/{kind}/{number_path(self.index)}" + ("" if self.width == WIDTH else f".p/{self.width}")

    @property
    def size_bytes(self) -> int:
        """How long the file is."""
        return self.width * (HASH_BYTES if self.level >= 0 else 2 + LEAF_BYTES)


def number_path(index: int) -> str:
    """Return a tile number in groups of three digits, all but the last with an x: 1234067 is `x001/x234/067`."""
    groups = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        groups.append(f"x{index % 1000:03d}")
    return "/".join(reversed(groups))


def tiles(size: int, since: int = 0) -> Iterator[Tile]:
    """Yield the tiles of a log of `size` leaves that differ from, or are not among, those of its first `since`."""
    for level in (-1, *range(0, 64, 8)):
        shift = max(level, 0)
        done, now = since >> shift, size >> shift
        if not now:
            return
        for index in range(done // WIDTH, -(-now // WIDTH)):
            width = min(WIDTH, now - index * WIDTH)
            if index * WIDTH + width > done:
                yield Tile(level=level if level < 0 else level // 8, index=index, width=width)


def missing(folder: Path, size: int) -> Iterator[Tile]:
    """Yield the tiles of a log of `size` leaves whose files are not there or not whole."""
    for tile in tiles(size):
        try:
            if (folder / tile.path).stat().st_size == tile.size_bytes:
                continue
        except (FileNotFoundError, NotADirectoryError):
            pass
        yield tile


def bundle(leaves: list[bytes]) -> bytes:
    """Return the bytes of an entry bundle."""
    return b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)


def write(folder: Path, tile: Tile, content: bytes) -> None:
    """Write a tile whole or not at all; a full one takes the place of its partial forerunners."""
    target = folder / tile.path
    replace_file(target, content)
    if tile.width == WIDTH:
        partial = target.with_name(target.name + ".p")
        if partial.exists():
            shutil.rmtree(partial)


def replace_file(target: Path, content: bytes, *, durable: bool = False) -> None:
    """Write `content` beside `target` and rename it there; where `durable`, it is on disk before that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.new")
    with draft.open("wb") as out:
        out.write(content)
        if durable:
            out.flush()
            os.fsync(out.fileno())
    os.replace(draft, target)
