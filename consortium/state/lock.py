"""One server per state: a lock that the operating system or PostgreSQL gives back when its holder dies."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from consortium.errors import ConfigError, ConflictError

log = logging.getLogger(__name__)
ADVISORY_KEY = 0x636F6E73
"""The advisory lock of a consortium server in a PostgreSQL database ("cons")."""
WRITE_KEY = ADVISORY_KEY + 1
"""The transaction-scoped lock that makes writers take turns."""


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
    """A PostgreSQL session lock, held on a connection of its own. It is gone once that connection is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        if not self._take():
            raise ConflictError(
                "another server runs on this state",
                where=engine.url.render_as_string(hide_password=True),
                fix="stop it first, or give this server a database of its own",
            )

    def keep(self) -> bool:
        """Whether it is held still, or taken anew where its connection was lost; False where somebody else holds it.

        Raises sqlalchemy's DBAPIError where the database does not answer.
        """
        if self._connection is not None:
            try:
                self._connection.execute(text("SELECT 1"))
                self._connection.commit()
                return True
            except DBAPIError as fault:
                log.warning("the connection that held the state's lock is lost: %s", fault.orig)
                self._drop()
        return self._take()

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
                self._connection = connection
                undo.pop_all()
        return bool(got)

    def _drop(self) -> None:
        """Let go of a connection that is of no use: nobody else gets it from the pool."""
        if self._connection is not None:
            self._connection.invalidate()
            self._connection.close()
            self._connection = None
