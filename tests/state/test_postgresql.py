"""The same state on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consortium.domain.records import RecordType
from consortium.errors import ConflictError
from consortium.keys.signing import SigningKey
from consortium.state import Database, inbox, records

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
