"""Metering: half-open intervals from mark to mark. No I/O and no clock here; the caller commits rows and mark together.

A mark only moves forward and every interval starts at the mark, so no GPU-millisecond is counted twice, whatever
crashed between two commits.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from consortium.domain.protocol import LegOffer
from consortium.domain.records import UsageRow


def usage_rows(offer: LegOffer, flavor: str, mark_ms: int, until_ms: int) -> tuple[UsageRow, ...]:
    """Return the rows of [mark_ms, until_ms), cut at UTC month ends; none where nothing has passed."""
    return tuple(
        UsageRow(
            leg=offer.leg,
            epoch=str(offer.epoch),
            job=offer.job,
            account=offer.spec.spec.account,
            site=offer.site,
            flavor=flavor,
            gpus=sum(offer.nodes.values()),
            start_ms=start,
            end_ms=end,
        )
        for start, end in cut_at_months(mark_ms, until_ms)
    )


def cut_at_months(start_ms: int, end_ms: int) -> list[tuple[int, int]]:
    """Cut [start_ms, end_ms) where a UTC month ends."""
    pieces = []
    while start_ms < end_ms:
        stop = min(end_ms, _month_end(start_ms))
        pieces.append((start_ms, stop))
        start_ms = stop
    return pieces


def end_of_usage(mark_ms: int, ended_ms: int | None, now_ms: int) -> int:
    """Return where the last interval ends: what Ray says, but never before the mark nor after now."""
    return max(mark_ms, min(now_ms, now_ms if ended_ms is None else ended_ms))


def _month_end(at_ms: int) -> int:
    moment = datetime.fromtimestamp(at_ms / 1000, UTC)
    year, month = (moment.year + 1, 1) if moment.month == 12 else (moment.year, moment.month + 1)
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000)


class SiteClock:
    """UTC milliseconds that never go back: wall time once at the start, the monotonic clock from then on."""

    def __init__(self, wall_ms: int, monotonic_s: Callable[[], float]) -> None:
        self._wall_ms = wall_ms
        self._monotonic_s = monotonic_s
        self._start_s = monotonic_s()

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        return self._wall_ms + round((self._monotonic_s() - self._start_s) * 1000)
