"""What legs write: archived in the partner's private store, and sent on only where the partner's policy lets it go.

The gateway asks the policy; this thread only hears the answer. That a log is withheld the server knows by itself: it
holds the same signed policy. An archived job's record is deleted from Ray, and again where Ray makes it anew: its
monitor takes a job that was deleted within a second of its end for one whose supervisor died.
"""

from __future__ import annotations

import logging
from collections import Counter

from consortium.domain.job import LegState
from consortium.domain.protocol import MAX_LOG_CHARS
from consortium.errors import ConsortiumError, PolicyDeniedError
from consortium.site.agent.server import ServerLine
from consortium.site.legs import LegTable, SiteLeg
from consortium.site.ray_jobs import RayCluster
from consortium.storage.objects import ObjectStore

PIECE_CHARS = 60_000
MAX_READ = 32
"""Logs of running legs read in one step: each is a call to Ray, and records wait meanwhile. The others come next."""
NO_TEXT = """[
  what this leg has written holds bytes that are no UTF-8, and Ray gives nothing of it:
  it lies at its site, on the node that ran it, in job-driver-{}.log of the Ray session's logs
]
"""
log = logging.getLogger(__name__)


def archive_key(leg: SiteLeg) -> str:
    """Where a leg's log lies in the private store."""
    return f"jobs/{leg.offer.job}/logs/{leg.key}.log"


class LogKeeper:
    """Forwards and archives logs; every step is safe to repeat. Raises UnreachableError where something is away."""

    def __init__(self, table: LegTable, cluster: RayCluster, store: ObjectStore, server: ServerLine) -> None:
        self.table = table
        self.cluster = cluster
        self.store = store
        self.server = server
        self._read = 0
        self._failed: Counter[str] = Counter()
        """How often the last steps ended at each leg: it comes after the others, so that it keeps none of them back."""

    def step(self) -> None:
        """Archive what has ended, then send what has been written since. Ends at the first leg that this fails for."""
        ended = self.table.unarchived()
        running = [leg for leg in self.table.active() if leg.state is LegState.RUNNING and leg.log_policy != "withheld"]
        turn = self._read % max(1, len(running))
        read = (running[turn:] + running[:turn])[:MAX_READ]
        self._failed = Counter({leg.key: self._failed[leg.key] for leg in ended + read if self._failed[leg.key]})
        for leg in sorted(ended + read, key=lambda leg: self._failed[leg.key]):
            try:
                self._keep(leg)
            except ConsortiumError:
                self._failed[leg.key] += 1
                raise
            del self._failed[leg.key]
        for leg in self.table.archived(key for key, job in self.cluster.jobs().items() if job.status.ended):
            self.cluster.delete(leg.key)

    def _keep(self, leg: SiteLeg) -> None:
        if leg.state.final:
            self._archive(leg)
        else:
            self._read += 1
            self._forward(leg, self.cluster.log(leg.key) or "")  # no text may be half a sign, being written

    def _archive(self, leg: SiteLeg) -> None:
        text, before = self.cluster.log(leg.key), 0
        if text is None:
            text, before = NO_TEXT.format(leg.key), leg.log_sent
        if text:
            self.store.put(archive_key(leg), text.encode())
            self._forward(leg, text, before)
        self.cluster.delete(leg.key)
        self.table.change(leg, archived=1)

    def _forward(self, leg: SiteLeg, text: str, before: int = 0) -> None:
        """Send what follows on what was sent; `text` comes after so many characters `before` it."""
        sent = leg.log_sent
        while leg.log_policy != "withheld" and sent < (end := min(before + len(text), MAX_LOG_CHARS)):
            piece = text[sent - before : min(sent + PIECE_CHARS, end) - before]
            try:
                self.server.send_log(leg.offer.job, leg.offer.leg, sent, piece)
            except PolicyDeniedError as fault:
                log.info("%s: its log stays here: %s", leg.key, fault.what)
                self.table.change(leg, log_policy="withheld")
                return
            sent += len(piece)
            self.table.change(leg, log_sent=sent, log_policy="open")
