"""Signed records: the server's own chain, the sites' chains as they arrive, and the outbox to the ledger.

A record is written in the transaction of the change it tells of. The outbox is drained to the ledger in order, and a
crash between the ledger's append and the outbox's deletion does no harm: the ledger knows record ids.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Crossing
from consortium.domain.ids import SERVER
from consortium.domain.records import Record, RecordType, UsageRow
from consortium.errors import ConflictError, UsageError, VerificationError
from consortium.keys.canonical import digest_json
from consortium.keys.signing import SigningKey, verify_value
from consortium.ledger.origins import ChainHead, after, make_record, record_id
from consortium.state import tables as t
from consortium.state.forms import check_form, check_nesting
from consortium.state.usage import take_usage


def chain(connection: Connection, origin: str) -> ChainHead:
    """Return where the chain of `origin` stands."""
    row = connection.execute(select(t.chains).where(t.chains.c.origin == origin)).one_or_none()
    return ChainHead() if row is None else ChainHead(next_seq=row.next_seq, digest=row.head)


def append_own(
    connection: Connection, key: SigningKey, record_type: RecordType, body: dict[str, Any], at_ms: int
) -> Record:
    """Sign, number and store a record of the server's own, and put it in the outbox."""
    head = chain(connection, SERVER)
    record = make_record(key, origin=SERVER, head=head, type=record_type, at_ms=at_ms, body=body)
    _store(connection, record)
    return record


def take_site_records(connection: Connection, site: str, key: str, records: Iterable[Record], now_ms: int) -> int:
    """Store a site's records, come in at `now_ms`, as they are; return the highest number now held (-1 for none).

    Known records are passed over. Raises ConflictError with the expected number at a gap, VerificationError where a
    signature or the chain does not hold, or where the site signed two records of one number; UsageError for a record
    that is not a site's to write, or that no report could be made of.
    """
    for record in records:
        where = f"record {record_id(record)}"
        if record.origin != site:
            raise UsageError(f"{site} sent a record of {record.origin}", where=where)
        check_nesting(record)
        stand = chain(connection, site)
        if record.seq < stand.next_seq:
            _same_as_known(connection, record, where)
            continue
        if record.seq > stand.next_seq:
            raise ConflictError(
                f"{site} sent record {record.seq} where {stand.next_seq} is expected",
                where=where,
                fix=f"send from record {stand.next_seq} on",
            )
        verify_value(key, record, what=where)
        if record.previous != stand.digest:
            raise VerificationError(f"{where} does not follow from the record before it", where=where)
        check_form(connection, record)
        _store(connection, record)
        _digest_facts(connection, record, now_ms)
    return chain(connection, site).next_seq - 1


def pending_outbox(connection: Connection, limit: int = 500) -> list[tuple[int, str, dict[str, Any]]]:
    """Return (outbox id, record id, payload) of the oldest records the ledger has not confirmed."""
    query = (
        select(t.outbox.c.id, t.outbox.c.record_id, t.records.c.payload)
        .join(t.records, t.records.c.record_id == t.outbox.c.record_id)
        .order_by(t.outbox.c.id)
        .limit(limit)
    )
    return [(row[0], row[1], row[2]) for row in connection.execute(query)]


def confirm_outbox(connection: Connection, confirmed: Iterable[tuple[int, str, int]]) -> None:
    """Note the ledger index of each (outbox id, record id, index) and take it out of the outbox."""
    for outbox_id, record, index in confirmed:
        connection.execute(t.records.update().where(t.records.c.record_id == record).values(ledger_index=index))
        connection.execute(t.outbox.delete().where(t.outbox.c.id == outbox_id))


def refill_outbox(connection: Connection, ledger_size: int) -> int:
    """Put records back that the ledger should have but lost (a ledger restored from a backup); return how many."""
    beyond = select(t.records.c.record_id).where(t.records.c.ledger_index >= ledger_size)
    lost = [row[0] for row in connection.execute(beyond.order_by(t.records.c.ledger_index))]
    queued = {row[0] for row in connection.execute(select(t.outbox.c.record_id))}
    kept = [row[0] for row in connection.execute(select(t.outbox.c.record_id).order_by(t.outbox.c.id))]
    if not lost:
        return 0
    connection.execute(t.outbox.delete())
    for record in [*(item for item in lost if item not in queued), *kept]:
        connection.execute(t.outbox.insert().values(record_id=record))
    return len(lost)


def _store(connection: Connection, record: Record) -> None:
    connection.execute(
        t.records.insert().values(
            origin=record.origin,
            seq=record.seq,
            record_id=record_id(record),
            type=record.type.value,
            at_ms=record.at_ms,
            payload=to_json(record),
        )
    )
    connection.execute(t.outbox.insert().values(record_id=record_id(record)))
    following = after(record)
    stand = {"next_seq": following.next_seq, "head": following.digest}
    if not connection.execute(t.chains.update().where(t.chains.c.origin == record.origin).values(**stand)).rowcount:
        connection.execute(t.chains.insert().values(origin=record.origin, **stand))


def _same_as_known(connection: Connection, record: Record, where: str) -> None:
    query = select(t.records.c.payload).where(t.records.c.record_id == record_id(record))
    known = connection.execute(query).scalar_one()
    if digest_json(known) != digest_json(record):
        raise VerificationError(
            f"{record.origin} signed two different records number {record.seq}",
            where=where,
            fix="the site's outbox was rewritten: compare it with the ledger before it goes on",
        )


def _digest_facts(connection: Connection, record: Record, now_ms: int) -> None:
    """Write the rows that queries sum over: usage and crossings."""
    if record.type is RecordType.USAGE:
        for row in from_json(list[UsageRow], record.body["rows"], where=record_id(record)):
            take_usage(connection, record, row, now_ms)
    elif record.type is RecordType.CROSSING:
        for crossing in from_json(list[Crossing], record.body["crossings"], where=record_id(record)):
            connection.execute(t.crossings.insert().values(**to_json(crossing), origin=record.origin, seq=record.seq))
