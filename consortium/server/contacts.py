"""When sites and legs were last heard of, and whose records are refused.

Kept in memory: after a restart everybody counts as heard of just now. That errs on the safe side,
because a leg is only ever given to somebody else after its lease has run out.
"""

from __future__ import annotations

import threading

from consortium.domain.job import Epoch
from consortium.domain.protocol import LegReport
from consortium.keys.canonical import digest_json


class Contacts:
    """Last contacts, by site and by leg epoch; and which reports were taken in already. Safe to share by threads."""

    def __init__(self, start_ms: int) -> None:
        self._start_ms = start_ms
        self._mutex = threading.Lock()
        self._sites: dict[str, int] = {}
        self._fit: dict[str, int] = {}
        self._legs: dict[tuple[str, Epoch], int] = {}
        self._reports: dict[tuple[str, Epoch], str] = {}
        self._stops: set[tuple[str, Epoch]] = set()
        self._refused: dict[str, str] = {}

    def heard_site(self, site: str, now_ms: int, *, healthy: bool = True) -> None:
        """A site called, and said whether it can run legs."""
        with self._mutex:
            self._sites[site] = now_ms
            if healthy:
                self._fit[site] = now_ms

    def site(self, site: str) -> int | None:
        """When the site last called since this server started; None if it has not."""
        with self._mutex:
            return self._sites.get(site)

    def silent_since(self, site: str) -> int:
        """The latest moment the site can have been heard of: its last call, or this server's start."""
        with self._mutex:
            return self._sites.get(site, self._start_ms)

    def unfit_since(self, site: str) -> int:
        """The latest moment the site can have been fit to run legs: its last healthy call, or this server's start."""
        with self._mutex:
            return self._fit.get(site, self._start_ms)

    def refused(self, site: str, why: str) -> bool:
        """The site's next record is refused: until that ends nothing after it comes in. Whether `why` is new.

        An empty `why` says that its records are taken.
        """
        with self._mutex:
            known = self._refused.get(site, "")
            self._refused[site] = why
            return why != known

    def records_refused(self, site: str) -> str:
        """Why the site's records were refused when it last sent some; empty where they were taken."""
        with self._mutex:
            return self._refused.get(site, "")

    def renew(self, leg: str, epoch: Epoch, now_ms: int) -> None:
        """A poll renewed the lease of a leg's epoch."""
        with self._mutex:
            self._legs[leg, epoch] = now_ms

    def leg(self, leg: str, epoch: Epoch, not_before_ms: int = 0) -> int:
        """When the lease was last renewed; at the earliest the server's start and `not_before_ms`."""
        with self._mutex:
            return max(self._legs.get((leg, epoch), self._start_ms), not_before_ms)

    def is_news(self, report: LegReport) -> bool:
        """Whether the report says something that was not taken in yet."""
        digest = digest_json(report)  # outside the mutex: a result may be large, and everybody waits for the mutex
        with self._mutex:
            return self._reports.get((report.leg, report.epoch)) != digest

    def taken(self, report: LegReport) -> None:
        """The report is durably in the inbox."""
        digest = digest_json(report)
        with self._mutex:
            self._reports[report.leg, report.epoch] = digest

    def stopped(self, leg: str, epoch: Epoch) -> None:
        """A stop goes out for an epoch."""
        with self._mutex:
            self._stops.add((leg, epoch))

    def stop_sent(self, leg: str, epoch: Epoch) -> bool:
        """Whether a stop went out for an epoch since this server started."""
        with self._mutex:
            return (leg, epoch) in self._stops

    def forget(self, leg: str, epoch: Epoch) -> None:
        """The epoch is over and its site knows."""
        with self._mutex:
            self._legs.pop((leg, epoch), None)
            self._reports.pop((leg, epoch), None)
            self._stops.discard((leg, epoch))
