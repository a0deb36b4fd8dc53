"""The sites in a report, as the files say that their partners signed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import yaml

from consortium.domain.codec import from_json
from consortium.domain.ids import SERVER
from consortium.domain.records import Record, RecordType
from consortium.errors import UsageError, VerificationError
from consortium.keys.documents import DocumentKind, SignedDocument, check_document
from consortium.keys.trust import Trust
from consortium.ledger.origins import record_id
from consortium.reports.model import SiteFacts
from consortium.reports.people import document_of


def newest_files(records: Iterable[Record]) -> dict[str, Record]:
    """Return by site the record of its newest file (`SignedDocument.age`); `records` stand in the log's order.

    One that says nothing of a site by the rules of today counts for none: the log keeps for good what earlier releases
    took, and no file stops the reports of everybody.
    """
    found: dict[str, tuple[tuple[int, int], Record]] = {}
    for record in records:
        if record.type is RecordType.SITE and record.origin == SERVER:
            document = document_of(record)
            try:
                site = _read(document, record).id
            except VerificationError:
                continue
            if site not in found or found[site][0] <= document.age:
                found[site] = document.age, record
    return {site: record for site, (_, record) in sorted(found.items())}


def site_facts(record: Record) -> SiteFacts:
    """Return what a `site` record's file says of the site. Raises VerificationError where it does not say it."""
    return _read(document_of(record), record)


def check_file(record: Record, keys: Trust) -> None:
    """Raise VerificationError unless the site's own partner signed the file in a `site` record."""
    document, where = document_of(record), f"record {record_id(record)}"
    if document.kind is not DocumentKind.SITE or document.partner != site_facts(record).partner:
        raise VerificationError(f"a {document.kind} of {document.partner} is no file of this site", where=where)
    check_document(document, keys, where=where)


def check_sites(sites: Iterable[SiteFacts], records: Iterable[Record], keys: Trust) -> int:
    """Return how many of a report's sites have a signed file among its records.

    Raises VerificationError for a site that is unknown or named twice, and where its newest file says otherwise.
    """
    sites = list(sites)
    signed = {site: record for site, record in newest_files(records).items() if site in {one.id for one in sites}}
    for record in signed.values():
        check_file(record, keys)
    told: set[str] = set()
    for site in sites:
        keys.site_key(site.id)
        if site.id in told:
            raise VerificationError(f"site {site.id} stands in the report twice", where="sites")
        told.add(site.id)
        if site.id in signed and site != site_facts(signed[site.id]):
            raise VerificationError(
                f"{site.id} is in the report as {site}, its partner's file says {site_facts(signed[site.id])}",
                where=f"record {record_id(signed[site.id])}",
            )
    return len(told & signed.keys())


def _read(document: SignedDocument, record: Record) -> SiteFacts:
    where = f"record {record_id(record)}"
    try:
        said = yaml.load(document.text, Loader=yaml.BaseLoader)  # noqa: S506  strings, lists and mappings only
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        raise VerificationError(f"the file of a site is not valid YAML: {fault}", where=where) from fault
    flavor = said.get("flavor") if isinstance(said, Mapping) else None
    if not isinstance(said, Mapping) or not isinstance(flavor, Mapping):
        raise VerificationError("the file of a site names no site with a flavor", where=where)
    values = {name: said.get(name) for name in ("id", "partner", "territory")}
    values |= {name: flavor.get(name) for name in ("reference_factor", "factor_version")}
    try:
        return from_json(SiteFacts, values | {"flavor": flavor.get("id")}, where=where)
    except UsageError as fault:
        raise VerificationError(fault.what, where=where) from fault
