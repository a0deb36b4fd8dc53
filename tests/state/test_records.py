"""The server's own chain, sites' chains, the outbox and the ledger behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from consortium.accounting.periods import bounds
from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.job import Epoch, Job, JobState, Leg, LegState
from consortium.domain.records import SITE_MAY_WRITE, Record, RecordType, ReExecution, UsageRow
from consortium.errors import ConflictError, UsageError, VerificationError
from consortium.keys.canonical import digest_json
from consortium.keys.signing import SigningKey, sign_value
from consortium.ledger.log import Ledger
from consortium.ledger.origins import check_chain
from consortium.state import Database, jobs, records, shares
from consortium.state import tables as t
from consortium.state.usage import SKEW_MS
from tests import builders

KEY = SigningKey.generate()
NOW_MS = 50_000_000
"""When records come in: in January 1970, as all of them are."""


def site_records(count: int, body: Any = None) -> list[Record]:
    made: list[Record] = []
    for seq in range(count):
        previous = digest_json(made[-1]) if made else ""
        kind = RecordType.USAGE if body else RecordType.DOWNTIME
        given = to_json(body(seq)) if body else {}
        draft = Record(type=kind, origin="fr-1", seq=seq, previous=previous, at_ms=seq, body=given)
        made.append(sign_value(KEY, draft))
    return made


def push(db: Database, given: list[Record], key: str = KEY.public, site: str = "fr-1") -> int:
    with db.write() as connection:
        return records.take_site_records(connection, site, key, given, NOW_MS)


def usage_record(row: UsageRow, before: Record | None = None) -> Record:
    """A usage record of one row, by its site, after the one before it."""
    sums = {"rows": 0, "gpu_ms": 0} if before is None else before.body["cumulative"]
    sums = {"rows": sums["rows"] + 1, "gpu_ms": sums["gpu_ms"] + row.gpu_ms}
    previous, seq = ("", 0) if before is None else (digest_json(before), before.seq + 1)
    body = to_json({"period": "1970-01", "rows": [row], "cumulative": sums})
    draft = Record(type=RecordType.USAGE, origin=row.site, seq=seq, previous=previous, at_ms=1, body=body)
    return sign_value(KEY, draft)


def meter(db: Database, *rows: UsageRow) -> list[str]:
    """Have one site meter rows, one record each; return their marks as the table has them, in order."""
    made: list[Record] = []
    for row in rows:
        made.append(usage_record(row, made[-1] if made else None))
    push(db, made, site=rows[0].site)
    of_site = select(t.usage.c.conflict).where(t.usage.c.origin == rows[0].site).order_by(t.usage.c.id)
    with db.read() as connection:
        assert len(records.pending_outbox(connection)) >= len(made), "whatever is wrong with them, the log has them"
        return list(connection.execute(of_site).scalars())


def counted(db: Database) -> dict[tuple[str, str], int]:
    with db.read() as connection:
        return shares.metered(connection, *bounds("1970-01"))


@pytest.fixture
def leg(db: Database) -> Leg:
    """A leg of two GPUs at fr-1, for the account `de`, in its first epoch."""
    job = Job(id="job-1", spec=builders.spec(account="de", submitter="de/anna"), signature="s", state=JobState.RUNNING,
              created_ms=0, updated_ms=0, version=1)  # fmt: skip
    made = Leg(id="leg-1", attempt="att-1", job=job.id, site="fr-1", epoch=Epoch(incarnation=1, counter=1),
               state=LegState.OFFERED, nodes={"n1": 2}, inputs=())  # fmt: skip
    with db.write() as connection:
        jobs.insert_job(connection, job)
        jobs.insert_legs(connection, [made], ["h100-sxm"], now_ms=0)
    return made


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


def test_usage_rows_are_billed_once_however_they_arrive(db: Database, leg: Leg) -> None:
    with db.write() as connection:
        for counter in (2, 3):
            leg = jobs.new_epoch(connection, leg, Epoch(incarnation=1, counter=counter), now_ms=0)

    def body(seq: int) -> dict[str, Any]:
        start = seq * 50
        row = replace(ROW, epoch=f"1.{seq + 1}", start_ms=start, end_ms=start + 100)
        sums = {"rows": 2 * (seq + 1), "gpu_ms": 400 * (seq + 1)}
        return {"period": "1970-01", "rows": [row, row], "cumulative": sums}

    made = site_records(3, body)
    push(db, made)
    push(db, made)
    with db.read() as connection:
        rows = list(connection.execute(select(t.usage).order_by(t.usage.c.start_ms)))
    assert [(row.start_ms, row.conflict) for row in rows] == [(0, ""), (50, "fr-1:0"), (100, "")]
    assert counted(db) == {("de", "fr-1"): 400}


def test_what_another_site_writes_of_a_leg_takes_nothing_from_its_own(db: Database, leg: Leg) -> None:
    forged = replace(ROW, site="de-1", gpus=1, end_ms=NOW_MS)
    assert meter(db, forged) == ["site: the leg's is fr-1"]
    assert meter(db, ROW, replace(ROW, start_ms=100, end_ms=300)) == ["", ""]
    assert counted(db) == {("de", "fr-1"): 600}
    with db.read() as connection:
        assert shares.metered_until(connection, {leg.id: leg.site}) == {leg.id: 300}


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({"leg": "leg-2"}, "leg: there is none"),
        ({"job": "job-2"}, "job: the leg's is job-1"),
        ({"account": "uy"}, "account: the leg's is de"),
        ({"flavor": "a100-80g"}, "flavor: the leg's is h100-sxm"),
        ({"gpus": 3}, "gpus: the leg has 2"),
        ({"epoch": "9.9"}, "epoch: the leg had none"),
        ({"epoch": f"{2**80}.1"}, "epoch: the leg had none"),
        ({"end_ms": NOW_MS + SKEW_MS + 1}, "end_ms: it came in at"),
    ],
)
def test_usage_that_is_of_no_lease_stays_in_the_log_and_counts_for_nobody(
    db: Database, leg: Leg, changes: dict[str, Any], mark: str
) -> None:
    (found,) = meter(db, replace(ROW, **changes))
    assert found.startswith(mark)
    assert counted(db) == {}
    with db.read() as connection:
        assert shares.metered_until(connection, {leg.id: leg.site}) == {}


def test_a_leg_is_metered_from_its_offer_to_its_end_whenever_the_record_comes(db: Database, leg: Leg) -> None:
    start, over = 2 * SKEW_MS, 3 * SKEW_MS
    with db.write() as connection:
        again = jobs.new_epoch(connection, leg, Epoch(incarnation=1, counter=2), now_ms=start)
        jobs.set_leg(connection, again, LegState.SUCCEEDED, over)
    row = replace(ROW, epoch="1.2")
    found = meter(
        db,
        replace(row, start_ms=start, end_ms=over),
        replace(row, start_ms=over, end_ms=over + SKEW_MS),
        replace(row, start_ms=over + SKEW_MS, end_ms=over + SKEW_MS + 1),
        replace(row, start_ms=start - SKEW_MS, end_ms=start),
        replace(row, start_ms=start - SKEW_MS - 1, end_ms=start - SKEW_MS),
    )
    assert found == ["", "", f"end_ms: it was over at {over}", "", f"start_ms: it was offered at {start}"]


def test_a_row_that_differs_from_one_of_the_same_start_is_kept_and_marked(db: Database, leg: Leg) -> None:
    assert meter(db, ROW, ROW, replace(ROW, end_ms=200)) == ["", "fr-1:0"]
    assert counted(db) == {("de", "fr-1"): 200}


def test_no_sum_of_usage_is_too_large(db: Database) -> None:
    row = to_json(replace(ROW, gpus=100_000, end_ms=2**46)) | {"origin": "fr-1", "seq": 0, "conflict": ""}
    with db.write() as connection:
        connection.execute(t.usage.insert(), [row, row, row])
    assert counted(db) == {("de", "fr-1"): 3 * 100_000 * 2**46}


ROW = UsageRow(leg="leg-1", epoch="1.1", job="job-1", account="de", site="fr-1", flavor="h100-sxm",
               gpus=2, start_ms=0, end_ms=100)  # fmt: skip
PASSAGE = Crossing(sender="fr-1", recipient="de-1", side=CrossingSide.RELEASE, artifact_class=ArtifactClass.STATISTIC,
                   size_bytes=7, count=1, digest="", job="job-1", at_ms=0)  # fmt: skip


REDONE = ReExecution(job="job-1", round=1, site="fr-1", digest="sha256:a", same_bits=True, distance="0x0p0",
                     cosine="0x1p0", tolerance="0x0p0", drawn=(1,))  # fmt: skip
OF_ROW = {"period": "1970-01", "rows": [to_json(ROW)], "cumulative": {"rows": 1, "gpu_ms": 200}}
OF_PASSAGE = {"period": "1970-01", "crossings": [to_json(PASSAGE)], "cumulative": {"count": 1, "size_bytes": 7}}
MONTH_MS = 31 * 86_400_000


def nested(depth: int) -> dict[str, Any]:
    body: dict[str, Any] = {}
    for _ in range(depth - 1):
        body = {"in": body}
    return body


def of_row(gpu_ms: int, **changes: Any) -> dict[str, Any]:
    return {**OF_ROW, "rows": [to_json(ROW) | changes], "cumulative": {"rows": 1, "gpu_ms": gpu_ms}}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("usage", {**OF_ROW, "more": nested(250)}),
        ("usage", {**OF_ROW, "more": 1}),
        ("usage", of_row(200, more=1)),
        ("usage", {**OF_ROW, "period": []}),
        ("usage", of_row(10**26, gpus=10**24)),
        ("usage", of_row(100_001 * 100, gpus=100_001)),
        ("usage", of_row(0, end_ms=0)),
        ("usage", of_row(2 * MONTH_MS + 2, end_ms=MONTH_MS + 1)),
        ("usage", of_row(2**63, end_ms=2**62)),
        ("usage", of_row(200, leg="x" * 256)),
        ("crossing", {**OF_PASSAGE, "more": 1}),
        ("crossing", {**OF_PASSAGE, "crossings": [to_json(PASSAGE) | {"more": 1}]}),
        (
            "crossing",
            {
                "period": "1970-01",
                "crossings": [to_json(PASSAGE) | {"size_bytes": 2**53}],
                "cumulative": {"count": 1, "size_bytes": 2**53},
            },
        ),
        ("downtime", nested(33)),
        ("downtime", nested(300)),
        ("downtime", {"why": "x" * (64 << 10)}),
        ("manifest", {"outputs": ["x" * 1000] * 1050}),
        ("re_execution", to_json(REDONE) | {"distance": "0x1p99999"}),
        *((kind, {}) for kind in RecordType if kind not in SITE_MAY_WRITE),
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
    draft = Record(type=RecordType(kind), origin="fr-1", seq=0, previous="", at_ms=1, body=body)
    try:
        record = sign_value(KEY, replace(draft, body=to_json(body)))
    except ValueError:  # nested too deep to be signed: whoever sends it has not signed it either
        record = replace(draft, signature="s")
    with pytest.raises(UsageError):
        push(db, [record])
    with db.read() as connection:
        assert records.pending_outbox(connection) == []


@pytest.mark.parametrize("at_ms", [-1, 10**18, 2**62])
def test_a_record_of_no_time_that_can_be_shown_never_enters_the_log(db: Database, at_ms: int) -> None:
    draft = Record(type=RecordType.DOWNTIME, origin="fr-1", seq=0, previous="", at_ms=at_ms, body={})
    with pytest.raises(UsageError, match="no time of the years"):
        push(db, [sign_value(KEY, draft)])


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("usage", OF_ROW),
        ("usage", of_row(2 * MONTH_MS, end_ms=MONTH_MS)),
        ("crossing", OF_PASSAGE),
        ("downtime", nested(32)),
        ("manifest", {"outputs": [f"ds-{number:026d}" for number in range(1000)]}),
        ("re_execution", to_json(REDONE)),
    ],
)
def test_what_agents_write_is_taken(db: Database, kind: str, body: dict[str, Any]) -> None:
    draft = Record(type=RecordType(kind), origin="fr-1", seq=0, previous="", at_ms=1, body=body)
    assert push(db, [sign_value(KEY, draft)]) == 0


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
