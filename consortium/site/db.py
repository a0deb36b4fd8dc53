"""`site.db`: one SQLite file per site, shared by agent and gateway. What is committed here survives `kill -9`."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from consortium.errors import ConfigError, of_sqlite

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

CREATE TABLE IF NOT EXISTS legs (
    leg TEXT NOT NULL,
    incarnation INTEGER NOT NULL,
    counter INTEGER NOT NULL,
    job TEXT NOT NULL,
    state TEXT NOT NULL,
    offer TEXT NOT NULL,
    spec_signature TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    reason_code TEXT NOT NULL DEFAULT '',
    denial TEXT NOT NULL DEFAULT '{}',
    fault TEXT,
    progress TEXT NOT NULL DEFAULT '{}',
    result TEXT,
    failure TEXT,
    stop_state TEXT,
    lease_until_ms INTEGER NOT NULL DEFAULT 0,
    started_ms INTEGER,
    metered_ms INTEGER,
    submitted INTEGER NOT NULL DEFAULT 0,
    log_sent INTEGER NOT NULL DEFAULT 0,
    log_policy TEXT NOT NULL DEFAULT '',
    archived INTEGER NOT NULL DEFAULT 0,
    acknowledged INTEGER NOT NULL DEFAULT 0,
    calls INTEGER NOT NULL DEFAULT 0,
    listens INTEGER NOT NULL DEFAULT 0,
    stop_by_ms INTEGER NOT NULL DEFAULT 0,
    seen_ms INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (leg, incarnation, counter)
) STRICT;

CREATE INDEX IF NOT EXISTS legs_by_state ON legs (state);
CREATE INDEX IF NOT EXISTS legs_to_report ON legs (acknowledged);

CREATE TABLE IF NOT EXISTS fences (
    leg TEXT NOT NULL, incarnation INTEGER NOT NULL, counter INTEGER NOT NULL, acknowledged INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (leg, incarnation, counter)
) STRICT;

CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY,
    digest TEXT NOT NULL,
    record TEXT NOT NULL
) STRICT;

CREATE TABLE IF NOT EXISTS totals (
    family TEXT NOT NULL, period TEXT NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL,
    PRIMARY KEY (family, period, name)
) STRICT;

CREATE TABLE IF NOT EXISTS traffic (
    job TEXT NOT NULL, sender TEXT NOT NULL, recipient TEXT NOT NULL, side TEXT NOT NULL, class TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (job, sender, recipient, side, class)
) STRICT;

CREATE TABLE IF NOT EXISTS releases (
    attempt TEXT NOT NULL, class TEXT NOT NULL, name TEXT NOT NULL, round INTEGER NOT NULL, recipients TEXT NOT NULL,
    digest TEXT NOT NULL, object_key TEXT NOT NULL, artifact TEXT NOT NULL, told TEXT NOT NULL DEFAULT 'no',
    PRIMARY KEY (attempt, class, name, round, recipients, digest)
) STRICT;

CREATE TABLE IF NOT EXISTS receipts (
    job TEXT NOT NULL, sender TEXT NOT NULL, digest TEXT NOT NULL, key TEXT NOT NULL,
    PRIMARY KEY (job, sender, digest)
) STRICT;

CREATE TABLE IF NOT EXISTS refusals (
    job TEXT NOT NULL, what TEXT NOT NULL, PRIMARY KEY (job, what)
) STRICT;

CREATE TABLE IF NOT EXISTS rulings (
    job TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (job, digest)
) STRICT;
"""
_ADDED = ("calls", "listens", "stop_by_ms", "seen_ms")
"""Columns of `legs` that databases of earlier versions lack."""


PATIENCE_S = 30.0
"""How long a transaction waits for another program that holds the file."""


class SiteDb:
    """Connections to `site.db`, one per thread. Writes go through `write()`, reads through `read()`."""

    def __init__(self, home: str | Path) -> None:
        self.path = Path(home) / "site.db"
        self._local = threading.local()
        if not self.path.parent.is_dir():
            raise ConfigError("the site's home is not a folder", where=str(self.path.parent))
        with suppress(FileExistsError):
            # Only where there is none: to close any descriptor of a file lets go of all locks that the process has on
            # it, those of its other connections too. Another program would then take itself for the last one, and
            # delete the log that this one goes on writing to.
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        try:
            with self.write() as write:
                for statement in _SCHEMA.split(";\n"):
                    write.execute(statement)
                known = {row["name"] for row in write.execute("PRAGMA table_info(legs)")}
                for column in _ADDED:
                    if column not in known:
                        write.execute(f"ALTER TABLE legs ADD COLUMN {column} INTEGER NOT NULL DEFAULT 0")
                write.execute("INSERT OR IGNORE INTO meta VALUES ('leg_secret', ?)", (secrets.token_hex(32),))
        except sqlite3.DatabaseError as fault:
            what, damaged = "cannot use the site's database", "restore it from a copy"
            raise of_sqlite(fault, what, where=str(self.path), damaged=damaged) from fault

    def read(self) -> sqlite3.Connection:
        """Return this thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=PATIENCE_S, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            self._local.connection = connection
        return connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run a transaction that holds the write lock from its start; all of it is durable, or none.

        Raises sqlite3.OperationalError where that cannot be written: on a full disk.
        """
        connection = self.read()
        if connection.in_transaction:
            raise RuntimeError("transactions do not nest: pass the connection on")
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            if connection.in_transaction:  # on a full disk SQLite may have rolled back by itself
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def meta(self, name: str, default: str = "") -> str:
        """Return a named value."""
        row = self.read().execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else str(row["value"])

    def set_meta(self, **values: str) -> None:
        """Store named values together."""
        with self.write() as write:
            for name, value in sorted(values.items()):
                put_meta(write, name, value)

    def leg_token(self, leg_epoch: str) -> str:
        """Return the bearer token of `leg@epoch`: it can be made again, so a repeated submission finds the same one."""
        secret = bytes.fromhex(self.meta("leg_secret"))
        return f"{leg_epoch}.{hmac.new(secret, leg_epoch.encode(), hashlib.sha256).hexdigest()}"

    def close(self) -> None:
        """Close this thread's connection."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None


def put_meta(write: sqlite3.Connection, name: str, value: str) -> None:
    """Store a named value inside a transaction."""
    write.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
    )
