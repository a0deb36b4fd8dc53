"""Open the database, bring its schema up to date, keep a second server away, hand out transactions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, make_url, select, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from consortium.errors import ConfigError, ConsortiumError, UnreachableError, of_sqlite
from consortium.state import tables as t
from consortium.state.lock import WRITE_KEY, AdvisoryLock, FileLock, StateLock

__all__ = ["Connection", "Database"]


POOL = {"pool_size": 5, "max_overflow": 65}
"""One connection for each thread of the server: who waits for one would wait for somebody else's slow request."""


PATIENCE_S = 30.0
"""How long a transaction waits for another program that holds a SQLite file."""


POSTGRESQL = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""How soon this end gives up a connection that nobody answers on, unless the URL says otherwise (libpq's names)."""
_OTHER_END = ("tcp_keepalives_idle = 15", "tcp_keepalives_interval = 5", "tcp_keepalives_count = 3")
"""The same at PostgreSQL's end, which else waits for hours: a lost session may hold the lock that writers take."""


class Database:
    """The state. `write()` transactions take turns; `read()` sees one consistent snapshot.

    Raises ConfigError for a bad URL, ConflictError where another server holds the state, UnreachableError where the
    database does not answer.
    """

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._turn = threading.Lock()
        self._incarnation = 0
        self._taken_over = False
        self._lock: StateLock | None = None
        try:
            self._lock = self._take_lock()
            self._migrate()
        except BaseException:
            self.close()
            raise

    @property
    def sqlite(self) -> bool:
        """Whether the state is a SQLite file."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One durable transaction, the only one that writes meanwhile; rolled back on any exception.

        Raises UnreachableError once another server has the state.
        """
        if self._taken_over:
            raise UnreachableError("another server has taken the state over", fix="call that one")
        with self._turn, self.engine.connect() as connection:
            connection = connection.execution_options(consortium_write=True)
            with connection.begin():
                if not self.sqlite:
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITE_KEY})
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One consistent snapshot."""
        with self.engine.connect() as connection:
            if not self.sqlite:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    def new_incarnation(self, now_ms: int) -> int:
        """Return and store a server incarnation higher than any before.

        It is at least the clock's milliseconds, so a state restored from an old backup does not repeat one either.
        """
        with self.write() as connection:
            stored = int(get_meta(connection, "incarnation", "0"))
            incarnation = max(stored + 1, now_ms)
            put_meta(connection, "incarnation", str(incarnation))
            put_meta(connection, "counter", "0")
        self._incarnation = incarnation
        return incarnation

    def keep(self) -> bool:
        """Whether the state is this server's still; its lock is taken anew where the connection that held it was lost.

        False where another server has it, or had it meanwhile: from then on nothing is written here any more. Raises
        sqlalchemy's DBAPIError where the database does not answer.
        """
        if self._lock is None or not self._lock.keep():
            self._taken_over = True
        elif not self.sqlite and self._incarnation:
            with self.read() as connection:
                self._taken_over = get_meta(connection, "incarnation", "") != str(self._incarnation)
        return not self._taken_over

    def close(self) -> None:
        """Let go of the state."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self.engine.dispose()

    def _take_lock(self) -> StateLock:
        if self.sqlite:
            return FileLock(Path(str(self.engine.url.database)))
        try:
            return AdvisoryLock(self.engine)
        except DBAPIError as fault:
            raise self.fault(fault) from fault

    def _migrate(self) -> None:
        config = Config()
        with resources.as_file(resources.files("consortium.state") / "migrations") as scripts:
            config.set_main_option("script_location", str(scripts).replace("%", "%%"))
            config.attributes["engine"] = self.engine
            try:
                command.upgrade(config, "head")
            except CommandError as fault:
                raise ConfigError(
                    f"the state was written by another version of this program: {fault}",
                    where=self.engine.url.render_as_string(hide_password=True),
                    fix="run the newer version, or restore a backup from before it",
                ) from fault
            except DBAPIError as fault:
                raise self.fault(fault) from fault

    def fault(self, fault: DBAPIError) -> ConsortiumError:
        """Return the error that says what is wrong with the database, and what to do."""
        where = self.engine.url.render_as_string(hide_password=True)
        what, damaged = "the state cannot be opened", "restore the database from a backup"
        if isinstance(fault.orig, sqlite3.Error):
            return of_sqlite(fault.orig, what, where=where, damaged=damaged)
        if isinstance(fault, OperationalError | InterfaceError):
            return UnreachableError(
                f"the state database does not answer: {first_line(fault)}",
                where=where,
                fix="start PostgreSQL, or mend database_url",
            )
        return ConfigError(f"{what}: {first_line(fault)}", where=where, fix=damaged)


def get_meta(connection: Connection, key: str, default: str) -> str:
    """Return a small fact, or `default`."""
    value = connection.execute(select(t.meta.c.value).where(t.meta.c.key == key)).scalar()
    return default if value is None else str(value)


def put_meta(connection: Connection, key: str, value: str) -> None:
    """Store a small fact."""
    if not connection.execute(t.meta.update().where(t.meta.c.key == key).values(value=value)).rowcount:
        connection.execute(t.meta.insert().values(key=key, value=value))


def next_counter(connection: Connection) -> int:
    """Return the next epoch counter of this incarnation."""
    return next_counters(connection, 1)


def next_counters(connection: Connection, count: int) -> int:
    """Take the next `count` epoch counters of this incarnation and return the first."""
    last = int(get_meta(connection, "counter", "0"))
    put_meta(connection, "counter", str(last + count))
    return last + 1


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise ConfigError(
                f"database_url names {parsed.get_backend_name()!r}",
                fix="use sqlite:////path/state.db or postgresql+psycopg://user@host/name",
            )
        if parsed.get_backend_name() == "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise ConfigError("the state must be a file", where=url, fix="sqlite:////path/state.db")
            engine = create_engine(parsed, connect_args={"timeout": PATIENCE_S, "check_same_thread": False}, **POOL)
            event.listen(engine, "connect", _sqlite_connect)
            event.listen(engine, "begin", _sqlite_begin)
            return engine
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        patience = {name: value for name, value in POSTGRESQL.items() if name not in parsed.query}
        engine = create_engine(parsed, pool_pre_ping=True, connect_args=patience, **POOL)
        event.listen(engine, "connect", _postgresql_connect)
        return engine
    except ConsortiumError:
        raise
    except (ArgumentError, NoSuchModuleError, ValueError, ImportError) as fault:
        raise ConfigError(f"not a database URL: {first_line(fault)}", where="database_url") from fault


def _sqlite_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver's guess
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _postgresql_connect(connection: Any, _record: Any) -> None:
    for setting in _OTHER_END:
        connection.execute(f"SET {setting}")
    connection.commit()


def _sqlite_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("consortium_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def away(fault: BaseException) -> bool:
    """Whether the database did not answer, or its connection was lost: the same may work in a while."""
    if isinstance(fault, DBAPIError) and fault.connection_invalidated:
        return True
    return isinstance(fault, OperationalError | InterfaceError | PoolTimeoutError)


def first_line(fault: BaseException) -> str:
    """Return what a fault of the database says, without the statement that met it."""
    return (str(getattr(fault, "orig", None) or fault).splitlines() or [type(fault).__name__])[0]
