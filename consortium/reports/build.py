"""Making a report: choose the leaves, compute the figures from them, prove each leaf, sign the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from consortium.accounting.periods import bounds
from consortium.domain.codec import to_json
from consortium.domain.ids import is_partner, partner_of
from consortium.domain.partner import Site
from consortium.domain.records import Record
from consortium.errors import UsageError, VerificationError
from consortium.keys.signing import SigningKey, sign_value
from consortium.keys.trust import Trust
from consortium.ledger.log import Entry
from consortium.ledger.proofs import parse_checkpoint
from consortium.reports.choose import ROOM_BYTES, LogAccess, choose
from consortium.reports.facts import read_facts
from consortium.reports.figures import figures
from consortium.reports.model import FORMAT, LIMITS, Erased, Leaf, Report, SiteFacts
from consortium.reports.sites import check_file, newest_files, site_facts
from consortium.reports.verify import verify_report


def build_report(
    *,
    partner: str,
    period: str,
    log: LogAccess,
    sites: Sequence[Site],
    trust: Trust,
    key: SigningKey,
    made_ms: int,
    room_bytes: int = ROOM_BYTES,
) -> dict[str, Any]:
    """Return the canonical report on `partner` for `period` (`YYYY-MM`) as JSON, signed with the server's `key`.

    It rests on the log as its checkpoint stands now, and carries `room_bytes` at most of other partners' usage and
    crossings (`choose`). Raises UsageError for a bad partner or period, and VerificationError, as `verify_report`
    would, where records do not hold together: no report is made that fails.
    """
    known = {site.partner for site in sites} | {partner_of(site) for site in trust.sites}
    _check_asked(partner, period, known, made_ms)
    checkpoint = log.checkpoint()
    size = parse_checkpoint(checkpoint, trust.log_name, trust.log_key).size
    chosen = choose(log, size, partner, period, room_bytes)
    records = [record for _, record in chosen.records]
    facts = _sites(sites, records, trust)
    report = Report(
        format=FORMAT,
        partner=partner,
        period=period,
        made_ms=made_ms,
        sites=facts,
        figures=figures(
            read_facts(records, partner, period), partner, {site.id: site.reference_factor for site in facts}
        ),
        left_out=chosen.left_out,
        limits=LIMITS,
        leaves=tuple(_leaf(log, entry, size) for entry, _ in chosen.records),
        erased=tuple(_erased(log, entry, size) for entry in chosen.erased),
        checkpoint=checkpoint,
        trust=trust,
        fingerprints=trust.labels(),
    )
    document: dict[str, Any] = to_json(sign_value(key, report))
    verify_report(document, trust)
    return document


def _leaf(log: LogAccess, entry: Entry, size: int) -> Leaf:
    return Leaf(
        index=entry.index,
        record_id=entry.record_id,
        salt=entry.salt,
        payload=entry.payload or {},
        proof=tuple(log.inclusion(entry.index, size)),
    )


def _erased(log: LogAccess, entry: Entry, size: int) -> Erased:
    return Erased(
        index=entry.index,
        record_id=entry.record_id,
        data=entry.data,
        order=entry.erased,
        proof=tuple(log.inclusion(entry.index, size)),
    )


def _check_asked(partner: str, period: str, known: set[str], made_ms: int) -> None:
    if made_ms < bounds(period)[0]:
        raise UsageError(f"{period} has not begun", where="period", fix="ask for this month or one before it")
    if not is_partner(partner) or partner not in known:
        raise UsageError(f"{partner!r} is no partner with a site", fix=f"partners: {', '.join(sorted(known))}")


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
