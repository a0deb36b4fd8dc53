"""The same state on PostgreSQL."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from consortium.domain.records import RecordType
from consortium.errors import ConflictError, UnreachableError
from consortium.keys.signing import SigningKey
from consortium.state import Database, inbox, records
from consortium.state.database import POSTGRESQL, get_meta, put_meta

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pgserver = pytest.importorskip("pgserver", reason="the wheel pgserver is not installed")
    folder: Path = tmp_path_factory.mktemp("pg")
    server = pgserver.get_server(folder, cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


def crash(db: Database, key: SigningKey) -> None:
    with db.write() as connection:
        records.append_own(connection, key, RecordType.JOB, {"n": 2}, at_ms=2)
        raise RuntimeError("crash")


def test_state_lock_transactions_and_records_hold_on_postgresql(url: str) -> None:
    key = SigningKey.generate()
    db = Database(url)
    try:
        with pytest.raises(ConflictError, match="another server"):
            Database(url)
        assert db.new_incarnation(5) < db.new_incarnation(5)
        with db.write() as connection:
            first = records.append_own(connection, key, RecordType.JOB, {"n": 1}, at_ms=1)
            number = inbox.put(connection, "cancel", {"job": "x"}, 1)
        with pytest.raises(RuntimeError):
            crash(db, key)
        with db.write() as connection:
            assert records.append_own(connection, key, RecordType.JOB, {"n": 3}, at_ms=3).seq == first.seq + 1
            assert [item[0] for item in inbox.take(connection)] == [number]
            inbox.done(connection, number)
            assert [item[1] for item in records.pending_outbox(connection)] == ["server:0", "server:1"]
    finally:
        db.close()
    Database(url).close()


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    found = Database(url)
    yield found
    found.close()


def cut(db: Database) -> None:
    """End all connections to the database but the one that does it, as a restart of PostgreSQL does."""
    one = create_engine(db.engine.url)
    with one.connect() as connection:
        others = "pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'"
        connection.execute(text(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others}"))
        connection.commit()
    one.dispose()


def test_a_reader_sees_one_snapshot(db: Database) -> None:
    with db.write() as connection:
        put_meta(connection, "n", "0")
    with db.read() as reader:
        assert get_meta(reader, "n", "") == "0"
        with db.write() as connection:
            put_meta(connection, "n", "1")
        assert get_meta(reader, "n", "") == "0"
    with db.read() as reader:
        assert get_meta(reader, "n", "") == "1"


def test_the_lock_is_taken_anew_where_its_connection_was_lost(url: str, db: Database) -> None:
    db.new_incarnation(5)
    assert db.keep()
    cut(db)
    assert db.keep()
    with pytest.raises(ConflictError, match="another server"):
        Database(url)
    cut(db)
    db.close()
    Database(url).close()


@dataclass
class Line:
    """Sockets before PostgreSQL's own: what one end of a connection loses, the other may not notice."""

    real: str
    listener: socket.socket
    held: list[socket.socket] = field(default_factory=list)
    near: list[socket.socket] = field(default_factory=list)

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                near, far = self.listener.accept()[0], socket.socket(socket.AF_UNIX)
                far.connect(self.real)
                self.near.append(near)
                self.held.append(far)
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)

    def lose(self) -> None:
        """End the server's ends of all connections; PostgreSQL's go on."""
        while self.near:
            self.near.pop().shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.close()
        for one in (*self.near, *self.held):
            one.close()


@pytest.fixture
def line(url: str) -> Iterator[Line]:
    real = str(make_url(url).query["host"])
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/.s.PGSQL.5432")
        listener.listen()
        found = Line(f"{real}/.s.PGSQL.5432", listener)
        threading.Thread(target=found.serve, daemon=True).start()
        yield found
        found.close()


def by(line: Line, url: str) -> str:
    return url.replace(str(make_url(url).query["host"]), str(Path(line.listener.getsockname()).parent))


def test_a_lock_that_postgresql_holds_for_a_lost_connection_is_taken_back(url: str, line: Line) -> None:
    db = Database(by(line, url))
    try:
        db.new_incarnation(5)
        line.lose()
        assert db.keep(), "the lock's session was this server's own"
        with pytest.raises(ConflictError, match="another server"):
            Database(url)
        with db.write() as connection:
            put_meta(connection, "n", "2")
    finally:
        db.close()


def test_both_ends_of_a_connection_notice_soon_that_the_other_is_gone(url: str) -> None:
    db = Database(f"{url}&tcp_user_timeout=7")
    with db.read() as connection:
        given = connection.connection.driver_connection.info.get_parameters()  # type: ignore[union-attr]  # psycopg's
        assert {name: given[name] for name in POSTGRESQL} == POSTGRESQL | {"tcp_user_timeout": "7"}
        wanted = text("SELECT name FROM pg_settings WHERE name LIKE 'tcp_keepalives%' AND source = 'session'")
        assert len(connection.execute(wanted).all()) == 3
    db.close()


@pytest.mark.parametrize("gone", [False, True], ids=["still there", "gone again"])
def test_who_lost_the_state_to_another_server_writes_no_more(url: str, db: Database, gone: bool) -> None:
    db.new_incarnation(5)
    cut(db)
    other = Database(url)
    try:
        other.new_incarnation(5)
        if gone:
            other.close()
        assert not db.keep()
        with pytest.raises(UnreachableError, match="taken the state over"), db.write():
            pass
    finally:
        other.close()
