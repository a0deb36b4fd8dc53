"""The server's clock: wall time once at the start, the monotonic clock from then on, so that it never goes back.

A start may find times in the state that lie ahead of it: `consortium.state.times` sees to them.
"""

from __future__ import annotations

import secrets
import time

from consortium.domain import ids


class Clock:
    """UTC milliseconds, and ids made of them."""

    def __init__(self) -> None:
        self._wall_ms = time.time_ns() // 1_000_000
        self._mono_ns = time.monotonic_ns()

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        return self._wall_ms + (time.monotonic_ns() - self._mono_ns) // 1_000_000

    def new_id(self, prefix: str) -> str:
        """Return a fresh id of that prefix."""
        return ids.make_id(prefix, self.now_ms(), secrets.token_bytes(10))
