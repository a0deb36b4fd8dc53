"""One running federation per home: a lock file that the kernel releases however its holder ends."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType

from consortium.errors import ConflictError
from consortium.local.paths import unusable


class HomeLock:
    """Held by the supervisor while it lives. Entering raises ConflictError where another one lives.

    ConfigError where nothing can be written there.
    """

    def __init__(self, home: Path, root: Path) -> None:
        self._path = home / "lock"
        self._root = root
        self._descriptor = -1

    def __enter__(self) -> HomeLock:
        """Take the lock and say in it who holds it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as fault:
            raise unusable(fault) from fault
        try:
            self._take()
        except BlockingIOError as fault:
            os.close(self._descriptor)
            running = holder(self._path.parent)
            raise ConflictError(
                "an embedded federation is running already",
                where=f"{running[1]}, supervisor pid {running[0]}" if running else str(self._path),
                fix="use it, or stop it: consortium down",
            ) from fault
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps({"pid": os.getpid(), "root": str(self._root)}).encode(), 0)
        return self

    def _take(self) -> None:
        """Take the lock; insist for a second, because `holder` also takes it for an instant to look."""
        deadline = time.monotonic() + 1.0
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)


def holder(home: Path) -> tuple[int, str] | None:
    """Return pid and federation directory of the running supervisor, or None where none runs.

    Raises ConfigError where its lock cannot be looked at.
    """
    path = home / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise unusable(fault) from fault
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    finally:
        os.close(descriptor)
    return None


def _read(descriptor: int) -> tuple[int, str]:
    try:
        body = json.loads(os.pread(descriptor, 4096, 0))
        return int(body["pid"]), str(body["root"])
    except (ValueError, KeyError):
        return 0, "a federation that is just starting or stopping"
