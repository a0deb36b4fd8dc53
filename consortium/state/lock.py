"""One server per state: a lock that the operating system or PostgreSQL gives back when its holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Protocol

from sqlalchemy import Engine, text

from consortium.errors import ConfigError, ConflictError

ADVISORY_KEY = 0x636F6E73
"""The advisory lock of a consortium server in a PostgreSQL database ("cons")."""
WRITE_KEY = ADVISORY_KEY + 1
"""The transaction-scoped lock that makes writers take turns."""


class StateLock(Protocol):
    """A held lock."""

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
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Give it back."""
        os.close(self._fd)


class AdvisoryLock:
    """A PostgreSQL session lock, held on a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect()
        got = self._connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": ADVISORY_KEY}).scalar()
        self._connection.commit()
        if not got:
            self._connection.close()
            raise ConflictError(
                "another server runs on this state",
                where=engine.url.render_as_string(hide_password=True),
                fix="stop it first, or give this server a database of its own",
            )

    def release(self) -> None:
        """Give it back."""
        self._connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": ADVISORY_KEY})
        self._connection.commit()
        self._connection.close()
