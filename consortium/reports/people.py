"""Whom partners vouched for when a record was made: by the rosters that stand before it in the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from consortium.domain.codec import from_json
from consortium.domain.ids import SERVER
from consortium.domain.records import Record, RecordType
from consortium.errors import ConfigError, UsageError, VerificationError
from consortium.keys.documents import SignedDocument
from consortium.keys.roster import Roster, Rosters
from consortium.ledger.origins import record_id


def with_people(records: Iterable[Record], *kinds: RecordType) -> Iterator[tuple[Record, Rosters]]:
    """Return the records of `kinds` with the people vouched for at that time; `records` stand in the log's order.

    Of each partner its newest roster counts (`SignedDocument.age`; of equals the later in the log). One that had
    expired at the record's own time vouches for nobody, nor does one that is no roster: it is its partner's own, and
    stops no other's report. Whether its partner signed it is not looked at here.
    """
    newest: dict[str, tuple[SignedDocument, Roster]] = {}
    for record in records:
        if record.type is RecordType.ROSTER and record.origin == SERVER:
            document = document_of(record)
            before = newest.get(document.partner)
            if before is None or before[0].age <= document.age:
                newest[document.partner] = document, _parsed(document)
        if record.type in kinds:
            in_force = [roster for document, roster in newest.values() if record.at_ms < document.expires_ms]
            yield record, Rosters({person.id: person for roster in in_force for person in roster.people})


def document_of(record: Record) -> SignedDocument:
    """Return the signed document in a `roster` or `site` record of the server."""
    where = f"record {record_id(record)}"
    try:
        return from_json(SignedDocument, record.body.get("document"), where=where)
    except UsageError as fault:
        raise VerificationError(fault.what, where=where) from fault


def _parsed(document: SignedDocument) -> Roster:
    try:
        return Roster.parse(document)
    except ConfigError:
        return Roster(partner=document.partner, people=())
