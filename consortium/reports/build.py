"""Making a report: choose the leaves, compute the figures from them, prove each leaf, sign the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from consortium.accounting.periods import bounds
from consortium.domain.codec import from_json, to_json
from consortium.domain.ids import is_partner, partner_of
from consortium.domain.job import JobKind
from consortium.domain.partner import Site
from consortium.domain.records import Record, RecordType
from consortium.errors import UsageError, VerificationError
from consortium.keys.signing import SigningKey, sign_value
from consortium.keys.trust import Trust
from consortium.ledger.log import Entry
from consortium.ledger.origins import record_id
from consortium.ledger.proofs import parse_checkpoint
from consortium.reports.figures import (
    crossings_of,
    datasets_of,
    figures,
    read_facts,
    receipts_of,
    round_of,
    rounds_of,
    usage_of,
)
from consortium.reports.model import FORMAT, LIMITS, Erased, Leaf, Report, SiteFacts
from consortium.reports.people import SERVER
from consortium.reports.rounds import ruling_of
from consortium.reports.sites import check_file, newest_files, site_facts
from consortium.reports.training import ancestry, specs_of
from consortium.reports.verify import verify_report


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


def build_report(
    *,
    partner: str,
    period: str,
    log: LogAccess,
    sites: Sequence[Site],
    trust: Trust,
    key: SigningKey,
    made_ms: int,
) -> dict[str, Any]:
    """Return the canonical report on `partner` for `period` (`YYYY-MM`) as JSON, signed with the server's `key`.

    It rests on the log as its checkpoint stands now. Raises UsageError for a bad partner or period, and
    VerificationError, as `verify_report` would, where records do not hold together: no report is made that fails.
    """
    _check_asked(partner, period, sites, made_ms)
    checkpoint = log.checkpoint()
    size = parse_checkpoint(checkpoint, trust.log_name, trust.log_key).size
    entries = log.entries(0, size)
    payloads = [(entry, entry.payload) for entry in entries if entry.payload is not None]
    records = [(entry, from_json(Record, payload, where=entry.record_id)) for entry, payload in payloads]
    chosen = choose(records, partner, period)
    facts = _sites(sites, [record for _, record in chosen], trust)
    origins = {record.origin for _, record in chosen}
    report = Report(
        format=FORMAT,
        partner=partner,
        period=period,
        made_ms=made_ms,
        sites=facts,
        figures=figures(
            read_facts((record for _, record in chosen), partner, period),
            partner,
            {site.id: site.reference_factor for site in facts},
        ),
        limits=LIMITS,
        leaves=tuple(
            Leaf(
                index=entry.index,
                record_id=entry.record_id,
                salt=entry.salt,
                payload=entry.payload or {},
                proof=tuple(log.inclusion(entry.index, size)),
            )
            for entry, _ in chosen
        ),
        erased=tuple(
            Erased(
                index=entry.index,
                record_id=entry.record_id,
                data=entry.data,
                order=entry.erased,
                proof=tuple(log.inclusion(entry.index, size)),
            )
            for entry in entries
            if entry.erased and entry.record_id.partition(":")[0] in origins
        ),
        checkpoint=checkpoint,
        trust=trust,
        fingerprints=trust.labels(),
    )
    document: dict[str, Any] = to_json(sign_value(key, report))
    verify_report(document, trust)
    return document


def choose(records: Iterable[tuple[Entry, Record]], partner: str, period: str) -> list[tuple[Entry, Record]]:
    """Return what a report on `partner` rests on, in the log's order.

    Usage and crossings of its own sites, whole; usage, whole, of every site its accounts ran at; the other side's
    records of its crossings; the server's leases and datasets that concern it; of every training it took part in, and
    of those behind them, all rounds so far, the job, its inputs' datasets, what was measured, ruled and done again of
    it, and the rosters of those who ruled or watched; the newest signed file of every site.
    """
    everything = list(records)
    wanted = _training(everything, partner, period)
    wanted |= {record_id(record) for record in newest_files(record for _, record in everything).values()}
    hosts = {
        record.origin
        for _, record in everything
        if record.type is RecordType.USAGE
        and any(partner in (partner_of(m.row.account), partner_of(m.row.site)) for m in usage_of(record, period))
    }
    return [
        (entry, record)
        for entry, record in everything
        if record_id(record) in wanted or _concerns(record, partner, period, hosts)
    ]


def _training(everything: list[tuple[Entry, Record]], partner: str, period: str) -> set[str]:
    """Return the ids of the records that the figures on training rest on."""
    records = [record for _, record in everything]
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
    measuring = {job for job, spec in specs.items() if spec.kind is JobKind.EVALUATE and spec.model in mine}
    read = {name for job in jobs if job in specs for name in specs[job].inputs}
    redone = [item for item in records if item.type is RecordType.RE_EXECUTION and item.body.get("job") in mine]
    vouched = {partner_of(str(item.body.get("by") or "")) for item in redone}
    vouched |= {partner_of(one.by) for item in map(round_of, rounds) if item.job in jobs for one in item.rulings}
    _, end_ms = bounds(period)

    def wanted(record: Record) -> bool:
        job = record.body.get("job")
        match record.type:
            case RecordType.ROUND:
                return record.at_ms < end_ms and round_of(record).job in jobs
            case RecordType.JOB:
                return job in jobs or job in measuring
            case RecordType.MANIFEST:
                return record.origin == SERVER and job in measuring
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


def _concerns(record: Record, partner: str, period: str, hosts: set[str]) -> bool:
    match record.type:
        case RecordType.USAGE:
            return record.origin in hosts and record.body.get("period") == period
        case RecordType.CROSSING:
            return any(
                partner in (partner_of(item.sender), partner_of(item.recipient))
                for item in crossings_of(record, period)
            ) or (partner_of(record.origin) == partner and record.body.get("period") == period)
        case RecordType.LEASE:
            rows = receipts_of(record, period)
            return any(partner in (partner_of(row.account), partner_of(row.site)) for row in rows)
        case RecordType.DATASET:
            return any(item.partner == partner for item in datasets_of(record, period))
        case _:
            return False


def _check_asked(partner: str, period: str, sites: Sequence[Site], made_ms: int) -> None:
    if made_ms < bounds(period)[0]:
        raise UsageError(f"{period} has not begun", where="period", fix="ask for this month or one before it")
    known = sorted({site.partner for site in sites})
    if not is_partner(partner) or partner not in known:
        raise UsageError(f"{partner!r} is no partner with a site", fix=f"partners: {', '.join(known)}")


def _sites(sites: Sequence[Site], records: Iterable[Record], trust: Trust) -> tuple[SiteFacts, ...]:
    """Return the sites as their signed files say, or as the server has them where the log holds no file.

    Those that have left are among them, where their files hold under the keys still known: what they delivered counts.
    """
    files, told = newest_files(records), {site.id: _site_facts(site) for site in sites}
    for site, record in files.items():
        if site in told or (site in trust.sites and _holds(record, trust)):
            told[site] = site_facts(record)
    return tuple(told[site] for site in sorted(told))


def _holds(record: Record, trust: Trust) -> bool:
    try:
        check_file(record, trust)
    except VerificationError:
        return False
    return True


def _site_facts(site: Site) -> SiteFacts:
    return SiteFacts(
        id=site.id,
        partner=site.partner,
        territory=site.territory,
        flavor=site.flavor.id,
        reference_factor=site.flavor.reference_factor,
        factor_version=site.flavor.factor_version,
    )
