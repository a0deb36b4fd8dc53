"""What the records in a report's leaves say of a period, each checked: its origin may say it, and none is missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from consortium.accounting.leases import lease_row
from consortium.accounting.periods import bounds, period_of
from consortium.accounting.usage import Metered
from consortium.domain.codec import from_json
from consortium.domain.data import Crossing, CrossingSide, Dataset
from consortium.domain.ids import SERVER, partner_of
from consortium.domain.records import Record, RecordType, UsageRow
from consortium.domain.training import Round
from consortium.errors import UsageError, VerificationError
from consortium.ledger.origins import record_id
from consortium.reports.model import (
    Completeness,
)
from consortium.reports.training import (
    RedoneBy,
    Run,
    read_redone,
    read_runs,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Records, parsed: what a report on one partner and period rests on."""

    usage: tuple[Metered, ...]
    receipts: tuple[UsageRow, ...]
    crossings: tuple[Crossing, ...]
    rounds: tuple[Round, ...]
    """Of the period."""
    signed: frozenset[tuple[str, int]]
    """Job and number of those in which sites signed the digests of the outer state."""
    runs: dict[str, Run]
    """The trainings with all their rounds so far, and those they go back to."""
    redone: RedoneBy
    datasets: tuple[Dataset, ...]
    completeness: tuple[Completeness, ...]


def read_facts(records: Iterable[Record], partner: str, period: str) -> Facts:
    """Parse records and check what each origin may say and that its running sums are gapless.

    `records` stand in the log's order. Raises VerificationError naming the record that does not hold.
    """
    logged = list(records)
    ordered = sorted(logged, key=lambda record: (record.origin, record.seq))
    of_type: dict[RecordType, list[Record]] = {kind: [] for kind in RecordType}
    for record in ordered:
        of_type[record.type].append(record)
    return Facts(
        usage=tuple(item for record in of_type[RecordType.USAGE] for item in usage_of(record, period)),
        receipts=tuple(row for record in of_type[RecordType.LEASE] for row in receipts_of(record, period)),
        crossings=tuple(item for record in of_type[RecordType.CROSSING] for item in crossings_of(record, period)),
        rounds=tuple(item for record in of_type[RecordType.ROUND] for item in rounds_of(record, period)),
        signed=frozenset(
            (found.job, found.number)
            for record in of_type[RecordType.ROUND]
            if signed_digests(record) and (found := round_of(record))
        ),
        runs=read_runs(ordered, [round_of(record) for record in of_type[RecordType.ROUND]]),
        redone=read_redone(logged),
        datasets=tuple(item for record in of_type[RecordType.DATASET] for item in datasets_of(record, period)),
        completeness=_completeness(ordered, partner),
    )


def usage_of(record: Record, period: str) -> list[Metered]:
    """Return the rows of a `usage` record of `period`; a site may only meter itself."""
    where = f"record {record_id(record)}"
    if record.body.get("period") != period:
        return []
    found = [_parse(UsageRow, item, where) for item in _list(record, "rows")]
    for row in found:
        if row.site != record.origin:
            raise VerificationError(f"{record.origin} metered GPUs of {row.site}", where=where)
        if _period(row.start_ms, where) != period:
            raise VerificationError(f"usage of {row.leg} does not begin in {period}", where=where)
    return [Metered(record=record_id(record), row=row) for row in found]


def receipts_of(record: Record, period: str) -> list[UsageRow]:
    """Return the interval of a `lease` record of the server, cut to `period`."""
    where = f"record {record_id(record)}"
    if record.origin != SERVER:
        raise VerificationError(f"{record.origin} wrote a lease record; only the server may", where=where)
    try:
        row = lease_row(record.body)
    except (KeyError, TypeError, ValueError) as fault:
        raise VerificationError(f"not a lease record: {fault}", where=where) from fault
    start, end = bounds(period)
    if row is None or row.end_ms <= start or row.start_ms >= end:
        return []
    values = {name: getattr(row, name) for name in ("leg", "epoch", "job", "account", "site", "flavor", "gpus")}
    return [UsageRow(**values, start_ms=max(start, row.start_ms), end_ms=min(end, row.end_ms))]


def crossings_of(record: Record, period: str) -> list[Crossing]:
    """Return the crossings of a record of `period`; a site may only speak for its own end of a border."""
    where = f"record {record_id(record)}"
    if record.body.get("period") != period:
        return []
    found = [_parse(Crossing, item, where) for item in _list(record, "crossings")]
    for item in found:
        own = item.sender if item.side is CrossingSide.RELEASE else item.recipient
        if own != record.origin:
            raise VerificationError(f"{record.origin} recorded a {item.side} that is {own}'s to record", where=where)
        if item.size_bytes < 0 or item.count < 1:
            raise VerificationError(f"a crossing of {item.size_bytes} bytes, {item.count} times", where=where)
        if _period(item.at_ms, where) != period:
            raise VerificationError(
                f"a crossing from {item.sender} to {item.recipient} is not of {period}", where=where
            )
    return found


def rounds_of(record: Record, period: str) -> list[Round]:
    """Return the round of a `round` record of the server, made in `period`."""
    found = round_of(record)
    return [found] if _period(record.at_ms, f"record {record_id(record)}") == period else []


def round_of(record: Record) -> Round:
    """Return the round of a `round` record of the server."""
    where = f"record {record_id(record)}"
    if record.origin != SERVER:
        raise VerificationError(f"{record.origin} wrote a round record; only the server may", where=where)
    body = record.body.get("round")
    found: Round = _parse(Round, body if isinstance(body, dict) else record.body, where)
    return found


def signed_digests(record: Record) -> dict[str, dict[str, str]]:
    """Return digest and signature of the outer state, by site, in a `round` record; empty in one of an older server."""
    found: dict[str, dict[str, str]] = _parse(
        dict[str, dict[str, str]], record.body.get("signed") or {}, f"record {record_id(record)}"
    )
    return found


def datasets_of(record: Record, period: str) -> list[Dataset]:
    """Return the dataset of a `dataset` record made in `period`."""
    if _period(record.at_ms, f"record {record_id(record)}") != period:
        return []
    body = record.body.get("dataset")
    return [_parse(Dataset, body if isinstance(body, dict) else record.body, f"record {record_id(record)}")]


def _completeness(ordered: Sequence[Record], partner: str) -> tuple[Completeness, ...]:
    """Check running sums: of usage for every origin, of crossings for the partner's own (others' are excerpts)."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in ordered:
        own = partner_of(record.origin) == partner
        if record.type is RecordType.USAGE or (record.type is RecordType.CROSSING and own):
            groups.setdefault((record.origin, record.type.value), []).append(record)
    return tuple(_family(origin, family, groups[origin, family]) for origin, family in sorted(groups))


def _family(origin: str, family: str, records: list[Record]) -> Completeness:
    sums: dict[str, int] = {}
    for record in records:
        for name, value in _own_sums(record).items():
            sums[name] = sums.get(name, 0) + value
        try:
            signed = {str(name): int(value) for name, value in record.body["cumulative"].items()}
        except (KeyError, AttributeError, TypeError, ValueError) as fault:
            raise VerificationError(f"record {record_id(record)} carries no running sums of its period") from fault
        if signed != sums:
            raise VerificationError(
                f"{origin}'s {family} records are not all here: {record_id(record)} signs {_say(signed)} "
                f"for the period so far, those in the report make {_say(sums)}",
                where=f"record {record_id(record)}",
                fix=f"ask {origin} for its records before number {record.seq}",
            )
    return Completeness(
        origin=origin,
        family=family,
        records=len(records),
        last_seq=records[-1].seq,
        cumulative=dict(sorted(sums.items())),
    )


def _own_sums(record: Record) -> dict[str, int]:
    where = f"record {record_id(record)}"
    if record.type is RecordType.USAGE:
        rows = [_parse(UsageRow, item, where) for item in _list(record, "rows")]
        return {"rows": len(rows), "gpu_ms": sum(row.gpu_ms for row in rows)}
    crossings = [_parse(Crossing, item, where) for item in _list(record, "crossings")]
    return {
        "count": sum(item.count for item in crossings),
        "size_bytes": sum(item.size_bytes for item in crossings),
    }


def _period(unix_ms: int, where: str) -> str:
    try:
        return period_of(unix_ms)
    except UsageError as fault:
        raise VerificationError(fault.what, where=where) from fault


def _parse(cls: type[Any], data: Any, where: str) -> Any:
    try:
        return from_json(cls, data, where=where)
    except UsageError as fault:
        raise VerificationError(fault.what, where=where) from fault


def _list(record: Record, name: str) -> list[Any]:
    items = record.body.get(name)
    if not isinstance(items, list):
        raise VerificationError(f"record {record_id(record)} ({record.type}) has no list of {name}")
    return items


def _say(sums: Mapping[str, int]) -> str:
    return ", ".join(f"{value} {name}" for name, value in sorted(sums.items()))
