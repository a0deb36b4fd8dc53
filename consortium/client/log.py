"""The latest records of the log, as a reader takes them who does not believe the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from consortium.domain.codec import from_json
from consortium.errors import UsageError, VerificationError
from consortium.keys.trust import Trust
from consortium.ledger.log import Entry
from consortium.ledger.proofs import leaf_data, parse_checkpoint, unsigned_checkpoint, verify_latest


class LogReader(Protocol):
    """What is asked of the server; `consortium.Client` has it."""

    def checkpoint(self) -> str:
        """Return the checkpoint."""
        ...

    def entries(self, start: int = 0, count: int = 100) -> list[dict[str, Any]]:
        """Return leaves in order."""
        ...

    def inclusion(self, index: int, size: int | None = None) -> dict[str, Any]:
        """Return the inclusion proof of a leaf."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Latest:
    """The end of the log under one checkpoint."""

    checkpoint: str
    size: int
    entries: tuple[Entry, ...]


def latest(client: LogReader, count: int, trust: Trust | None) -> Latest:
    """Return the last `count` leaves, proven to be those of the checkpoint.

    With `trust`, its log signed the checkpoint; without, nobody's signature is looked at. Raises VerificationError.
    """
    note = client.checkpoint()
    seen = parse_checkpoint(note, trust.log_name, trust.log_key) if trust else unsigned_checkpoint(note)
    start = max(0, seen.size - count)
    told = client.entries(start, seen.size - start) if seen.size else []
    try:
        entries = from_json(tuple[Entry, ...], told, where="entries of the log")
        proof = from_json(list[str], client.inclusion(start, seen.size)["inclusion"]) if seen.size else []
        datas = [_data(entry, start + number) for number, entry in enumerate(entries)]
    except (UsageError, KeyError, TypeError, ValueError) as fault:
        what = fault.what if isinstance(fault, UsageError) else repr(fault)
        raise VerificationError(f"the server answered with no entries of a log: {what}") from fault
    verify_latest(datas, start, seen.size, proof, seen.root)
    return Latest(checkpoint=note, size=seen.size, entries=entries)


def _data(entry: Entry, index: int) -> bytes:
    """Return the 32 bytes of a leaf after checking that they are of what the entry shows."""
    where = f"entry {entry.index} ({entry.record_id})"
    if entry.index != index:
        raise VerificationError(f"the server answered with entry {entry.index} where {index} is due")
    if (entry.payload is None) != bool(entry.erased):
        raise VerificationError(f"{where} is neither whole nor erased under an order", where=where)
    data = bytes.fromhex(entry.data)
    if entry.payload is None:
        return data
    if leaf_data(entry.salt, entry.payload) != data:
        raise VerificationError(f"the leaf of {where} is not that of its record", where=where)
    if f"{entry.payload.get('origin')}:{entry.payload.get('seq')}" != entry.record_id:
        raise VerificationError(f"{where} holds another record", where=where)
    return data
