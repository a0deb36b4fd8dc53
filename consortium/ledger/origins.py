"""Records as their origin makes them: numbered without gaps, each naming the one before it, signed. Pure.

An origin is a site, or `server`. A record that was left out shows as a gap, a changed one in the next one's `previous`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from consortium.domain.codec import to_json
from consortium.domain.records import Record, RecordType
from consortium.errors import VerificationError
from consortium.keys.canonical import digest_json
from consortium.keys.signing import SigningKey, sign_value, verify_value


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHead:
    """Where an origin's chain stands: the number its next record has, and the digest of its last one."""

    next_seq: int = 0
    digest: str = ""


def record_id(record: Record) -> str:
    """Return the id under which the ledger holds a record, once: `origin:seq`."""
    return f"{record.origin}:{record.seq}"


def record_digest(record: Record) -> str:
    """Return what the origin's next record names as `previous`: the digest of the signed record."""
    return digest_json(record)


def make_record(
    key: SigningKey, *, origin: str, head: ChainHead, type: RecordType, at_ms: int, body: Mapping[str, Any]
) -> Record:
    """Return the next record of a chain, signed; `body` may hold dataclasses."""
    plain = to_json(dict(body))
    draft = Record(type=type, origin=origin, seq=head.next_seq, previous=head.digest, at_ms=at_ms, body=plain)
    return sign_value(key, draft)


def after(record: Record) -> ChainHead:
    """Return the head of the chain that ends in `record`."""
    return ChainHead(next_seq=record.seq + 1, digest=record_digest(record))


def check_signature(record: Record, key: str) -> None:
    """Raise VerificationError unless `key` signed the record."""
    verify_value(key, record, what=f"record {record_id(record)} ({record.type})")


def check_chain(
    records: Iterable[Record], key_of: Callable[[str], str], heads: dict[str, ChainHead] | None = None
) -> dict[str, ChainHead]:
    """Return the heads after `records`, which may mix origins but must keep each one's order.

    `heads` says where each chain stands; an origin that is not in it begins at 0. Raises VerificationError naming the
    first record whose number, predecessor or signature does not hold. `key_of` returns an origin's public key.
    """
    standing = dict(heads or {})
    for record in records:
        head = standing.get(record.origin, ChainHead())
        where = f"record {record_id(record)}"
        if record.seq != head.next_seq:
            raise VerificationError(
                f"{record.origin}'s records have a gap: expected number {head.next_seq}, got {record.seq}", where=where
            )
        if record.previous != head.digest:
            raise VerificationError(f"{where} does not follow the record before it", where=where)
        check_signature(record, key_of(record.origin))
        standing[record.origin] = after(record)
    return standing
