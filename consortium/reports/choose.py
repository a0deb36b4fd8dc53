"""Which leaves a report rests on, and which it has no room for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from consortium.accounting.periods import bounds
from consortium.domain.codec import from_json
from consortium.domain.ids import SERVER, partner_of
from consortium.domain.job import JobKind
from consortium.domain.records import SITE_MAY_WRITE, Record, RecordType
from consortium.ledger.log import Entry
from consortium.ledger.origins import record_id
from consortium.reports.facts import crossings_of, datasets_of, receipts_of, round_of, rounds_of, usage_of
from consortium.reports.model import LeftOut
from consortium.reports.rounds import ruling_of
from consortium.reports.sites import newest_files
from consortium.reports.training import ancestry, specs_of

ROOM_BYTES = 512 << 20
"""What usage and crossings of other partners' sites may take in a report: half of what a verifier reads."""
_LEAF_BYTES = 4096
"""What a leaf takes besides its payload: its proof, of up to 40 hashes."""
_PAGE = 64
"""Leaves read at a time: a record has up to 4 MiB."""
_SUMMED = (RecordType.USAGE, RecordType.CROSSING)


class LogAccess(Protocol):
    """What a report needs of the ledger; `consortium.ledger.log.Ledger` has it."""

    def checkpoint(self) -> str:
        """Return the signed checkpoint as it stands."""
        ...

    def entries(self, start: int = 0, count: int | None = None) -> list[Entry]:
        """Return leaves in order."""
        ...

    def inclusion(self, index: int, size: int | None = None) -> list[str]:
        """Return the proof of one leaf in the tree of `size` leaves."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a report rests on, in the log's order; `left_out` is what it would rest on, had it the room."""

    records: tuple[tuple[Entry, Record], ...]
    erased: tuple[Entry, ...]
    """All that were, by origins that are among the records."""
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Summed:
    """A record of usage or crossings in the period, of which only this is kept until it is chosen."""

    index: int
    origin: str
    type: RecordType
    size_bytes: int
    """At most so much it takes in a report."""
    names_partner: bool


def choose(log: LogAccess, size: int, partner: str, period: str, room_bytes: int = ROOM_BYTES) -> Chosen:
    """Return what a report on `partner` rests on, of the first `size` leaves.

    Usage and crossings of its own sites, whole; usage, whole, of every site its accounts ran at; the other side's
    records of its crossings; the server's leases and datasets that concern it; of every training it took part in, and
    of those behind them, all rounds so far, the job, its inputs' datasets, what was measured and ruled of it, what was
    done again of its own contributions, and the rosters of those who ruled or watched; the newest signed file of every
    site.

    Other partners' sites may write as much as they like. Their usage and crossings share `room_bytes`: where those of
    one site are too many they are left out whole, the largest first, so that nobody loses by what another wrote.
    """
    others, summed, erased = _read(log, size, partner, period)
    hosts = {item.origin for item in summed if item.type is RecordType.USAGE and item.names_partner}
    summed = [
        item
        for item in summed
        if partner_of(item.origin) == partner
        or (item.origin in hosts if item.type is RecordType.USAGE else item.names_partner)
    ]
    left_out = _without_room([item for item in summed if partner_of(item.origin) != partner], room_bytes)
    gone = {(item.origin, item.family) for item in left_out}
    wanted = _training((record for _, record in others), partner, period)
    wanted |= {record_id(record) for record in newest_files(record for _, record in others).values()}
    found = [
        (entry, record) for entry, record in others if record_id(record) in wanted or _concerns(record, partner, period)
    ]
    for item in summed:
        if (item.origin, item.type.value) not in gone:
            found += [(entry, _record(entry)) for entry in log.entries(item.index, 1)]
    found.sort(key=lambda pair: pair[0].index)
    origins = {record.origin for _, record in found}
    return Chosen(
        records=tuple(found),
        erased=tuple(entry for entry in erased if entry.record_id.partition(":")[0] in origins),
        left_out=left_out,
    )


def _read(
    log: LogAccess, size: int, partner: str, period: str
) -> tuple[list[tuple[Entry, Record]], list[_Summed], list[Entry]]:
    """Go through the log. What sites write and no report has is not kept: one could fill the server's memory."""
    others: list[tuple[Entry, Record]] = []
    summed: list[_Summed] = []
    erased: list[Entry] = []
    for entry in _pages(log, size):
        if entry.payload is None:
            erased.append(entry)
            continue
        record = _record(entry)
        if record.type in _SUMMED:
            if record.body.get("period") == period:
                summed.append(_sized(entry, record, partner, period))
        elif record.origin == SERVER or record.type not in SITE_MAY_WRITE or _own_redone(record, partner):
            others.append((entry, record))
    return others, summed, erased


def _own_redone(record: Record, partner: str) -> bool:
    return record.type is RecordType.RE_EXECUTION and partner_of(record.origin) == partner


def _pages(log: LogAccess, size: int) -> Iterator[Entry]:
    for start in range(0, size, _PAGE):
        yield from log.entries(start, min(_PAGE, size - start))


def _record(entry: Entry) -> Record:
    return from_json(Record, entry.payload, where=entry.record_id)


def _sized(entry: Entry, record: Record, partner: str, period: str) -> _Summed:
    if record.type is RecordType.USAGE:
        named = any(partner in (partner_of(m.row.account), partner_of(m.row.site)) for m in usage_of(record, period))
    else:
        items = crossings_of(record, period)
        named = any(partner in (partner_of(item.sender), partner_of(item.recipient)) for item in items)
    return _Summed(
        index=entry.index,
        origin=record.origin,
        type=record.type,
        size_bytes=2 * len(json.dumps(entry.payload)) + _LEAF_BYTES,  # line breaks and indents less than double it
        names_partner=named,
    )


def _without_room(items: Iterable[_Summed], room_bytes: int) -> tuple[LeftOut, ...]:
    """Return the families of records that do not fit beside all smaller ones."""
    sizes: dict[tuple[str, str], list[int]] = {}
    for item in items:
        sizes.setdefault((item.origin, item.type.value), []).append(item.size_bytes)
    left_out = []
    for (origin, family), found in sorted(sizes.items(), key=lambda pair: (sum(pair[1]), pair[0])):
        room_bytes -= sum(found)
        if room_bytes < 0:
            left_out.append(LeftOut(origin=origin, family=family, records=len(found)))
    return tuple(sorted(left_out, key=lambda item: (item.origin, item.family)))


def _training(everything: Iterable[Record], partner: str, period: str) -> set[str]:
    """Return the ids of the records that the figures on training rest on."""
    records = list(everything)
    rounds = [record for record in records if record.type is RecordType.ROUND]
    mine = {
        item.job
        for record in rounds
        for item in rounds_of(record, period)
        if any(partner_of(commit.site) == partner for commit in item.commits)
    }
    if not mine:
        return set()
    specs = specs_of(records)
    jobs = ancestry(mine, specs)
    measured = {item.body.get("job") for item in records if item.type is RecordType.MANIFEST}
    measuring = {
        job for job, spec in specs.items() if spec.kind is JobKind.EVALUATE and spec.model in mine and job in measured
    }
    read = {name for job in jobs if job in specs for name in specs[job].inputs}
    redone = [item for item in records if item.type is RecordType.RE_EXECUTION and item.body.get("job") in mine]
    vouched = _vouched(redone, rounds, jobs)
    _, end_ms = bounds(period)

    def wanted(record: Record) -> bool:
        job = record.body.get("job")
        match record.type:
            case RecordType.ROUND:
                return record.at_ms < end_ms and round_of(record).job in jobs
            case RecordType.JOB:
                return job in jobs or job in measuring
            case RecordType.MANIFEST:
                return job in measuring
            case RecordType.ROSTER:
                return record.body.get("partner") in vouched
            case RecordType.APPROVAL:
                given = ruling_of(record)
                return given is not None and given.job in jobs
            case RecordType.DATASET:
                body = record.body.get("dataset")
                return (body if isinstance(body, dict) else record.body).get("id") in read
            case _:
                return False

    return {record_id(record) for record in [*redone, *filter(wanted, records)]}


def _vouched(redone: Iterable[Record], rounds: Sequence[Record], jobs: set[str]) -> set[str]:
    """Return whose rosters say who ruled and who watched."""
    found = {partner_of(str(item.body.get("by") or "")) for item in redone}
    return found | {partner_of(one.by) for item in map(round_of, rounds) if item.job in jobs for one in item.rulings}


def _concerns(record: Record, partner: str, period: str) -> bool:
    match record.type:
        case RecordType.LEASE:
            rows = receipts_of(record, period)
            return any(partner in (partner_of(row.account), partner_of(row.site)) for row in rows)
        case RecordType.DATASET:
            return any(item.partner == partner for item in datasets_of(record, period))
        case _:
            return False
