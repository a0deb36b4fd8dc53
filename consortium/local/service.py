"""The embedded federation as a service: start it in the background, wait until it works, stop it, leave nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from consortium.config import default_dirs
from consortium.errors import ConflictError, ConsortiumError, JobFailedError, NotFoundError
from consortium.local import lock
from consortium.local.children import clean_environment
from consortium.local.layout import Prepared, drop_ray_tmp, prepare
from consortium.local.paths import FederationDir, home, make_home, read_json, unusable
from consortium.local.supervisor import bury

Say = Callable[[str], None]
START_S = 240.0
_STOP_S = 60.0
_POLL_S = 0.2
_SUPERVISOR = "consortium.local.supervisor"
_LOOK_S = 1.0
"""How long a supervisor may take between its lock and its pid in there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A federation that this program started. Leaving the `with` block stops it, unless it was detached before."""

    prepared: Prepared
    process: subprocess.Popen[bytes]
    home: Path
    """Where it was started, whatever `$CONSORTIUM_HOME` says later."""

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        pipe = self.process.stdin
        if pipe is not None and not pipe.closed:
            self.stop()

    @property
    def directory(self) -> FederationDir:
        """Its directory."""
        return self.prepared.directory

    def detach(self) -> None:
        """Leave it running when this program ends."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"detach\n")
        self.process.stdin.close()

    def stop(self) -> None:
        """Stop everything, and wait until it has."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(ConflictError), lock.start_lock(self.home):  # who holds that lock sees to leftovers
            _clear(self.directory, self.home)


def start(directory: FederationDir, say: Say, *, server_port: int | None = None) -> Running:
    """Prepare the directory and start its supervisor; return at once, before its children are ready.

    Waits for one that is being stopped. Raises ConflictError where a federation runs already in this home, ConfigError
    for bad configs or a home that cannot be written.
    """
    here = make_home()
    _await_end(here, say)
    with lock.start_lock(here) as starting:  # the supervisor inherits it, and lets go once it holds the home's lock
        if lock.holder(here):
            raise lock.running_already(here)
        try:
            leftovers = _clear_all(here, directory)
            if leftovers:
                say(f"stopped {len(leftovers)} processes left over from a start that was killed")
            prepared = prepare(directory, default_dirs(), now_ms=int(time.time() * 1000), server_port=server_port)
            directory.status_file.unlink(missing_ok=True)
            directory.make_current()
        except OSError as fault:
            raise unusable(fault) from fault
        process = subprocess.Popen(
            [sys.executable, "-m", _SUPERVISOR, str(directory.root), str(starting)],
            env=_supervisor_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(starting,),
        )
    return Running(prepared=prepared, process=process, home=here)


def await_ready(running: Running, say: Say) -> None:
    """Return once every child is ready and the server sees every site at work, saying what became ready when.

    Raises JobFailedError naming the child, why, and its log; ConflictError where another supervisor came first.
    """
    begun = time.monotonic()
    told: set[str] = set()
    while True:
        status = children(running.directory)
        for name, row in sorted(status.items(), key=lambda item: item[1]["ready_after_s"]):
            if row["state"] == "ready" and name not in told:
                told.add(name)
                say(f"  {row['ready_after_s']:5.1f} s  {name}")
        if status and len(told) == len(status) and all(row["state"] == "ready" for row in status.values()):
            break
        _check_alive(running, status, time.monotonic() - begun)
        time.sleep(_POLL_S)
    _await_sites(running, max(START_S - (time.monotonic() - begun), 10.0))
    say(f"  {time.monotonic() - begun:5.1f} s  all sites at work")


def stop(say: Say) -> bool:
    """Stop the running federation of this home, or bury what a killed one left; return whether there was anything.

    Waits for one that is just starting. Raises ConflictError where it cannot be told which process runs it.
    """
    here = home()
    if not lock.holder(here) and not here.is_dir():
        return False
    with lock.start_lock(here):
        running = _find_supervisor(here)
        if running:
            supervisor, directory = running
            say(f"stopping {directory.name}")
            _end(supervisor)
        try:
            left = _clear_all(here, FederationDir.current())
        except NotFoundError:
            left = _clear_all(here, None)
    if left:
        say(f"stopped {len(left)} processes that a killed supervisor left behind")
    return bool(running or left)


def children(directory: FederationDir) -> dict[str, dict[str, Any]]:
    """Return the supervisor's view of each child; empty before it has one."""
    if not directory.status_file.exists():
        return {}
    rows: dict[str, dict[str, Any]] = read_json(directory.status_file)["children"]
    return rows


def tail(path: Path, lines: int = 5) -> str:
    """Return the last lines of a log, indented, for people."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join("    " + line for line in text.splitlines()[-lines:])


def _supervisor_environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("CONSORTIUM_HOME", "CONSORTIUM_CONFIGS") if name in os.environ}
    return clean_environment() | kept


def _clear(directory: FederationDir, here: Path) -> list[int]:
    """Kill what an ended supervisor left of a federation, unless another works on it; return the pids.

    Only while holding the start lock: nobody must begin to start it meanwhile.
    """
    running = lock.holder(here)
    if running and (not running[0] or running[1] == str(directory.root)):
        return []
    if not directory.federation_file.exists():
        return []
    left = bury(directory)
    drop_ray_tmp(directory)
    return left


def _clear_all(here: Path, named: FederationDir | None) -> list[int]:
    """Kill what ended supervisors left of all federations of this home; return the pids.

    Each demo is a federation of its own: what a killed one left is not found by the name of the next. One that cannot
    be read is passed over, unless it is the one that was named.
    """
    killed: list[int] = []
    for path in sorted((here / "federations").glob("*/federation.json")):
        directory = FederationDir(root=path.parent)
        try:
            killed += _clear(directory, here)
        except ConsortiumError:
            if named is not None and directory.root == named.root:
                raise
    return killed


def _await_end(here: Path, say: Say) -> None:
    """Wait for a supervisor that stops everything: that takes it some seconds, also where its starter was killed."""
    deadline = time.monotonic() + _STOP_S
    told = ""
    while (root := lock.stopping(here)) and time.monotonic() < deadline:
        if root != told:
            told = root
            say(f"waiting until {Path(root).name} has stopped")
        time.sleep(_POLL_S)


def _find_supervisor(here: Path) -> tuple[psutil.Process, FederationDir] | None:
    """Return the running supervisor of this home and its federation, or None where none runs.

    The lock may not tell yet who holds it, or tell who held it before: then it is looked at again for a moment.
    """
    deadline = time.monotonic() + _LOOK_S
    while running := lock.holder(here):
        pid, root = running
        supervisor = _supervisor_of(pid, root)
        if supervisor is not None:
            return supervisor, FederationDir(root=Path(root))
        if time.monotonic() > deadline:
            raise ConflictError(
                "it cannot be told which process runs the embedded federation here: no supervisor holds its lock",
                where=str(here / "lock"),
                fix="try again in a moment, or end the process that holds it",
            )
        time.sleep(_POLL_S)
    return None


def _supervisor_of(pid: int, root: str) -> psutil.Process | None:
    """Return process `pid` if it is the supervisor of the federation in `root`."""
    if pid <= 1:  # to a signal that is a whole process group, or the machine's first process
        return None
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
    except psutil.Error:
        return None
    return process if _SUPERVISOR in words and root in words else None


def _check_alive(running: Running, status: dict[str, dict[str, Any]], waited_s: float) -> None:
    log = running.directory.log
    if running.process.poll() is not None:
        if lock.holder(running.home):
            raise lock.running_already(running.home)
        path = log("supervisor")
        raise JobFailedError(f"the supervisor ended:\n{tail(path)}", where=str(path))
    failing = [name for name, row in sorted(status.items()) if row["restarts"] >= 3 and row["state"] != "ready"]
    late = [name for name, row in sorted(status.items()) if row["state"] != "ready"] if waited_s > START_S else []
    for name in failing or late:
        what = status[name]["note"] or "is not ready"
        raise JobFailedError(f"{name} {what}; the end of its log:\n{tail(log(name))}", where=str(log(name)))
    if waited_s > START_S:
        raise JobFailedError(f"not ready after {START_S:g} s", where=str(log("supervisor")))


def _await_sites(running: Running, timeout_s: float) -> None:
    """Wait until the server has heard from every site and every site's Ray cluster answers."""
    from consortium.client import Client

    known = running.directory.client()
    token = Path(known["token_paths"][known["default_person"]]).read_text().strip()
    expected = set(running.prepared.federation["sites"])
    since_ms = running.prepared.federation["started_ms"]
    deadline = time.monotonic() + timeout_s
    missing = "no site has called"
    with Client(known["server_url"], token) as client:
        while time.monotonic() < deadline:
            try:
                rows = {row["id"]: row for row in client.sites() if row["last_contact_ms"] >= since_ms}
            except ConsortiumError as fault:
                missing = fault.what
            else:
                silent = sorted(site for site in expected if not rows.get(site, {}).get("healthy"))
                if not silent:
                    return
                missing = "no word from " + ", ".join(
                    f"{site} ({reason})" if (reason := rows.get(site, {}).get("unhealthy_reason")) else site
                    for site in silent
                )
            time.sleep(_POLL_S)
    raise JobFailedError(f"after {timeout_s:.0f} s: {missing}", where=str(running.directory.root / "logs"))


def _end(supervisor: psutil.Process) -> None:
    """Tell the supervisor to end, and wait until it has; kill it when it does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        supervisor.terminate()
        try:
            supervisor.wait(_STOP_S)
        except psutil.TimeoutExpired:
            supervisor.kill()
            supervisor.wait(5)
