"""What a site's record must be like for the server to take it: the log keeps it for good, and reports are made of it.

A record that is refused holds up its site's chain until an operator looks. So only that is refused which no agent of
the consortium writes; what the server merely has another view of is kept (`consortium.state.usage`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, select

from consortium.accounting.periods import bounds, has_period, period_of
from consortium.domain.codec import from_json
from consortium.domain.data import Crossing, CrossingSide
from consortium.domain.job import MAX_GPUS
from consortium.domain.records import SITE_MAY_WRITE, Record, RecordType, ReExecution, UsageRow
from consortium.domain.units import MAX_SAFE_INTEGER
from consortium.errors import UsageError
from consortium.keys.canonical import canonical
from consortium.ledger.origins import record_id
from consortium.state import tables as t

MAX_DEPTH = 32
"""How deep a body may be nested: those of sites come to 4, and JSON writers give up at 255."""
MAX_BYTES = 64 << 10
"""Canonical bytes of a record: usage of 64 legs (`site/agent/runner.py: ROWS`) takes a third, most others less."""
MAX_BYTES_OF = {RecordType.CROSSING: 4 << 20, RecordType.MANIFEST: 1 << 20}
"""A flush of counted calls has up to six crossings a leg, of 250 bytes: of 2,700 legs at once. A manifest names the
outputs of a leg, which gateways bound (`site/gateway/results.py`)."""
MAX_TEXT = 255
"""Characters of a name in usage and crossings: what a column of the database holds."""


def check_nesting(record: Record) -> None:
    """Raise UsageError where a record's body is nested deeper than JSON writers will follow."""
    level: list[Any] = [record.body]
    for _ in range(MAX_DEPTH):
        level = [child for item in level for child in _children(item)]
        if not level:
            return
    raise UsageError(f"its body is nested deeper than {MAX_DEPTH} levels", where=f"record {record_id(record)}")


def check_form(connection: Connection, record: Record) -> None:
    """Raise UsageError for what a site may not write, or what no report could be made of."""
    where = f"record {record_id(record)}"
    if record.type not in SITE_MAY_WRITE:
        raise UsageError(f"{record.origin} may not write a record of type {record.type.value}", where=where)
    if not has_period(record.at_ms):
        raise UsageError(f"at_ms is {record.at_ms}, which is no time of the years 1970 to 9998", where=where)
    size, most = len(canonical(record)), MAX_BYTES_OF.get(record.type, MAX_BYTES)
    if size > most:
        raise UsageError(f"it has {size} bytes; one of type {record.type.value} has up to {most}", where=where)
    if record.type is RecordType.USAGE:
        _check_usage(connection, record, where)
    elif record.type is RecordType.CROSSING:
        _check_crossings(connection, record, where)
    elif record.type is RecordType.MANIFEST:
        _check_manifest(connection, record, where)
    elif record.type is RecordType.RE_EXECUTION:
        redone = from_json(ReExecution, record.body, where=where)
        if redone.site != record.origin:
            raise UsageError(f"{record.origin} recorded a re-execution that is another's to record", where=where)


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, dict):
        return item.values()
    return item if isinstance(item, list | tuple) else ()


def _check_manifest(connection: Connection, record: Record, where: str) -> None:
    """Refuse a manifest of another's leg; not one of a leg that nobody knows, which a restored server may have lost."""
    legs = select(t.legs.c.site, t.legs.c.job).where(t.legs.c.id == str(record.body.get("leg")))
    known = connection.execute(legs).first()
    if known is not None and tuple(known) != (record.origin, record.body.get("job")):
        raise UsageError(f"{record.origin} wrote the manifest of a leg that is not its own", where=where)


def _check_usage(connection: Connection, record: Record, where: str) -> None:
    rows: list[UsageRow] = _items(UsageRow, record, "rows", where)
    if any(row.site != record.origin for row in rows):
        raise UsageError(f"{record.origin} metered usage of another site", where=where)
    own = {"rows": len(rows), "gpu_ms": sum(row.gpu_ms for row in rows)}
    _check_sums(connection, record, [row.start_ms for row in rows], own)
    _, end_ms = bounds(record.body["period"])
    for row in rows:
        if row.gpus > MAX_GPUS:
            raise UsageError(f"usage of {row.gpus} GPUs: a leg has up to {MAX_GPUS}", where=where)
        if row.end_ms <= row.start_ms or row.end_ms > end_ms:
            raise UsageError(
                f"usage of {row.leg} from {row.start_ms} to {row.end_ms} is empty, or leaves its period",
                where=where,
                fix="cut usage where a month ends (UTC), and leave out what has no length",
            )


def _check_crossings(connection: Connection, record: Record, where: str) -> None:
    items: list[Crossing] = _items(Crossing, record, "crossings", where)
    for item in items:
        if record.origin != (item.sender if item.side is CrossingSide.RELEASE else item.recipient):
            raise UsageError(f"{record.origin} recorded a crossing that is another's to record", where=where)
        if item.size_bytes < 0 or item.count < 1:
            raise UsageError(f"a crossing of {item.size_bytes} bytes, {item.count} times", where=where)
    own = {"count": sum(item.count for item in items), "size_bytes": sum(item.size_bytes for item in items)}
    _check_sums(connection, record, [item.at_ms for item in items], own)


def _items(cls: type[Any], record: Record, name: str, where: str) -> list[Any]:
    """Return what a body lists under `name`, where neither it nor the body says anything else."""
    found: list[Any] = from_json(list[cls], record.body.get(name), where=where)  # type: ignore[valid-type]  # cls is a value here
    names = [field.name for field in fields(cls)]
    other = {*record.body} - {"period", name, "cumulative"}
    other |= {key for item in record.body[name] for key in item} - {*names}
    if other:
        raise UsageError(f"a {record.type.value} record has no {', '.join(sorted(other)[:5])}"[:MAX_TEXT], where=where)
    for value in (getattr(item, key) for item in found for key in names):
        if isinstance(value, int) and abs(value) > MAX_SAFE_INTEGER:
            raise UsageError(f"{value} is above 2^53 - 1", where=where)
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise UsageError(f"{value[:40]!r}… has more than {MAX_TEXT} characters", where=where)
    return found


def _check_sums(connection: Connection, record: Record, moments: list[int], own: dict[str, int]) -> None:
    """Raise UsageError unless all lies in the record's period and its running sums go on from the last ones."""
    where, period = f"record {record_id(record)}", record.body.get("period")
    if not isinstance(period, str):
        raise UsageError("it names no period", where=where, fix="write a month as YYYY-MM, such as 2026-03")
    try:
        signed = {str(name): int(value) for name, value in record.body["cumulative"].items()}
    except (KeyError, AttributeError, TypeError, ValueError, OverflowError) as fault:
        raise UsageError(f"no running sums of a period: {fault!r}", where=where) from fault
    periods = {period_of(moment) if has_period(moment) else str(moment) for moment in moments}
    if periods != {period}:
        raise UsageError(f"it is of {', '.join(sorted(periods)) or 'no period'}, and says {period!r}", where=where)
    of_period = (t.records.c.origin == record.origin) & (t.records.c.type == record.type.value)
    of_period &= t.records.c.payload["body"]["period"].as_string() == period
    query = select(t.records.c.payload).where(of_period).order_by(t.records.c.seq.desc()).limit(1)
    last = connection.execute(query).scalar()
    before = {} if last is None else last["body"]["cumulative"]
    expected = {name: int(before.get(name, 0)) + value for name, value in own.items()}
    if signed != expected:
        raise UsageError(f"its running sums are {signed}, those before it and its own make {expected}", where=where)
