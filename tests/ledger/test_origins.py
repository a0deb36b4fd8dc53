from __future__ import annotations

from dataclasses import replace

import pytest

from consortium.domain.codec import from_json, to_json
from consortium.domain.records import Record, RecordType
from consortium.errors import VerificationError
from consortium.keys.signing import SigningKey, sign_value
from consortium.ledger.origins import ChainHead, after, check_chain, make_record, record_id

KEYS = {"fr-1": SigningKey.generate(), "server": SigningKey.generate()}


def chain(origin: str, count: int) -> list[Record]:
    head, made = ChainHead(), []
    for n in range(count):
        record = make_record(
            KEYS[origin], origin=origin, head=head, type=RecordType.USAGE, at_ms=n, body={"n": n, "big": 2**60}
        )
        made.append(record)
        head = after(record)
    return made


def key_of(origin: str) -> str:
    return KEYS[origin].public


def test_mixed_origins_each_in_order_hold_and_can_be_continued() -> None:
    fr, server = chain("fr-1", 4), chain("server", 2)
    heads = check_chain([fr[0], server[0], fr[1], server[1]], key_of)
    assert heads["fr-1"] == after(fr[1])
    assert check_chain(fr[2:], key_of, heads)["fr-1"].next_seq == 4
    assert record_id(fr[3]) == "fr-1:3"


def test_a_trip_over_json_changes_nothing() -> None:
    records = [from_json(Record, to_json(record)) for record in chain("fr-1", 3)]
    check_chain(records, key_of)


def test_omission_reordering_and_change_show() -> None:
    fr = chain("fr-1", 4)
    forged = sign_value(KEYS["server"], replace(fr[2], body={"n": 9}))
    resigned = sign_value(KEYS["fr-1"], replace(fr[1], body={"n": 9}))
    cases = [
        ([fr[0], fr[2]], "expected number 1, got 2"),
        ([fr[1]], "expected number 0, got 1"),
        ([fr[0], fr[0]], "expected number 1, got 0"),
        ([fr[0], fr[1], replace(fr[2], at_ms=99)], "signature of record fr-1:2"),
        ([fr[0], fr[1], forged], "signature of record fr-1:2"),
        ([fr[0], resigned, fr[2]], "fr-1:2 does not follow"),
    ]
    for records, message in cases:
        with pytest.raises(VerificationError, match=message):
            check_chain(records, key_of)
