"""The supervisor: all children of one embedded federation, side by side, until told to stop.

Run as `python -m consortium.local.supervisor FEDERATION_DIR [START_LOCK]`. Its standard input is its lifeline: when the
program that started it dies, the pipe closes and everything stops, unless that program said `detach` before. START_LOCK
is the descriptor of the lock that keeps others from starting one; it is closed once the home's lock is held.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from consortium.errors import ConsortiumError
from consortium.local import leftovers
from consortium.local.identities import renew_tokens
from consortium.local.keeper import ChildSpec, ChildStatus, Keeper
from consortium.local.leftovers import Session
from consortium.local.lock import HomeLock
from consortium.local.paths import FederationDir, home, read_json, write_json

REWRITE_S = 5.0
"""How often it is tried again to write what a full disk did not take."""
RENEW_S = 3600.0
"""How often it is looked whether tokens are to be renewed; they are with two weeks left."""


class Supervisor:
    """Starts all children at once and stops them by stages; everything it learns goes to `publish` and `say`.

    Where `publish` or `record` cannot write, it goes on without: the children are not to suffer from a full disk.
    """

    def __init__(
        self,
        children: Iterable[ChildSpec],
        *,
        federation: str,
        say: Callable[[str], None],
        publish: Callable[[list[ChildStatus]], None],
        record: Callable[[list[Session]], None],
    ) -> None:
        self._say = say
        self._publish = publish
        self._record = record
        self._federation = federation
        self._lock = threading.Lock()
        self._sessions: list[Session] = []
        self._late: list[Callable[[], None]] = []
        """What is to be written again, because it could not be."""
        self._keepers = [
            Keeper(spec, federation=federation, changed=self._changed, started=self._started) for spec in children
        ]

    def start(self) -> None:
        """Start every child."""
        for keeper in self._keepers:
            keeper.start()

    def statuses(self) -> list[ChildStatus]:
        """Return the state of every child."""
        return [keeper.status for keeper in self._keepers]

    def stop(self) -> None:
        """Stop all children, the highest stage first, then kill whatever of the federation is left."""
        for stage in sorted({keeper.spec.stage for keeper in self._keepers}, reverse=True):
            batch = [keeper for keeper in self._keepers if keeper.spec.stage == stage]
            for keeper in batch:
                keeper.halt()
            for keeper in batch:
                keeper.finish()
        ended = leftovers.end(lambda: leftovers.find(self._federation, self._sessions))
        if ended:
            self._say(f"killed {len(ended)} processes that had outlived their parents")
        with self._lock:
            self._sessions = []
            self._try(self._record_sessions)

    def rewrite(self) -> None:
        """Write what could not be written before."""
        with self._lock:
            for write in tuple(self._late):
                self._try(write)

    def _changed(self, status: ChildStatus) -> None:
        with self._lock:
            if status.state == "waiting":
                self._say(f"{status.name} {status.note}")
            elif status.state == "ready" and status.restarts:
                self._say(f"{status.name} is ready again")
            self._try(self._publish_statuses)

    def _started(self, session: Session) -> None:
        with self._lock:
            self._sessions = [s for s in self._sessions if s.child != session.child] + [session]
            self._try(self._record_sessions)

    def _record_sessions(self) -> None:
        self._record(self._sessions)

    def _publish_statuses(self) -> None:
        self._publish(self.statuses())

    def _try(self, write: Callable[[], None]) -> None:
        """Write, or leave it for later; that is said once."""
        try:
            write()
        except OSError as fault:
            if not self._late:
                self._say(f"how the children stand cannot be written: {fault.strerror or fault}; they are kept alive")
            if write not in self._late:
                self._late.append(write)
        else:
            if write in self._late:
                self._late.remove(write)


def read_sessions(directory: FederationDir) -> list[Session]:
    """Return the children recorded at the last run; empty after a clean stop."""
    if not directory.sessions_file.exists():
        return []
    return [Session(**entry) for entry in read_json(directory.sessions_file)["sessions"]]


def bury(directory: FederationDir) -> list[int]:
    """Kill what is left of a federation whose supervisor has died; return the pids."""
    federation = str(directory.federation()["id"])
    sessions = read_sessions(directory)
    ended = leftovers.end(lambda: leftovers.find(federation, sessions))
    directory.sessions_file.unlink(missing_ok=True)
    return ended


def main(argv: list[str]) -> int:
    """Supervise the federation in `argv[0]` until SIGTERM, SIGINT or the end of the lifeline."""
    from consortium.local.children import plan

    directory = FederationDir(root=Path(argv[0]))
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    log = open(  # noqa: SIM115  stays open until the process ends
        os.open(directory.log("supervisor"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8"
    )
    voice = _Voice(log)
    try:
        with HomeLock(home(), directory.root) as held:
            if len(argv) > 1:
                os.close(int(argv[1]))
            bury(directory)
            threading.Thread(target=_lifeline, args=(stopping,), daemon=True).start()
            _serve(directory, plan(directory), stopping, voice, held.leave)
    except ConsortiumError as fault:
        voice.note(fault.render())
        return fault.exit_code
    return 0


def _serve(
    directory: FederationDir,
    children: list[ChildSpec],
    stopping: threading.Event,
    voice: _Voice,
    leave: Callable[[], None],
) -> None:
    begun = int(time.time() * 1000)

    def publish(statuses: list[ChildStatus], phase: str = "running") -> None:
        rows = {status.name: dataclasses.asdict(status) for status in statuses}
        body = {"pid": os.getpid(), "started_ms": begun, "phase": phase, "children": rows}
        write_json(directory.status_file, body)

    def record(sessions: list[Session]) -> None:
        write_json(directory.sessions_file, {"sessions": [dataclasses.asdict(s) for s in sessions]})

    supervisor = Supervisor(
        children, federation=str(directory.federation()["id"]), say=voice.say, publish=publish, record=record
    )
    voice.note(f"federation {directory.name}: {len(children)} children, pid {os.getpid()}")
    try:
        supervisor.start()
        renewal_s = 0.0
        while not stopping.wait(REWRITE_S):
            supervisor.rewrite()
            if time.monotonic() >= renewal_s:
                renewal_s = time.monotonic() + RENEW_S
                _renew(directory, voice)
    finally:
        leave()
        voice.note("stopping")
        supervisor.stop()
    with contextlib.suppress(OSError):
        publish(supervisor.statuses(), "stopped")
    voice.note("stopped")


def _renew(directory: FederationDir, voice: _Voice) -> None:
    try:
        if renew_tokens(directory, int(time.time() * 1000)):
            voice.note("fresh tokens were written for everybody")
    except (ConsortiumError, OSError) as fault:
        voice.note(f"tokens cannot be renewed, which is tried again: {fault}")


def _lifeline(stopping: threading.Event) -> None:
    while heard := os.read(0, 64):
        if b"detach" in heard:
            # Whoever reads the starter's standard error must see its end, not wait for ours.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            return
    stopping.set()


class _Voice:
    """Writes to the supervisor's log, and what users should see to standard error as well."""

    def __init__(self, log: TextIO) -> None:
        self._log = log

    def note(self, text: str) -> None:
        """Write to the log."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        with contextlib.suppress(OSError):  # a full disk; what was not written goes with the next note
            self._log.write(f"{stamp} {text}\n")
            self._log.flush()

    def say(self, text: str) -> None:
        """Write to the log and to standard error."""
        self.note(text)
        with contextlib.suppress(OSError):
            os.write(2, f"{text}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
