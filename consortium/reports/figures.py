"""From the facts in a report's leaves to its figures. Pure; writer and verifier both call `figures`."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from consortium.accounting.crossings import BorderSum, border_sums
from consortium.accounting.leases import TwoBooks, join, two_books
from consortium.accounting.usage import UsageKey, bill, consumed, delivered, reference_hours
from consortium.domain.data import Dataset
from consortium.domain.ids import partner_of
from consortium.domain.records import Evidence, UsageRow
from consortium.domain.training import Round
from consortium.domain.units import gpu_hours
from consortium.reports.facts import Facts
from consortium.reports.model import (
    BorderRow,
    DatasetRow,
    Figures,
    GpuRow,
    GpuTable,
    GpuTime,
    RoundRow,
)
from consortium.reports.training import (
    RedoneBy,
    Work,
    crossed,
    decimal,
    shares_of,
    training_rows,
)
from consortium.train.attribution import Share
from consortium.train.disputes import parties, published
from consortium.train.votes import majority


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
