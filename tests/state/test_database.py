"""Opening, locking, migrating; transactions; incarnations that never repeat."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect, select, text

from consortium import state
from consortium.domain.codec import to_json
from consortium.domain.protocol import Voucher
from consortium.domain.training import RoundPhase
from consortium.errors import ConfigError, ConflictError, UnreachableError, of_sqlite
from consortium.keys.canonical import canonical
from consortium.keys.signing import SigningKey
from consortium.state import Database, data, database, rounds
from consortium.state import tables as t
from consortium.state.database import get_meta, next_counter, put_meta
from tests import builders


def test_migrations_make_exactly_the_tables_that_the_code_knows(db: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with db.read() as connection:
        assert compare_metadata(MigrationContext.configure(connection), t.metadata) == []
        assert set(inspect(connection).get_table_names()) == {*t.metadata.tables, "alembic_version"}


def test_the_signatures_of_earlier_registrations_are_taken_from_their_records(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    upgrade(url, "0001")
    dataset, key = builders.dataset(), SigningKey.generate()
    signature = key.sign(canonical(dataset))
    old = {"name": dataset.name, "site": dataset.site, "doc": json.dumps(to_json(dataset)), "created_ms": 1}
    rows = [
        old | {"id": dataset.id, "version": 1, "signer": "fr/amelie", "job": "", "leg": ""},
        old | {"id": builders.new_id("ds", 7), "version": 2, "signer": "", "job": "job-1", "leg": "leg-1"},
    ]
    bodies = [{"dataset": {"id": row["id"]}, "signature": signature if row["signer"] else ""} for row in rows]
    with sqlite3.connect(tmp_path / "state.db") as raw:
        for row in rows:
            names = ", ".join(row)
            raw.execute(f"INSERT INTO datasets ({names}) VALUES ({', '.join('?' * len(row))})", [*row.values()])
        for number, body in enumerate(bodies):
            record = ("server", number, f"server:{number}", "dataset", 1, json.dumps({"body": body}))
            raw.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, NULL)", record)
    db = Database(url)
    with db.read() as connection:
        assert data.voucher(connection, dataset.id) == Voucher(person="fr/amelie", signature=signature)
        assert data.voucher(connection, rows[1]["id"]) == Voucher(leg="leg-1")
    db.close()


def test_earlier_usage_is_kept_but_for_rows_that_no_leg_can_have(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    upgrade(url, "0007")
    row = {"leg": "leg-1", "epoch": "1.1", "start_ms": 5, "end_ms": 9, "job": "job-1", "account": "de", "site": "fr-1",
           "flavor": "h100-sxm", "gpus": 2, "origin": "fr-1", "seq": 3, "conflict": "fr-1:2"}  # fmt: skip
    rows = [row, row | {"start_ms": 6, "end_ms": 2**62}, row | {"start_ms": 7, "gpus": 2**40}]
    with sqlite3.connect(tmp_path / "state.db") as raw:
        for item in rows:
            raw.execute(
                f"INSERT INTO usage ({', '.join(item)}) VALUES ({', '.join('?' * len(item))})", [*item.values()]
            )
    db = Database(url)
    with db.read() as connection:
        assert [dict(item) for item in connection.execute(select(t.usage)).mappings()] == [row | {"id": 1}]
    db.close()


def test_rounds_of_an_earlier_server_are_found(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/state.db"
    upgrade(url, "0009")
    with sqlite3.connect(tmp_path / "state.db") as raw:
        raw.execute(
            "INSERT INTO rounds (job, number, phase, expected, fixed, previous_outer, opened_ms, deadline_ms) "
            "VALUES ('job-1', 3, 'judging', '[\"de-1\", \"fr-1\"]', '[\"fr-1\"]', 'sha256:x', 5, 9)"
        )
    db = Database(url)
    with db.read() as connection:
        found = rounds.find(connection, "job-1", 3)
    db.close()
    assert found is not None
    assert (found.phase, found.expected, found.fixed) == (RoundPhase.JUDGING, ("de-1", "fr-1"), ("fr-1",))


def upgrade(url: str, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(state.__file__).parent / "migrations"))
    config.attributes["engine"] = create_engine(url)
    command.upgrade(config, revision)


def test_sqlite_is_durable(db: Database) -> None:
    with db.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2


def test_a_second_server_is_refused_until_the_first_is_gone(db: Database) -> None:
    url = db.engine.url.render_as_string()
    with pytest.raises(ConflictError, match="another server"):
        Database(url)
    db.close()
    Database(url).close()


def test_incarnations_rise_even_from_an_old_backup(db: Database) -> None:
    first = db.new_incarnation(now_ms=1000)
    with db.write() as connection:
        assert [next_counter(connection) for _ in range(3)] == [1, 2, 3]
    assert db.new_incarnation(now_ms=1000) == first + 1
    with db.write() as connection:
        put_meta(connection, "incarnation", "5")  # yesterday's backup
    assert db.new_incarnation(now_ms=2000) == 2000
    with db.read() as connection:
        assert get_meta(connection, "counter", "?") == "0"


def test_a_failed_transaction_leaves_nothing(db: Database) -> None:
    def crash() -> None:
        with db.write() as connection:
            put_meta(connection, "half", "done")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        crash()
    with db.read() as connection:
        assert get_meta(connection, "half", "") == ""


def test_writers_take_turns(db: Database) -> None:
    def count() -> None:
        for _ in range(20):
            with db.write() as connection:
                put_meta(connection, "n", str(int(get_meta(connection, "n", "0")) + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as connection:
        assert get_meta(connection, "n", "0") == "80"


def test_a_reader_sees_one_snapshot(db: Database) -> None:
    with db.read() as reader:
        assert get_meta(reader, "n", "0") == "0"
        with db.write() as connection:
            put_meta(connection, "n", "1")
        assert get_meta(reader, "n", "0") == "0"


@pytest.mark.parametrize(
    ("url", "words"),
    [("mysql://x/y", "mysql"), ("nonsense", "not a database URL"), ("sqlite://", "must be a file")],
)
def test_bad_urls_are_config_errors(url: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Database(url)


def test_a_missing_folder_an_absent_server_and_a_newer_schema_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot open"):
        Database(f"sqlite:///{tmp_path}/nowhere/state.db")
    with pytest.raises(UnreachableError, match="does not answer"):
        Database("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2")
    Database(f"sqlite:///{tmp_path}/state.db").close()
    with sqlite3.connect(tmp_path / "state.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="another version"):
        Database(f"sqlite:///{tmp_path}/state.db")


def test_a_locked_state_is_no_broken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "PATIENCE_S", 0.05)
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UnreachableError, match="locked") as told:
            Database(f"sqlite:///{path}")
        assert "other program" in told.value.render()
        assert "backup" not in told.value.render()
    Database(f"sqlite:///{path}").close()


def test_a_file_that_is_no_database_is_to_be_restored(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"this is not a database, at all" * 100)
    with pytest.raises(ConfigError, match="restore the database from a backup"):
        Database(f"sqlite:///{tmp_path}/state.db")


def test_a_full_disk_asks_for_room(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "small.db", isolation_level=None)) as small:
        small.execute("CREATE TABLE t (x)")
        small.execute("PRAGMA max_page_count=2")
        with pytest.raises(sqlite3.OperationalError, match="full") as full:
            small.execute("INSERT INTO t VALUES (zeroblob(100000))")
    told = of_sqlite(full.value, "the state cannot be opened", where="state.db", damaged="restore it")
    assert isinstance(told, UnreachableError)
    assert told.fix is not None
    assert told.fix.startswith("make room")
