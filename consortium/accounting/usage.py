"""GPU time: which metered rows are billed, and their sums. A GPU-millisecond of a leg is never counted twice."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from consortium.accounting.periods import bounds, period_of
from consortium.domain.ids import partner_of
from consortium.domain.records import UsageRow
from consortium.domain.units import reference_gpu_hours


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """A usage row and the record (`fr-1:12`) it stands in."""

    record: str
    row: UsageRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """A row of the ledger that is not billed: its site metered that stretch of the leg before, or it leaves its month.

    No site meters beyond the end of a month, so a row that does is none of that month's, and of no other's.
    """

    record: str
    against: str
    """The record whose row was billed; empty where the row leaves its month."""
    leg: str
    gpu_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """Rows that count, and rows that do not, each naming why."""

    billed: tuple[Metered, ...]
    repeated: tuple[Repeated, ...]


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class UsageKey:
    """What GPU time is summed by."""

    site: str
    flavor: str
    account: str


def bill(metered: Iterable[Metered]) -> Billing:
    """Return which rows are billed: in the order given, each within its month that overlaps no earlier billed row.

    Rows overlap where one site metered one leg twice. What another site says of the leg takes nothing from it.
    """
    intervals: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
    billed: list[Metered] = []
    repeated: list[Repeated] = []
    for item in metered:
        row, taken = item.row, intervals.setdefault((item.row.site, item.row.leg), [])
        if row.end_ms == row.start_ms:
            continue
        if row.end_ms > bounds(period_of(row.start_ms))[1]:
            repeated.append(Repeated(record=item.record, against="", leg=row.leg, gpu_ms=row.gpu_ms))
            continue
        at = bisect_left(taken, (row.start_ms, 0, ""))
        clash = next((near for near in taken[max(0, at - 1) : at + 1] if _overlap(near, row)), None)
        if clash is None:
            taken.insert(at, (row.start_ms, row.end_ms, item.record))
            billed.append(item)
        else:
            repeated.append(Repeated(record=item.record, against=clash[2], leg=row.leg, gpu_ms=row.gpu_ms))
    return Billing(billed=tuple(billed), repeated=tuple(repeated))


def delivered(rows: Iterable[UsageRow], partner: str) -> list[UsageRow]:
    """Return the rows of GPUs that stand at `partner`'s sites, whoever used them."""
    return [row for row in rows if partner_of(row.site) == partner]


def consumed(rows: Iterable[UsageRow], partner: str) -> list[UsageRow]:
    """Return the rows that `partner`'s accounts pay for, wherever they ran."""
    return [row for row in rows if partner_of(row.account) == partner]


def reference_hours(gpu_ms_by_site: Mapping[str, int], factors: Mapping[str, str]) -> str | None:
    """Render GPU-milliseconds per site as reference GPU-hours; None where a site's factor is unknown."""
    by_factor: dict[str, int] = {}
    for site, gpu_ms in gpu_ms_by_site.items():
        if site not in factors:
            return None
        by_factor[factors[site]] = by_factor.get(factors[site], 0) + gpu_ms
    return reference_gpu_hours(by_factor)


def _overlap(taken: tuple[int, int, str], row: UsageRow) -> bool:
    return taken[0] < row.end_ms and row.start_ms < taken[1]
