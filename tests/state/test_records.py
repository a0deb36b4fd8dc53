"""The server's own chain, sites' chains, the outbox and the ledger behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.records import Record, RecordType, UsageRow
from consortium.errors import ConflictError, UsageError, VerificationError
from consortium.keys.canonical import digest_json
from consortium.keys.signing import SigningKey, sign_value
from consortium.ledger.log import Ledger
from consortium.ledger.origins import check_chain
from consortium.state import Database, records
from consortium.state import tables as t

KEY = SigningKey.generate()


def site_records(count: int, body: Any = None) -> list[Record]:
    made: list[Record] = []
    for seq in range(count):
        previous = digest_json(made[-1]) if made else ""
        kind = RecordType.USAGE if body else RecordType.DOWNTIME
        given = body(seq) if body else {}
        draft = Record(type=kind, origin="fr-1", seq=seq, previous=previous, at_ms=seq, body=given)
        made.append(sign_value(KEY, draft))
    return made


def push(db: Database, given: list[Record], key: str = KEY.public) -> int:
    with db.write() as connection:
        return records.take_site_records(connection, "fr-1", key, given)


def drain(db: Database, ledger: Ledger) -> None:
    with db.read() as connection:
        batch = records.pending_outbox(connection)
    indices = ledger.append([(name, payload) for _, name, payload in batch])
    with db.write() as connection:
        confirmed = zip(batch, indices, strict=True)
        records.confirm_outbox(connection, [(item[0], item[1], index) for item, index in confirmed])


def test_the_servers_records_are_numbered_chained_and_signed(db: Database) -> None:
    with db.write() as connection:
        made = [records.append_own(connection, KEY, RecordType.JOB, {"n": n}, at_ms=n) for n in range(5)]
    assert [record.seq for record in made] == [0, 1, 2, 3, 4]
    check_chain(made, lambda _: KEY.public)


def test_a_rolled_back_transaction_leaves_no_gap(db: Database) -> None:
    def crash() -> None:
        with db.write() as connection:
            records.append_own(connection, KEY, RecordType.JOB, {}, at_ms=1)
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        crash()
    with db.write() as connection:
        assert records.append_own(connection, KEY, RecordType.JOB, {}, at_ms=2).seq == 0


def test_pushes_may_repeat_and_overlap_but_not_skip(db: Database) -> None:
    made = site_records(4)
    assert push(db, []) == -1
    assert push(db, made[:2]) == 1
    assert push(db, made[:3]) == 2
    assert push(db, made) == 3
    with pytest.raises(ConflictError, match="4 is expected"):
        push(db, [replace(made[3], seq=9)])
    with db.read() as connection:
        assert len(records.pending_outbox(connection)) == 4


def test_a_push_with_a_fault_leaves_nothing_of_it(db: Database) -> None:
    made = site_records(3)
    with pytest.raises(VerificationError):
        push(db, [made[0], made[1], replace(made[2], body={"x": 1})])
    with pytest.raises(VerificationError):
        push(db, made, key=SigningKey.generate().public)
    with pytest.raises(UsageError):
        push(db, [replace(made[0], origin="de-1")])
    broken = sign_value(KEY, replace(made[1], previous="sha256:other", signature=""))
    with pytest.raises(VerificationError, match="does not follow"):
        push(db, [made[0], broken])
    assert push(db, made) == 2


def test_usage_rows_are_billed_once_however_they_arrive(db: Database) -> None:
    def body(seq: int) -> dict[str, Any]:
        start = seq * 50
        row = UsageRow(leg="leg-1", epoch=f"1.{seq}", job="job-1", account="fr", site="fr-1", flavor="h100-sxm",
                       gpus=2, start_ms=start, end_ms=start + 100)  # fmt: skip
        sums = {"rows": 2 * (seq + 1), "gpu_ms": 400 * (seq + 1)}
        return {"period": "1970-01", "rows": [row, row], "cumulative": sums}

    made = site_records(3, body)
    push(db, made)
    push(db, made)
    with db.read() as connection:
        rows = list(connection.execute(select(t.usage).order_by(t.usage.c.start_ms)))
    assert [(row.start_ms, row.conflict) for row in rows] == [(0, ""), (50, "fr-1:0"), (100, "")]


ROW = UsageRow(leg="leg-1", epoch="1.1", job="job-1", account="de", site="fr-1", flavor="h100-sxm",
               gpus=2, start_ms=0, end_ms=100)  # fmt: skip
PASSAGE = Crossing(sender="fr-1", recipient="de-1", side=CrossingSide.RELEASE, artifact_class=ArtifactClass.STATISTIC,
                   size_bytes=7, count=1, digest="", job="job-1", at_ms=0)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        *((kind, {}) for kind in RecordType if kind not in records.SITE_MAY_WRITE),
        ("usage", {}),
        ("usage", {"rows": [ROW], "cumulative": {"rows": 1, "gpu_ms": 200}}),
        ("usage", {"period": "1970-02", "rows": [ROW], "cumulative": {"rows": 1, "gpu_ms": 200}}),
        ("usage", {"period": "1970-01", "rows": [ROW]}),
        ("usage", {"period": "1970-01", "rows": [ROW], "cumulative": {"rows": 1, "gpu_ms": 100}}),
        ("usage", {"period": "1970-01", "rows": [], "cumulative": {"rows": 0, "gpu_ms": 0}}),
        (
            "usage",
            {"period": "1970-01", "rows": [replace(ROW, site="de-1")], "cumulative": {"rows": 1, "gpu_ms": 200}},
        ),
        (
            "crossing",
            {
                "period": "1970-01",
                "crossings": [replace(PASSAGE, side=CrossingSide.RECEIPT)],
                "cumulative": {"count": 1, "size_bytes": 7},
            },
        ),
        (
            "crossing",
            {
                "period": "1970-01",
                "crossings": [replace(PASSAGE, size_bytes=-7)],
                "cumulative": {"count": 1, "size_bytes": -7},
            },
        ),
    ],
)
def test_a_record_that_would_spoil_every_report_never_enters_the_log(
    db: Database, kind: RecordType, body: dict[str, Any]
) -> None:
    draft = Record(type=RecordType(kind), origin="fr-1", seq=0, previous="", at_ms=1, body=to_json(body))
    with pytest.raises(UsageError):
        push(db, [sign_value(KEY, draft)])
    with db.read() as connection:
        assert records.pending_outbox(connection) == []


def test_running_sums_go_on_from_the_last_record_of_their_period(db: Database) -> None:
    def body(seq: int) -> dict[str, Any]:
        sums = {"count": seq + 1, "size_bytes": 7 * (seq + 1)}
        return to_json({"period": "1970-01", "crossings": [PASSAGE], "cumulative": sums})  # type: ignore[no-any-return]

    made: list[Record] = []
    for seq, number in enumerate((0, 1, 3)):  # the third leaves one out
        previous = digest_json(made[-1]) if made else ""
        draft = Record(type=RecordType.CROSSING, origin="fr-1", seq=seq, previous=previous, at_ms=1, body=body(number))
        made.append(sign_value(KEY, draft))
    assert push(db, made[:2]) == 1
    with pytest.raises(UsageError, match="running sums"):
        push(db, made)


def test_the_outbox_reaches_the_ledger_in_order_and_once_across_crashes(db: Database, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", KEY, "test/log") as ledger:
        with db.write() as connection:
            for n in range(3):
                records.append_own(connection, KEY, RecordType.JOB, {"n": n}, at_ms=n)
        with db.read() as connection:
            batch = records.pending_outbox(connection)
        ledger.append([(name, payload) for _, name, payload in batch])  # and a crash before the outbox hears of it
        push(db, site_records(2))
        drain(db, ledger)
        assert [entry.record_id for entry in ledger.entries()] == [
            "server:0",
            "server:1",
            "server:2",
            "fr-1:0",
            "fr-1:1",
        ]
        drain(db, ledger)
        assert ledger.size == 5


def test_a_ledger_that_lost_its_tail_is_refilled_in_order(db: Database, tmp_path: Path) -> None:
    with db.write() as connection:
        for n in range(4):
            records.append_own(connection, KEY, RecordType.JOB, {"n": n}, at_ms=n)
    with Ledger(tmp_path / "first", KEY, "test/log") as ledger:
        drain(db, ledger)
    with db.write() as connection:
        records.append_own(connection, KEY, RecordType.JOB, {"n": 4}, at_ms=4)
        assert records.refill_outbox(connection, ledger_size=2) == 2
        assert [item[1] for item in records.pending_outbox(connection)] == ["server:2", "server:3", "server:4"]
        assert records.refill_outbox(connection, ledger_size=4) == 0
