"""One child process: start it, see when it is ready, restart it with growing delays, end it with all it started."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from consortium.local import leftovers
from consortium.local.leftovers import Session

_PROBE_EVERY_S = 0.25
_LOOK_EVERY_S = 1.0
_STEADY_S = 60.0
"""A child that ran this long before it ended is restarted as quickly as the first time."""


class Probe(Protocol):
    """Anything that can tell whether a child is ready."""

    def ready(self) -> bool:
        """Ask once, without waiting long."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """A child process. Of those with equal `stage` all stop side by side; higher stages stop first."""

    name: str
    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The whole environment, secrets included; never printed."""
    cwd: Path | None = None
    stage: int = 0
    probe: Probe | None = None
    ready_s: float = 120.0
    """Time it may take to become ready before it is restarted."""
    grace_s: float = 5.0
    """Time it gets between SIGTERM and SIGKILL."""
    whole: Probe | None = None
    """Tells of a child that is ready whether it still is, where it may go on without a process that it started."""
    partial_s: float = 10.0
    """Time it may go on without before it is restarted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStatus:
    """What is known of a child. States: `starting ready waiting stopped`."""

    name: str
    state: str
    pid: int
    restarts: int
    ready_after_s: float
    """Seconds from the supervisor's start to readiness; 0 before."""
    note: str = ""


class Keeper(threading.Thread):
    """Keeps one child alive until told to stop. `changed` is called, from this thread, whenever the status changes."""

    def __init__(
        self,
        spec: ChildSpec,
        *,
        federation: str,
        changed: Callable[[ChildStatus], None],
        started: Callable[[Session], None],
        first_delay_s: float = 0.5,
        longest_delay_s: float = 30.0,
    ) -> None:
        super().__init__(name=f"keeper {spec.name}", daemon=True)
        self.spec = spec
        self._federation = federation
        self._changed = changed
        self._record = started
        self._delays = (first_delay_s, longest_delay_s)
        self._halt = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sessions: list[Session] = []
        self._born = self._halted = time.monotonic()
        self.status = ChildStatus(name=spec.name, state="starting", pid=0, restarts=0, ready_after_s=0.0)

    def run(self) -> None:
        """Start, watch, restart; return once halted."""
        failures = 0
        while not self._halt.is_set():
            begun = time.monotonic()
            note = self._live()
            self._bury()
            if self._halt.is_set():
                break
            failures = 0 if time.monotonic() - begun > _STEADY_S else failures
            delay = min(self._delays[0] * 2**failures, self._delays[1])
            failures += 1
            self._report("waiting", pid=0, note=f"{note}; restart in {delay:g} s", restarts=self.status.restarts + 1)
            self._halt.wait(delay)
        self._report("stopped", pid=0, note="")

    def halt(self) -> None:
        """Ask the child to end (SIGTERM to its process group); it is not started again."""
        self._halt.set()
        self._halted = time.monotonic()
        self._signal(signal.SIGTERM)

    def finish(self) -> None:
        """Wait for the rest of the halted child's grace period, then kill what is left of its session."""
        self.join(max(0.0, self._halted + self.spec.grace_s - time.monotonic()))
        if self.is_alive():
            self._signal(signal.SIGKILL)
            self.join(5.0)
        self._bury()

    def _live(self) -> str:
        """Start the child and wait until it has ended; return why, for people."""
        with self._lock:
            if self._halt.is_set():
                return ""
            try:
                process = self._process = self._spawn()
            except OSError as fault:
                return f"cannot be started: {fault.strerror}: {self.spec.argv[0]}"
        self._report("starting", pid=process.pid, note="")
        if not self._await_ready(process):
            if process.poll() is None and not self._halt.is_set():
                self._signal(signal.SIGKILL)
                process.wait()
                return f"was not ready within {self.spec.ready_s:g} s"
            return _ending(process.wait())
        self._report("ready", pid=process.pid, note="")
        if not self._await_end(process):
            self._signal(signal.SIGKILL)
            process.wait()
            return f"had lost a part of itself for {self.spec.partial_s:g} s"
        return _ending(process.wait())

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            **self.spec.env,
            leftovers.MARK: self._federation,
            leftovers.CHILD_MARK: self.spec.name,
        }
        with open(os.open(self.spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            process = subprocess.Popen(
                self.spec.argv,
                env=environment,
                cwd=self.spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with contextlib.suppress(psutil.NoSuchProcess):
            session = Session(child=self.spec.name, pid=process.pid, created=psutil.Process(process.pid).create_time())
            self._sessions = [session]
            self._record(session)
        return process

    def _await_ready(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether the child became ready before it ended, was halted, or took too long."""
        deadline = time.monotonic() + self.spec.ready_s
        while process.poll() is None and not self._halt.is_set() and time.monotonic() < deadline:
            if self.spec.probe is None or self.spec.probe.ready():
                return process.poll() is None
            self._halt.wait(_PROBE_EVERY_S)
        return False

    def _await_end(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the child's end; false where it lacks a part of itself for too long instead."""
        whole, lost_at = self.spec.whole, math.inf
        while whole is not None and process.poll() is None and not self._halt.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_EVERY_S)
            lost_at = math.inf if whole.ready() else min(lost_at, time.monotonic())
            if time.monotonic() - lost_at > self.spec.partial_s and process.poll() is None:
                return False
        process.wait()
        return True

    def _signal(self, number: signal.Signals) -> None:
        with self._lock, contextlib.suppress(ProcessLookupError, PermissionError):
            if self._process is not None and self._process.returncode is None:
                os.killpg(self._process.pid, number)

    def _bury(self) -> None:
        """Kill whatever the ended child left behind, so that no next one meets it."""
        leftovers.end(lambda: leftovers.find(self._federation, self._sessions, self.spec.name))

    def _report(self, state: str, *, pid: int, note: str, restarts: int | None = None) -> None:
        ready_after = self.status.ready_after_s
        if state == "ready" and not ready_after:
            ready_after = round(time.monotonic() - self._born, 1)
        self.status = ChildStatus(
            name=self.spec.name,
            state=state,
            pid=pid,
            restarts=self.status.restarts if restarts is None else restarts,
            ready_after_s=ready_after,
            note=note,
        )
        self._changed(self.status)


def _ending(code: int) -> str:
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with exit code {code}"
