"""How much of legs' logs the server keeps: no more than an honest site sends."""

from __future__ import annotations

import threading

from sqlalchemy import Connection

from consortium.domain.job import Leg
from consortium.domain.protocol import MAX_LOG_CHARS
from consortium.state import data, jobs

LATE_MS = 7 * 86_400_000
"""How long after a leg's end its log is still kept: a site may have been cut off."""
_KNOWN_LEGS = 10_000


class LogAmounts:
    """How much log text of each leg is kept; counted once from the state, and then as it comes. Shared by threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._chars: dict[str, int] = {}

    def keep(self, connection: Connection, leg: Leg, offset: int, text: str, now_ms: int) -> None:
        """Keep a piece of a leg's log, in the caller's transaction.

        Nothing long after the leg's end, and in all no more than a site sends: what is longer stays in its archive.
        """
        book = jobs.epoch_row(connection, leg.id, leg.epoch)
        if book is not None and book.final_ms and now_ms > book.final_ms + LATE_MS:
            return
        with self._mutex:
            if len(self._chars) >= _KNOWN_LEGS:
                self._chars.clear()
            known = self._chars.get(leg.id)
            kept = data.count_log(connection, leg.id) if known is None else known
            self._chars[leg.id] = kept + data.add_log(
                connection,
                job=leg.job,
                leg=leg.id,
                site=leg.site,
                offset=offset,
                text=text[: max(0, MAX_LOG_CHARS - offset)],
                now_ms=now_ms,
                most=MAX_LOG_CHARS * leg.tries - kept,
            )
