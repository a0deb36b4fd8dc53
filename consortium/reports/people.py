"""Whom partners vouched for when a record was made: by the rosters that stand before it in the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from consortium.domain.codec import from_json
from consortium.domain.records import Record, RecordType
from consortium.errors import ConfigError, UsageError, VerificationError
from consortium.keys.documents import SignedDocument
from consortium.keys.roster import Roster, Rosters
from consortium.ledger.origins import record_id

SERVER = "server"


def with_people(records: Iterable[Record], *kinds: RecordType) -> Iterator[tuple[Record, Rosters]]:
    """Return the records of `kinds` with the people vouched for at that time; `records` stand in the log's order.

    Of each partner its newest roster counts (`age`). One that had expired at the record's own time vouches for nobody.
    Whether its partner signed it is not looked at here. Raises VerificationError where one is no roster.
    """
    newest: dict[str, tuple[SignedDocument, Roster]] = {}
    for record in records:
        if record.type is RecordType.ROSTER and record.origin == SERVER:
            document = document_of(record)
            before = newest.get(document.partner)
            if before is None or age(before[0]) <= age(document):
                newest[document.partner] = document, _parsed(record, document)
        if record.type in kinds:
            in_force = [roster for document, roster in newest.values() if record.at_ms < document.expires_ms]
            yield record, Rosters({person.id: person for roster in in_force for person in roster.people})


def age(document: SignedDocument) -> tuple[int, int]:
    """Return what the newer of two signed documents has more of; of equals the later in the log is the newer.

    Its owner signed it, so that the server, which puts documents into the log, brings no older one back.
    """
    return document.issued_ms, document.version


def document_of(record: Record) -> SignedDocument:
    """Return the signed document in a `roster` or `site` record of the server."""
    where = f"record {record_id(record)}"
    try:
        return from_json(SignedDocument, record.body.get("document"), where=where)
    except UsageError as fault:
        raise VerificationError(fault.what, where=where) from fault


def _parsed(record: Record, document: SignedDocument) -> Roster:
    try:
        return Roster.parse(document)
    except (ConfigError, ValueError, RecursionError) as fault:  # of YAML: a date that no calendar has, endless nesting
        what = fault.what if isinstance(fault, ConfigError) else f"not a roster: {fault}"
        raise VerificationError(what, where=f"record {record_id(record)}") from fault
