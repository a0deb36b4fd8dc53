"""The site's outbox: signed records, numbered without gaps and chained, durable before anything relies on them.

Records are never deleted: a server restored from an old backup asks for the ones it lost.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Crossing
from consortium.domain.records import Record, RecordType, UsageRow
from consortium.keys.signing import SigningKey
from consortium.ledger.origins import ChainHead, make_record, record_digest
from consortium.site.db import SiteDb

BATCH_BYTES = 4 << 20
"""Of the records in one call, unless a single one is larger: the gateway takes no call of more than 8 MiB."""


class Outbox:
    """Adds records inside the caller's transaction, so that a fact and its record are committed together."""

    def __init__(self, db: SiteDb, site: str, key: SigningKey) -> None:
        self.db = db
        self.site = site
        self._key = key

    def add(self, write: sqlite3.Connection, kind: RecordType, body: Mapping[str, Any], at_ms: int) -> Record:
        """Append one record to the chain and return it, signed."""
        last = write.execute("SELECT seq, digest FROM outbox ORDER BY seq DESC LIMIT 1").fetchone()
        head = ChainHead() if last is None else ChainHead(next_seq=last["seq"] + 1, digest=last["digest"])
        record = make_record(self._key, origin=self.site, head=head, type=kind, at_ms=at_ms, body=body)
        row = (record.seq, record_digest(record), json.dumps(to_json(record)))
        write.execute("INSERT INTO outbox VALUES (?, ?, ?)", row)
        return record

    def add_usage(self, write: sqlite3.Connection, rows: Sequence[UsageRow], at_ms: int) -> None:
        """Record metered intervals, one record per period, each with the period's running count and sum."""
        for period, group in _by_period((period_of(row.start_ms), row) for row in rows):
            gpu_ms = _count(write, "usage", period, "gpu_ms", sum(row.gpu_ms for row in group))
            count = _count(write, "usage", period, "rows", len(group))
            body = {"period": period, "rows": group, "cumulative": {"rows": count, "gpu_ms": gpu_ms}}
            self.add(write, RecordType.USAGE, body, at_ms)

    def add_crossings(self, write: sqlite3.Connection, crossings: Sequence[Crossing], at_ms: int) -> None:
        """Record crossings, one record per period, each with the period's running count and bytes."""
        for period, group in _by_period((period_of(crossing.at_ms), crossing) for crossing in crossings):
            size = _count(write, "crossing", period, "size_bytes", sum(item.size_bytes for item in group))
            count = _count(write, "crossing", period, "count", sum(item.count for item in group))
            body = {"period": period, "crossings": group, "cumulative": {"count": count, "size_bytes": size}}
            self.add(write, RecordType.CROSSING, body, at_ms)

    @property
    def next_seq(self) -> int:
        """The number the next record will have."""
        row = self.db.read().execute("SELECT COALESCE(MAX(seq), -1) + 1 AS seq FROM outbox").fetchone()
        return int(row["seq"])

    def after(self, seq: int, limit: int = 200) -> tuple[Record, ...]:
        """Return the records that follow number `seq`, oldest first: as many as one call may carry."""
        rows = self.db.read().execute("SELECT record FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit))
        found: list[Record] = []
        carried = 0
        for row in rows:
            carried += len(row["record"])
            if found and carried > BATCH_BYTES:
                break
            found.append(from_json(Record, json.loads(row["record"]), where="outbox"))
        return tuple(found)


def period_of(at_ms: int) -> str:
    """Return the UTC month (`YYYY-MM`) of a moment."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m")


def _by_period(items: Iterable[tuple[str, Any]]) -> list[tuple[str, list[Any]]]:
    groups: dict[str, list[Any]] = {}
    for period, item in items:
        groups.setdefault(period, []).append(item)
    return sorted(groups.items())


def _count(write: sqlite3.Connection, family: str, period: str, name: str, more: int) -> int:
    row = write.execute(
        "INSERT INTO totals VALUES (?, ?, ?, ?) ON CONFLICT (family, period, name) "
        "DO UPDATE SET value = value + excluded.value RETURNING value",
        (family, period, name, more),
    ).fetchone()
    return int(row["value"])
