"""Finding and ending the processes of one federation, and only those.

Every child is started in a session of its own, with `CONSORTIUM_FEDERATION` in its environment. A process belongs to
the federation if its environment says so, if it is in the session of a recorded child (Ray's workers overwrite their
environment with a title), or if it descends from one that belongs.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

MARK = "CONSORTIUM_FEDERATION"
CHILD_MARK = "CONSORTIUM_CHILD"
_SAME_START_S = 2.0
"""Creation times are reckoned from the boot time, which shifts when the clock is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A child as it was started: its pid is its session's id; the creation time tells it from a later namesake."""

    child: str
    pid: int
    created: float


def find(federation: str, sessions: Iterable[Session] = (), child: str | None = None) -> list[psutil.Process]:
    """Return the live processes of `federation`, of one `child` where named, this process excepted; by pid."""
    known = {s.pid: s for s in sessions if child is None or s.child == child}
    mine: dict[int, psutil.Process] = {}
    offspring: dict[int, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        offspring.setdefault(_parent(process), []).append(process)
        if _belongs(process, federation, known, child):
            mine[process.pid] = process
    unseen = list(mine)
    while unseen:
        for process in offspring.get(unseen.pop(), []):
            if process.pid not in mine and not _is_zombie(process):
                mine[process.pid] = process
                unseen.append(process.pid)
    mine.pop(os.getpid(), None)
    return [mine[pid] for pid in sorted(mine)]


def end(look: Callable[[], list[psutil.Process]], timeout_s: float = 10.0) -> list[int]:
    """Kill what `look` finds until it finds nothing; return the pids killed.

    One that does not end within `timeout_s` (stuck in the kernel) is left, and not returned.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + timeout_s
    while (found := look()) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.add(process.pid)
        psutil.wait_procs(found, timeout=0.2)
    return sorted(killed - {process.pid for process in found})


def federations_alive() -> dict[str, list[int]]:
    """Return the pids per federation id of all processes of this user that carry a mark."""
    alive: dict[str, list[int]] = {}
    for process in psutil.process_iter():
        mark = _environment(process).get(MARK)
        if mark:
            alive.setdefault(mark, []).append(process.pid)
    return {mark: sorted(pids) for mark, pids in sorted(alive.items())}


def _belongs(process: psutil.Process, federation: str, known: dict[int, Session], child: str | None) -> bool:
    environment = _environment(process)
    if environment.get(MARK) == federation and child in (None, environment.get(CHILD_MARK)):
        return not _is_zombie(process)
    try:
        session = known.get(os.getsid(process.pid))
        if session is None or _reused(session) or _is_zombie(process):
            return False
        return process.create_time() >= session.created - _SAME_START_S
    except (OSError, psutil.Error):
        return False


def _reused(session: Session) -> bool:
    """Whether the session's id is now that of a stranger."""
    try:
        return abs(psutil.Process(session.pid).create_time() - session.created) > _SAME_START_S
    except psutil.Error:
        return False


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return -1


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True
