"""One running federation per home, and one command at a time that starts or buries one.

Both are lock files that the kernel releases however their holder ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from consortium.errors import ConflictError
from consortium.local.paths import unusable

_LOOK_S = 1.0
"""How long to insist on the supervisor's lock: `holder` also takes it for an instant to look."""
_BODY_BYTES = 4096
"""What the lock says is written over at this length, so that nobody reads half of it."""
_START_S = 30.0
"""How long to wait for another command that starts or buries a federation: much longer than that takes."""


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
            _take(self._descriptor, _LOOK_S)
            os.ftruncate(self._descriptor, 0)
            self._say(stopping=False)
        except BlockingIOError as fault:
            os.close(self._descriptor)
            raise running_already(self._path.parent) from fault
        except OSError as fault:
            os.close(self._descriptor)
            raise unusable(fault) from fault
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def leave(self) -> None:
        """Say in the lock that its holder stops everything and ends."""
        with contextlib.suppress(OSError):  # a full disk; who comes next is told that it runs
            self._say(stopping=True)

    def _say(self, *, stopping: bool) -> None:
        body = {"pid": os.getpid(), "root": str(self._root), "stopping": stopping}
        os.pwrite(self._descriptor, json.dumps(body).encode().ljust(_BODY_BYTES), 0)


@contextmanager
def start_lock(home: Path) -> Iterator[int]:
    """Hold the right to start a federation in this home or to bury one; yields the lock's descriptor.

    A supervisor that inherits the descriptor holds on to the lock until it closes it. Waits for another command that
    starts or buries one. Raises ConflictError where that takes too long, ConfigError where nothing can be written.
    """
    path = home / "start.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as fault:
        raise unusable(fault) from fault
    try:
        try:
            _take(descriptor, _START_S)
        except BlockingIOError as fault:
            what = "another command is starting or stopping an embedded federation here"
            raise ConflictError(what, where=str(path), fix="wait until it has, or end it") from fault
        yield descriptor
    finally:
        os.close(descriptor)


def running_already(home: Path) -> ConflictError:
    """Return the error for a home in which a federation runs."""
    running = holder(home)
    return ConflictError(
        "an embedded federation is running already",
        where=f"{running[1]}, supervisor pid {running[0]}" if running and running[0] else str(home / "lock"),
        fix="use it, or stop it: consortium down",
    )


def holder(home: Path) -> tuple[int, str] | None:
    """Return pid and federation directory of the running supervisor, or None where none runs.

    While it is just starting or stopping the pid may be 0, or that of a supervisor before it. Raises ConfigError where
    its lock cannot be looked at.
    """
    body = _held(home)
    if body is None:
        return None
    try:
        return int(body["pid"]), str(body["root"])
    except (ValueError, KeyError, TypeError):
        return 0, "a federation that is just starting or stopping"


def stopping(home: Path) -> str:
    """Return the federation directory of a supervisor that stops everything and ends; empty where none does."""
    body = _held(home) or {}
    return str(body.get("root", "")) if body.get("stopping") else ""


def _held(home: Path) -> dict[str, Any] | None:
    """Return what the lock says while it is held, None where nobody holds it."""
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


def _read(descriptor: int) -> dict[str, Any]:
    try:
        body = json.loads(os.pread(descriptor, _BODY_BYTES, 0))
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _take(descriptor: int, within_s: float) -> None:
    """Take a lock. Raises BlockingIOError where somebody else holds it for so long."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
