from __future__ import annotations

import itertools
import json
import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.records import RecordType
from consortium.errors import ConfigError, UnreachableError
from consortium.keys.signing import SigningKey
from consortium.ledger.origins import check_chain
from consortium.site import db as db_room
from consortium.site.db import SiteDb
from consortium.site.gateway.legs import MAX_CONTROL_BYTES
from consortium.site.metering import SiteClock, cut_at_months, end_of_usage, usage_rows
from consortium.site.outbox import Outbox, period_of
from tests.site.world import World

JUNE = 1_750_000_000_000
END_OF_JUNE = 1_751_328_000_000


def crossing(size_bytes: int = 10, at_ms: int = JUNE) -> Crossing:
    return Crossing(
        sender="fr-1",
        recipient="de-1",
        side=CrossingSide.RELEASE,
        artifact_class=ArtifactClass.STATISTIC,
        size_bytes=size_bytes,
        count=1,
        digest="sha256:0",
        job="job-1",
        at_ms=at_ms,
    )


def outbox(home: Path, key: SigningKey) -> Outbox:
    home.mkdir(exist_ok=True)
    return Outbox(SiteDb(home), "fr-1", key)


def test_records_are_numbered_chained_and_signed(tmp_path: Path) -> None:
    key = SigningKey.generate()
    box = outbox(tmp_path, key)
    for size in (1, 2, 3):
        with box.db.write() as write:
            box.add_crossings(write, [crossing(size)], JUNE)
    records = box.after(-1)
    assert [record.seq for record in records] == [0, 1, 2]
    assert check_chain(records, lambda _: key.public)["fr-1"].next_seq == 3
    assert [record.body["cumulative"] for record in records] == [
        {"count": 1, "size_bytes": 1},
        {"count": 2, "size_bytes": 3},
        {"count": 3, "size_bytes": 6},
    ]
    assert [record.seq for record in box.after(0, limit=1)] == [1]
    assert box.next_seq == 3


def test_what_a_busy_site_kept_while_it_was_cut_off_goes_in_calls_that_its_gateway_takes(tmp_path: Path) -> None:
    box = outbox(tmp_path, SigningKey.generate())
    with box.db.write() as write:
        for count in (1, 15_000, 20_000, 20_000, 1):
            box.add_crossings(write, [crossing()] * count, JUNE)
    calls, sent = [], -1
    while records := box.after(sent):
        calls.append(len(json.dumps({"records": to_json(list(records))})))
        sent = records[-1].seq
    assert sent == 4, "each goes, in its turn"
    assert max(calls) <= MAX_CONTROL_BYTES
    assert len(calls) == 3


def test_a_transaction_that_fails_leaves_no_record_and_no_total(tmp_path: Path) -> None:
    box = outbox(tmp_path, SigningKey.generate())

    def fail() -> None:
        with box.db.write() as write:
            box.add_crossings(write, [crossing()], JUNE)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with box.db.write() as write:
        box.add_crossings(write, [crossing(5)], JUNE)
    (record,) = box.after(-1)
    assert (record.seq, record.previous, record.body["cumulative"]["size_bytes"]) == (0, "", 5)


def test_a_batch_over_a_month_end_becomes_one_record_per_period(tmp_path: Path) -> None:
    box = outbox(tmp_path, SigningKey.generate())
    with box.db.write() as write:
        box.add_crossings(write, [crossing(1), crossing(2, END_OF_JUNE), crossing(4)], END_OF_JUNE)
    assert [(r.body["period"], r.body["cumulative"]["size_bytes"]) for r in box.after(-1)] == [
        ("2025-06", 5),
        ("2025-07", 2),
    ]


def add_many(home: Path, key_path: Path, count: int) -> None:
    box = Outbox(SiteDb(home), "fr-1", SigningKey.load(key_path))
    for _ in range(count):
        with box.db.write() as write:
            box.add(write, RecordType.MANIFEST, {"x": 1}, JUNE)


def test_agent_and_gateway_may_write_at_the_same_time(tmp_path: Path) -> None:
    key = SigningKey.generate()
    key.save(tmp_path / "key")
    box = outbox(tmp_path, key)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=add_many, args=(tmp_path, tmp_path / "key", 40)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0]
    records = box.after(-1, limit=1000)
    assert len(records) == 80
    check_chain(records, lambda _: key.public)


def test_the_database_is_for_its_owner_only_and_survives_reopening(tmp_path: Path) -> None:
    db = SiteDb(tmp_path)
    db.set_meta(alarm="x")
    token = db.leg_token("leg-1@1.1")
    assert db.path.stat().st_mode & 0o077 == 0
    assert SiteDb(tmp_path).meta("alarm") == "x"
    assert SiteDb(tmp_path).leg_token("leg-1@1.1") == token != db.leg_token("leg-1@1.2")


def test_a_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "site.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="cannot use the site's database") as caught:
        SiteDb(tmp_path)
    assert str(tmp_path / "site.db") in str(caught.value)
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)


# -- metering ---------------------------------------------------------------------------------------------------------


def test_usage_is_cut_where_the_month_ends(world: World) -> None:
    rows = usage_rows(world.offer(gpus=3), "h100-sxm", END_OF_JUNE - 1500, END_OF_JUNE + 500)
    assert [(row.start_ms, row.end_ms) for row in rows] == [
        (END_OF_JUNE - 1500, END_OF_JUNE),
        (END_OF_JUNE, END_OF_JUNE + 500),
    ]
    assert [period_of(row.start_ms) for row in rows] == ["2025-06", "2025-07"]
    assert sum(row.gpu_ms for row in rows) == 3 * 2000


def test_the_pieces_of_an_interval_touch_and_add_up() -> None:
    start, end = JUNE, JUNE + 200 * 86_400_000
    pieces = cut_at_months(start, end)
    assert pieces[0][0] == start
    assert pieces[-1][1] == end
    assert all(left[1] == right[0] for left, right in itertools.pairwise(pieces))
    assert cut_at_months(start, start) == []


@pytest.mark.parametrize(
    ("ended", "now", "expected"), [(150, 200, 150), (50, 200, 100), (900, 200, 200), (None, 200, 200), (150, 90, 100)]
)
def test_usage_never_ends_before_its_mark_nor_in_the_future(ended: int | None, now: int, expected: int) -> None:
    assert end_of_usage(100, ended, now) == expected


def test_the_sites_clock_follows_the_monotonic_clock_alone() -> None:
    ticks = iter([50.0, 50.0, 51.5])
    clock = SiteClock(JUNE, lambda: next(ticks))
    assert clock.now_ms() == JUNE
    assert clock.now_ms() == JUNE + 1500


def test_a_locked_site_database_is_no_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db_room, "PATIENCE_S", 0.05)
    with closing(sqlite3.connect(tmp_path / "site.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UnreachableError, match="locked"):
            SiteDb(tmp_path)
    SiteDb(tmp_path).close()
