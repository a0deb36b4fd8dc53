"""How fast a site's records may grow the log. What comes faster is not refused: it waits in the site's outbox."""

from __future__ import annotations

import threading
from collections.abc import Sequence

BYTES_S = 2 << 10
GPU_BYTES_S = 16
"""A site may write 2 KiB a second, and for each of its GPUs 16 bytes more: some five times what legs of one GPU take by
our reckoning, each metered and its calls recorded every ten minutes, and three artifacts a second over borders."""
SAVED_BYTES = 512 << 20
"""What it has at most to catch up with: months of an ordinary site, after a backup of the server was restored."""


class Growth:
    """What each site may still write, since the server's start. Shared by threads."""

    def __init__(self, saved_bytes: int = SAVED_BYTES) -> None:
        self._saved = saved_bytes * 1000
        self._mutex = threading.Lock()
        self._left: dict[str, tuple[int, int]] = {}
        """By site: thousandths of bytes, and when it was."""

    def fitting(self, site: str, gpus: int, sizes: Sequence[int], now_ms: int) -> int:
        """Return how many of the next records, of `sizes` bytes, there is room for now."""
        with self._mutex:
            left, at_ms = self._left.get(site, (self._saved, now_ms))
            left = min(self._saved, left + (BYTES_S + gpus * GPU_BYTES_S) * max(0, now_ms - at_ms))
            self._left[site] = left, now_ms
        for number, size in enumerate(sizes):
            left -= size * 1000
            if left < 0:
                return number
        return len(sizes)

    def spend(self, site: str, size_bytes: int) -> None:
        """Note that a site's records took so much."""
        with self._mutex:
            left, at_ms = self._left[site]
            self._left[site] = left - size_bytes * 1000, at_ms
