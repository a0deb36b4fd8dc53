"""One server per state: a lock that the operating system or PostgreSQL gives back when its holder dies."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Row, text
from sqlalchemy.exc import DBAPIError

from consortium.errors import ConfigError, ConflictError, UnreachableError

log = logging.getLogger(__name__)
ADVISORY_KEY = 0x636F6E73
"""The advisory lock of a consortium server in a PostgreSQL database ("cons")."""
WRITE_KEY = ADVISORY_KEY + 1
"""The transaction-scoped lock that makes writers take turns."""


_BACKEND = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_HOLDER = """
SELECT pid, backend_start FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = :key AND objsubid = 1
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_END_MS = 5_000
"""How long PostgreSQL is given to end a session that this server lost."""


class StateLock(Protocol):
    """A held lock."""

    def keep(self) -> bool:
        """Whether it is held still, or again; False where somebody else holds it."""

    def release(self) -> None:
        """Give it back."""


class FileLock:
    """`flock` on a file beside the SQLite database; the file names the holder's process id."""

    def __init__(self, database: Path) -> None:
        path = database.with_name(database.name + ".lock")
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as fault:
            raise ConfigError(
                f"cannot open the state: {fault.strerror}",
                where=str(path),
                fix="make the directory of database_url and let the server write to it",
            ) from fault
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as fault:
            holder = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            raise ConflictError(
                f"another server (process {holder}) runs on this state",
                where=str(database),
                fix="stop it first, or give this server a database_url of its own",
            ) from fault
        with suppress(OSError):  # on a full disk the next message names no process
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()}\n".encode())

    def keep(self) -> bool:
        """Whether it is held still: as long as this process lives."""
        return True

    def release(self) -> None:
        """Give it back."""
        os.close(self._fd)


class AdvisoryLock:
    """A PostgreSQL session lock, held on a connection of its own. It is gone once both ends know that this one is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._backend: Row[Any] | None = None
        """PostgreSQL's side of the connection that holds it, or held it last: process id and time of its start."""
        if not self._take():
            raise ConflictError(
                "another server runs on this state",
                where=engine.url.render_as_string(hide_password=True),
                fix="stop it first, or give this server a database of its own",
            )

    def keep(self) -> bool:
        """Whether it is held still, or taken anew where its connection was lost; False where somebody else holds it.

        Raises sqlalchemy's DBAPIError where the database does not answer, UnreachableError where it does not end the
        session of the lost connection.
        """
        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT 1"))
                self._connection.commit()
                return True
            except DBAPIError as fault:
                log.warning("the connection that held the state's lock is lost: %s", fault.orig)
                self._drop()
        return self._take() or (self._end_own() and self._take())

    def release(self) -> None:
        """Give it back, unless it is gone already."""
        if self._connection is None:
            return
        try:
            self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_KEY})
            self._connection.commit()
            self._connection.close()
        except DBAPIError as fault:
            log.warning("the state's lock was gone before it was given back: %s", fault.orig)
            self._drop()

    def _take(self) -> bool:
        with ExitStack() as undo:
            connection = undo.enter_context(self._engine.connect())
            got = connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_KEY}).scalar()
            connection.commit()
            if got:
                self._backend = connection.execute(text(_BACKEND)).one()
                connection.commit()
                self._connection = connection
                undo.pop_all()
        return bool(got)

    def _end_own(self) -> bool:
        """End the session of the lost connection where it is what holds the lock; False where somebody else does.

        After a cut of the network PostgreSQL may take hours to notice that nobody is at the other end.
        """
        with self._engine.connect() as connection:
            if self._backend is None or self._backend not in connection.execute(text(_HOLDER), {"key": ADVISORY_KEY}):
                return False
            asked = {"pid": self._backend.pid, "most_ms": _END_MS}
            if not connection.execute(text("SELECT pg_terminate_backend(:pid, :most_ms)"), asked).scalar():
                raise UnreachableError("PostgreSQL does not end the lost session that holds the state's lock")
        log.warning("PostgreSQL held that connection's session still; it was ended")
        return True

    def _drop(self) -> None:
        """Let go of a connection that is of no use: nobody else gets it from the pool."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
