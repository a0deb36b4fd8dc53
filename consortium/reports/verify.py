"""Verifying a report offline: nothing but the file and, better, the keys one pinned oneself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from consortium.accounting.periods import bounds
from consortium.domain.codec import from_json, to_json
from consortium.domain.ids import SERVER, partner_of
from consortium.domain.records import SITE_MAY_WRITE, SITES_ALONE, Evidence, Record, RecordType
from consortium.errors import ConsortiumError, UsageError, VerificationError
from consortium.keys.canonical import canonical
from consortium.keys.documents import check_document
from consortium.keys.signing import fingerprint, verify_value
from consortium.keys.trust import Trust
from consortium.ledger.origins import record_digest, record_id
from consortium.ledger.proofs import Checkpoint, leaf_data, parse_checkpoint, verify_inclusion
from consortium.reports.facts import read_facts
from consortium.reports.figures import figures
from consortium.reports.model import FORMAT, LIMITS_OF, LeftOut, Report
from consortium.reports.people import document_of
from consortium.reports.rounds import check_rounds
from consortium.reports.sites import check_sites
from consortium.reports.text import parse_report

_SUMMED = (RecordType.USAGE.value, RecordType.CROSSING.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was verified, and whose keys it rests on."""

    partner: str
    period: str
    leaves: int
    log_size: int
    log_root: str
    trust: str
    """`given` where the caller's keys were used; `file` where they came from the report itself, which proves only that
    it was not changed since somebody with those keys made it: compare the fingerprints."""
    fingerprints: dict[str, str]
    checks: tuple[str, ...]
    limits: tuple[str, ...]


def verify_report(document: Mapping[str, Any] | str | bytes, trust: Trust | None = None) -> Verification:
    """Check everything a report carries; return what was checked.

    Each leaf's record is signed by its origin and proven against the log's signed checkpoint; running sums are
    gapless; certificates follow from their verdicts; every figure is computed again from the leaves; the server signed
    the whole. Raises VerificationError naming the first thing that does not hold.
    """
    try:
        raw = parse_report(document) if isinstance(document, str | bytes) else dict(document)
        if isinstance(raw.get("format"), str) and raw["format"] not in LIMITS_OF:
            raise VerificationError(
                f"not a report of format {' or '.join(LIMITS_OF)}: it says {raw['format'][:80]!r}",
                fix="verify it with the release it was made with, or ask the server for it anew",
            )
        report = from_json(Report, raw, where="report")
        if report.limits != LIMITS_OF[report.format]:
            raise VerificationError("the report does not state the limits of its format", where="limits")
        bounds(report.period)
        keys = _trusted(report, trust)
        checkpoint = parse_checkpoint(report.checkpoint, keys.log_name, keys.log_key)
        records = _leaves(report, keys, checkpoint)
        _links(records)
        _left_out(report, records, keys)
        for record in records:
            if record.type is RecordType.ROSTER:
                check_document(document_of(record), keys, where=f"record {record_id(record)}")
        signed = check_sites(report.sites, records, keys)
        facts = read_facts(records, report.partner, report.period)
        check_rounds(records, keys)
        _figures(raw, to_json(figures(facts, report.partner, {s.id: s.reference_factor for s in report.sites})))
        verify_value(keys.server_key, raw, what="the server over the whole report")
    except VerificationError:
        raise
    except (ConsortiumError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as fault:
        what = fault.what if isinstance(fault, ConsortiumError) else str(fault)
        raise VerificationError(f"not a valid report: {what}") from fault
    return Verification(
        partner=report.partner,
        period=report.period,
        leaves=len(report.leaves),
        log_size=checkpoint.size,
        log_root=checkpoint.root,
        trust="given" if trust is not None else "file",
        fingerprints=keys.fingerprints(),
        checks=_checks(report, records, signed),
        limits=report.limits,
    )


def _trusted(report: Report, given: Trust | None) -> Trust:
    """Return the keys to believe: those given, which must not contradict the report's own."""
    if report.fingerprints != report.trust.labels():
        raise VerificationError("the fingerprints in the report are not those of its keys")
    if given is None:
        return report.trust
    mine, theirs = given.signing_keys(), report.trust.signing_keys()
    for name in sorted(mine.keys() & theirs.keys()):
        if mine[name] != theirs[name]:
            raise VerificationError(
                f"the report names another key for {name} ({fingerprint(theirs[name])}) than the trusted one "
                f"({fingerprint(mine[name])})",
                fix="the report is not of this consortium, or a key was changed: ask its owner over another channel",
            )
    if given.log_name != report.trust.log_name:
        raise VerificationError(f"the report is of log {report.trust.log_name!r}, trusted is {given.log_name!r}")
    return given


def _leaves(report: Report, keys: Trust, checkpoint: Checkpoint) -> list[Record]:
    records, last = [], -1
    for leaf in report.leaves:
        where = f"leaf {leaf.index} ({leaf.record_id})"
        if leaf.index <= last:
            raise VerificationError("the report's leaves are not in the log's order, each once", where=where)
        last = leaf.index
        record = _record(leaf.payload, where)
        if record_id(record) != leaf.record_id:
            raise VerificationError(f"{where} holds record {record_id(record)}", where=where)
        verify_value(keys.origin_key(record.origin), leaf.payload, what=where)
        _may_write(record, report.period, where)
        data = leaf_data(leaf.salt, leaf.payload)
        _within(where, data, leaf.index, leaf.proof, checkpoint)
        records.append(record)
    last, shown = -1, {leaf.index for leaf in report.leaves}
    for gone in report.erased:
        where = f"erased leaf {gone.index} ({gone.record_id})"
        if gone.index <= last or gone.index in shown:
            raise VerificationError("erased leaves are not in the log's order, each once and not shown", where=where)
        last = gone.index
        if not gone.order:
            raise VerificationError(f"{where} names no order that it was erased under", where=where)
        if len(gone.data) != 64 or gone.data != gone.data.lower():
            raise VerificationError(f"{where} is not 64 hex digits in lower case")
        _within(where, bytes.fromhex(gone.data), gone.index, gone.proof, checkpoint)
    return records


def _record(payload: dict[str, Any], where: str) -> Record:
    try:
        record = from_json(Record, payload, where=where)
    except UsageError as fault:
        raise VerificationError(fault.what, where=where) from fault
    if canonical(record) != canonical(payload):
        raise VerificationError(f"{where} is no record: it has other fields", where=where)
    return record


def _may_write(record: Record, period: str, where: str) -> None:
    """Raise VerificationError unless the record is its origin's to write, and its sums are of the report's period."""
    of_server = record.origin == SERVER
    if record.type in SITES_ALONE if of_server else record.type not in SITE_MAY_WRITE:
        raise VerificationError(f"{record.origin} may not write {record.type} records", where=where)
    if record.type.value in _SUMMED and record.body.get("period") != period:
        raise VerificationError(f"{where} is none of the {record.type} records of {period}", where=where)


def _within(where: str, data: bytes, index: int, proof: tuple[str, ...], checkpoint: Checkpoint) -> None:
    try:
        verify_inclusion(data, index, checkpoint.size, proof, checkpoint.root)
    except VerificationError as fault:
        raise VerificationError(f"{where} is not proven to stand in the log: {fault.what}", where=where) from fault


def _links(records: list[Record]) -> None:
    """Where two records of an origin follow each other, the later one names the earlier one's digest."""
    known = {(record.origin, record.seq): record for record in records}
    if len(known) != len(records):
        raise VerificationError("two leaves hold the same record")
    for (origin, seq), record in known.items():
        before = known.get((origin, seq - 1))
        if before is not None and record.previous != record_digest(before):
            raise VerificationError(f"record {record_id(record)} does not follow {record_id(before)}")


def _left_out(report: Report, records: list[Record], keys: Trust) -> None:
    """Check that what a report says it left out is another's to lose, and is not there."""
    shown, last = {(record.origin, record.type.value) for record in records}, ("", "")
    if report.left_out and report.format != FORMAT:
        raise VerificationError(f"a report of format {report.format} leaves nothing out", where="left_out")
    for item in report.left_out:
        keys.site_key(item.origin)
        key = item.origin, item.family
        own = partner_of(item.origin) == report.partner
        if own or item.family not in _SUMMED or item.records < 1 or key in shown or key <= last:
            raise VerificationError(f"{_said(item)} cannot be what was left out", where="left_out")
        last = key


def _said(item: LeftOut) -> str:
    return f"{item.records} {item.family} records of {item.origin}"


def _figures(raw: Mapping[str, Any], computed: Any) -> None:
    found = _difference(raw.get("figures"), computed, "figures")
    if found is not None:
        path, said, gives = found
        raise VerificationError(f"{path}: the report says {said!r}, its leaves give {gives!r}", where=path)


def _difference(said: Any, computed: Any, path: str) -> tuple[str, Any, Any] | None:
    """Return path and both values of the first difference, or None."""
    if isinstance(said, dict) and isinstance(computed, dict) and said.keys() == computed.keys():
        pairs = [(f"{path}.{key}", said[key], computed[key]) for key in sorted(said)]
    elif isinstance(said, list) and isinstance(computed, list) and len(said) == len(computed):
        pairs = [(f"{path}[{i}]", a, b) for i, (a, b) in enumerate(zip(said, computed, strict=True))]
    else:
        return None if type(said) is type(computed) and said == computed else (path, said, computed)
    return next((found for sub, a, b in pairs if (found := _difference(a, b, sub)) is not None), None)


def _checks(report: Report, records: list[Record], signed: int) -> tuple[str, ...]:
    count = {kind: sum(record.type is kind for record in records) for kind in RecordType}
    kinds = ", ".join(f"{number} {kind.value}" for kind, number in count.items() if number)
    return (
        f"{len(records)} records are signed by their origins ({kinds or 'none'})",
        f"{len(records) + len(report.erased)} leaves are proven to stand under the log's signed checkpoint",
        f"{len(report.figures.completeness)} families of records have no gap",
        f"{signed} of {len(report.sites)} sites are as their partners' signed files say",
        *_redone(report),
        *_gone(report),
        *(f"left out for want of room, so that they count nowhere: {_said(item)}" for item in report.left_out),
        "every figure follows from the leaves",
        "the server signed the whole report",
    )


def _redone(report: Report) -> tuple[str, ...]:
    rows = report.figures.rounds
    done = sum(row.work_evidence is Evidence.RE_EXECUTED for row in rows)
    return (
        (f"{done} of {len(rows)} contributions were done again, signed by another partner's auditor",) if rows else ()
    )


def _gone(report: Report) -> tuple[str, ...]:
    number = len(report.erased)
    return (f"{number} are erased: which records, and under which order, is only the server's word",) if number else ()
