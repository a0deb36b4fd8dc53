"""Calls cross the border too: their bytes are counted as they pass and recorded in batches."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.ids import CONSORTIUM
from consortium.site.db import SiteDb
from consortium.site.legs import LegTable
from consortium.site.outbox import Outbox

FLUSH_MS = 600_000
"""As often as usage: some 4,400 records a month, which every report of the site's partner carries."""


class Traffic:
    """Counts, kept in `site.db` from the moment of the call, become one crossing record per flush."""

    def __init__(self, db: SiteDb, outbox: Outbox, site: str, now_ms: Callable[[], int]) -> None:
        self.db = db
        self.outbox = outbox
        self.site = site
        self.now_ms = now_ms
        self._flushed_ms = now_ms()
        self._busy = False

    def count(self, artifact_class: ArtifactClass, out_bytes: int, in_bytes: int | None, job: str = "") -> None:
        """Count one call to the consortium and its answer; None where none came."""
        sides = (
            (self.site, CONSORTIUM, CrossingSide.RELEASE, out_bytes),
            (CONSORTIUM, self.site, CrossingSide.RECEIPT, in_bytes),
        )
        with self.db.write() as write:
            for sender, recipient, side, size in sides:
                if size is None:
                    continue
                write.execute(
                    "INSERT INTO traffic VALUES (?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO UPDATE SET"
                    " size_bytes = size_bytes + excluded.size_bytes, count = count + 1",
                    (job, sender, recipient, side.value, artifact_class.value, size),
                )

    def flush_if_due(self) -> None:
        """Record what was counted: every ten minutes, and once no leg is at work any more."""
        was, self._busy = self._busy, bool(LegTable(self.db).active())
        if self.now_ms() - self._flushed_ms >= FLUSH_MS or (was and not self._busy):
            self.flush()

    def flush(self) -> None:
        """Turn the counts into one crossing record, all or nothing."""
        self._flushed_ms = at_ms = self.now_ms()
        with self.db.write() as write:
            crossings = [
                _crossing(row, at_ms) for row in write.execute("SELECT * FROM traffic ORDER BY job, class, side")
            ]
            if crossings:
                self.outbox.add_crossings(write, crossings, at_ms)
                write.execute("DELETE FROM traffic")


def _crossing(row: sqlite3.Row, at_ms: int) -> Crossing:
    return Crossing(
        sender=row["sender"],
        recipient=row["recipient"],
        side=CrossingSide(row["side"]),
        artifact_class=ArtifactClass(row["class"]),
        size_bytes=row["size_bytes"],
        count=row["count"],
        digest="",
        job=row["job"],
        at_ms=at_ms,
    )
