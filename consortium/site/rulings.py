"""Admins' rulings that this site's gateway verified once, against the rosters of the time.

Every later round of the job carries them, and who ruled may leave its partner, or change key or role, meanwhile: that
must not end the training. What was never verified here is not among them.
"""

from __future__ import annotations

from consortium.site.db import SiteDb


class VerifiedRulings:
    """The digests, signature included, in `site.db`."""

    def __init__(self, db: SiteDb) -> None:
        self._db = db

    def of(self, job: str) -> frozenset[str]:
        """Return the digests of the rulings on a job that were verified."""
        rows = self._db.read().execute("SELECT digest FROM rulings WHERE job = ?", (job,)).fetchall()
        return frozenset(str(row["digest"]) for row in rows)

    def pin(self, job: str, *digests: str) -> None:
        """Note that rulings on a job were verified."""
        with self._db.write() as write:
            write.executemany("INSERT OR IGNORE INTO rulings VALUES (?, ?)", [(job, digest) for digest in digests])
