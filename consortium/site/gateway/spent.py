"""Envelopes that nobody will fetch any more: those of jobs that have ended. Left alone they stay readable for ever.

While a job goes on they all stay, whatever their round: a site that was away goes on through the rounds it missed, with
what was sent to them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from consortium.domain.job import JobState
from consortium.errors import ConsortiumError, NotFoundError, UnreachableError, VerificationError
from consortium.site.gateway.core import Gateway

EVERY_S = 600.0
log = logging.getLogger(__name__)


class Spent:
    """Clears one site's egress store of what it released to jobs that have ended."""

    def __init__(self, gateway: Gateway, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.gateway = gateway
        self._now_s = now_s
        self._due_s = now_s()

    def clear_if_due(self) -> None:
        """Delete, every `EVERY_S`, the envelopes of jobs that have no active leg here and that the server calls ended.

        What cannot be done now is logged, and done the next time. What was released is forgotten last: it would be
        stored and recorded anew if a restored server took the job up again.
        """
        if self._now_s() < self._due_s:
            return
        self._due_s = self._now_s() + EVERY_S
        query = "SELECT DISTINCT json_extract(artifact, '$.job') AS job FROM releases"
        released = {str(row["job"]) for row in self.gateway.db.read().execute(query).fetchall()}
        for job in sorted(released - {leg.offer.job for leg in self.gateway.table.active()}):
            try:
                if self._ended(job):
                    self._delete(job)
            except ConsortiumError as fault:
                log.warning("the envelopes of %s stay for now: %s", job, fault.what)
                if isinstance(fault, UnreachableError):  # so it would be for the others
                    return

    def _ended(self, job: str) -> bool:
        try:
            shown = self.gateway.call("GET", f"/v1/jobs/{job}", job=job)
        except NotFoundError:
            return False  # as a server says that was restored from before the job: it tells nothing of the others' legs
        try:
            return JobState(shown["state"]).final
        except (TypeError, KeyError, ValueError) as fault:
            raise VerificationError("the server's answer names no state of the job", where=job) from fault

    def _delete(self, job: str) -> None:
        keys = list(self.gateway.egress.list(f"jobs/{job}/"))  # also what was put before a crash and never recorded
        for key in keys:
            self.gateway.egress.delete(key)
        with self.gateway.db.write() as write:
            write.execute("DELETE FROM releases WHERE json_extract(artifact, '$.job') = ?", (job,))
        log.info("%s has ended: %d envelopes deleted", job, len(keys))
