"""From the records in a report's leaves to its figures. Pure; writer and verifier both call `figures`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from consortium.accounting.crossings import BorderSum, border_sums
from consortium.accounting.leases import TwoBooks, join, lease_row, two_books
from consortium.accounting.periods import bounds, period_of
from consortium.accounting.usage import Metered, UsageKey, bill, consumed, delivered, reference_hours
from consortium.domain.codec import from_json
from consortium.domain.data import Crossing, CrossingSide, Dataset
from consortium.domain.ids import SERVER, partner_of
from consortium.domain.records import Evidence, Record, RecordType, UsageRow
from consortium.domain.training import Round
from consortium.domain.units import gpu_hours
from consortium.errors import UsageError, VerificationError
from consortium.ledger.origins import record_id
from consortium.reports.model import (
    BorderRow,
    Completeness,
    DatasetRow,
    Figures,
    GpuRow,
    GpuTable,
    GpuTime,
    RoundRow,
)
from consortium.reports.training import (
    RedoneBy,
    Run,
    Work,
    crossed,
    decimal,
    read_redone,
    read_runs,
    shares_of,
    training_rows,
)
from consortium.train.attribution import Share
from consortium.train.disputes import parties, published
from consortium.train.votes import majority


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


def figures(facts: Facts, partner: str, factors: Mapping[str, str]) -> Figures:
    """Return all figures; `factors` maps a site to its reference factor."""
    billing = bill(facts.usage)
    rows = [item.row for item in billing.billed]
    own = [item for item in facts.crossings if partner in (partner_of(item.sender), partner_of(item.recipient))]
    parts = {job: shares_of(run, own) for job, run in facts.runs.items()}
    mine = {
        (item.job, item.number, commit.site): Work.of(commit, facts.redone)
        for item in facts.rounds
        for commit in item.commits
        if partner_of(commit.site) == partner
    }
    by_job = {
        job: [(share, mine[job, share.round, share.site]) for share in found.values()
              if (job, share.round, share.site) in mine]
        for job, found in parts.items()
    }  # fmt: skip
    return Figures(
        delivered=_gpu_table(delivered(rows, partner), delivered(facts.receipts, partner), factors),
        consumed=_gpu_table(consumed(rows, partner), consumed(facts.receipts, partner), factors),
        crossings=tuple(_border_row(item) for item in border_sums(own)),
        rounds=tuple(
            row
            for item in facts.rounds
            for row in _round_rows(
                item, partner, parts.get(item.job, {}), facts.redone, signed=(item.job, item.number) in facts.signed
            )
        ),
        training=training_rows(facts.runs, by_job, crossed(own, partner)),
        datasets=tuple(_dataset_row(item) for item in facts.datasets if item.partner == partner),
        not_billed=billing.repeated,
        completeness=facts.completeness,
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


def _gpu_table(rows: list[UsageRow], receipts: list[UsageRow], factors: Mapping[str, str]) -> GpuTable:
    books = two_books(rows, receipts)
    by_site: dict[str, int] = {}
    for key, book in books.items():
        by_site[key.site] = by_site.get(key.site, 0) + book.site_gpu_ms
    return GpuTable(
        rows=tuple(_gpu_row(key, book, factors) for key, book in books.items()),
        total=_gpu_time(join(books.values()), reference_hours(by_site, factors)),
    )


def _gpu_row(key: UsageKey, book: TwoBooks, factors: Mapping[str, str]) -> GpuRow:
    reference = reference_hours({key.site: book.site_gpu_ms}, factors)
    return GpuRow(site=key.site, flavor=key.flavor, account=key.account, time=_gpu_time(book, reference))


def _gpu_time(book: TwoBooks, reference: str | None) -> GpuTime:
    metered = book.leases > 0
    return GpuTime(
        gpu_ms=book.site_gpu_ms if metered else None,
        gpu_hours=gpu_hours(book.site_gpu_ms) if metered else None,
        reference_gpu_hours=reference if metered else None,
        server_gpu_ms=book.server_gpu_ms,
        difference_gpu_ms=book.difference_gpu_ms if metered else None,
        leases=book.leases,
        leases_without_receipt=book.leases_unknown,
        gpu_ms_without_receipt=book.site_gpu_ms_unknown,
        evidence=Evidence.CROSS_CHECKED if book.agree else Evidence.DECLARED,
    )


def _border_row(item: BorderSum) -> BorderRow:
    return BorderRow(
        sender=item.sender,
        recipient=item.recipient,
        artifact_class=item.artifact_class,
        released_count=item.released_count,
        released_bytes=item.released_bytes,
        received_count=item.received_count,
        received_bytes=item.received_bytes,
        matched_count=item.matched_count,
        evidence=Evidence.CROSS_CHECKED if item.cross_checked else Evidence.DECLARED,
    )


def _round_rows(
    item: Round, partner: str, shares: Mapping[tuple[int, str], Share], redone: RedoneBy, *, signed: bool
) -> list[RoundRow]:
    given = {} if item.certificate is None else {part.site: part for part in item.certificate.contributions}
    total = sum(part.tokens for part in given.values())
    heard = parties(item)
    digests = sorted(set(published(item).values()))
    settled = item.settlement.outer if item.settlement is not None else ""  # the server's word for what sites found
    outer = digests[0] if len(digests) == 1 else settled or None
    made = []
    for commit in sorted(item.commits, key=lambda commit: commit.site):
        if partner_of(commit.site) != partner:
            continue
        part = given.get(commit.site)
        judges = sorted(
            {
                verdict.judge
                for verdict in item.verdicts
                if verdict.accept
                and (verdict.site, verdict.digest) == (commit.site, commit.digest)
                and verdict.judge in heard
            }
        )
        share, founded = shares.get((item.number, commit.site)), Work.of(commit, redone)
        loss = None if share is None else share.loss_share
        agreed = signed and len(digests) == 1 and majority(published(item), heard)
        checked = part is not None and agreed and any(partner_of(judge) != partner for judge in judges)
        made.append(
            RoundRow(
                job=item.job,
                round=item.number,
                site=commit.site,
                accepted=part is not None,
                refused_for=share.reasons if share else (),
                tokens=commit.tokens,
                steps=commit.steps,
                flops=share.flops if share else None,
                weight=part.weight if part else None,
                weight_percent=_percent(part.tokens, total) if part else None,
                clip=part.clip if part else None,
                bytes_sent=share.bytes_sent if share else None,
                bytes_received=share.bytes_received if share else None,
                loss_share_nats=None if loss is None else decimal(loss),
                accepting_judges=tuple(judges),
                outer_digest=outer,
                evidence=Evidence.CROSS_CHECKED if checked else Evidence.DECLARED,
                re_executed_by=founded.held,
                re_execution_differed=founded.differed,
                work_evidence=founded.evidence,
            )
        )
    return made


def _dataset_row(item: Dataset) -> DatasetRow:
    return DatasetRow(
        id=item.id,
        name=item.name,
        version=item.version,
        site=item.site,
        artifact_class=item.artifact_class,
        languages=item.languages,
        licence=item.licence,
        documents=item.documents,
        tokens=item.tokens,
        size_bytes=item.size_bytes,
        manifest_digest=item.manifest_digest or None,
        evidence=Evidence.DECLARED,
    )


def _percent(part: int, whole: int) -> str:
    """Render a share in percent with four decimals, rounded half-even once, from integers."""
    scaled = round(Fraction(part * 1_000_000, whole))
    return f"{scaled // 10_000}.{scaled % 10_000:04d}"


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
