"""The supervisor with small real child processes: readiness, restarts with backoff, clean stops, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from consortium.errors import ConflictError
from consortium.local import leftovers
from consortium.local.keeper import ChildSpec, ChildStatus, Keeper
from consortium.local.leftovers import Session
from consortium.local.lock import HomeLock, holder
from consortium.local.paths import FederationDir, read_json, write_json
from consortium.local.ports import free_ports
from consortium.local.probes import HttpProbe, ListenProbe
from consortium.local.supervisor import Supervisor, _Voice, read_sessions
from tests.disk import no_room

SLEEPER = "import time\nwhile True: time.sleep(60)"
FAMILY = f"""
import os, subprocess, sys, time
env = {{k: v for k, v in os.environ.items() if not k.startswith("CONSORTIUM_")}}
hidden = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], env=env)
marked = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True)
open("pids", "w").write(f"{{hidden.pid}} {{marked.pid}}")
while True: time.sleep(60)
"""


class Watch:
    """A supervisor under test, and everything it said."""

    def __init__(self, tmp_path: Path, *specs: ChildSpec, federation: str) -> None:
        self.folder = tmp_path
        self.federation = federation
        self.said: list[str] = []
        self.sessions: list[Session] = []
        self.supervisor = Supervisor(
            specs,
            federation=federation,
            say=self.said.append,
            publish=lambda statuses: None,
            record=self._record,
        )

    def _record(self, sessions: list[Session]) -> None:
        self.sessions = sessions

    def status(self, name: str) -> ChildStatus:
        return next(status for status in self.supervisor.statuses() if status.name == name)


@pytest.fixture
def federation() -> Iterator[str]:
    """A mark of this test's own; whatever still carries it at the end is killed."""
    mark = f"test-{os.getpid()}-{time.monotonic_ns()}"
    yield mark
    leftovers.end(lambda: leftovers.find(mark))


def child(tmp_path: Path, code: str, name: str = "child", **more: object) -> ChildSpec:
    spec = ChildSpec(
        name=name,
        argv=(sys.executable, "-c", textwrap.dedent(code)),
        env=dict(os.environ),
        cwd=tmp_path,
        log=tmp_path / f"{name}.log",
        grace_s=2.0,
    )
    return replace(spec, **more)  # type: ignore[arg-type]


def test_a_child_that_dies_is_restarted_and_said_so(tmp_path: Path, federation: str, wait: Callable) -> None:
    watch = Watch(tmp_path, child(tmp_path, SLEEPER), federation=federation)
    watch.supervisor.start()
    try:
        wait(lambda: watch.status("child").state == "ready", "ready")
        first = watch.status("child").pid
        os.kill(first, signal.SIGKILL)
        wait(lambda: watch.status("child").state == "ready" and watch.status("child").pid != first, "ready again")
        assert watch.status("child").restarts == 1
        assert "child was ended by SIGKILL; restart in 0.5 s" in watch.said
        assert "child is ready again" in watch.said
    finally:
        watch.supervisor.stop()
    assert not psutil.pid_exists(first)
    assert watch.sessions == []


def test_a_child_that_loses_a_part_of_itself_is_restarted(tmp_path: Path, federation: str, wait: Callable) -> None:
    """As `ray start --block` does whose raylet was ended by SIGTERM: it goes on without."""
    port = free_ports(1)[0]
    part = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    code = f"""
        import subprocess, sys, time
        part = subprocess.Popen([sys.executable, "-c", {part!r}])
        open("part", "w").write(str(part.pid))
        while True: time.sleep(60)
    """
    listens = ListenProbe(ports=(port,))
    watch = Watch(tmp_path, child(tmp_path, code, probe=listens, whole=listens, partial_s=0.2), federation=federation)
    watch.supervisor.start()
    try:
        wait(lambda: watch.status("child").state == "ready", "ready")
        first = watch.status("child").pid
        os.kill(int((tmp_path / "part").read_text()), signal.SIGTERM)
        wait(lambda: watch.status("child").state == "ready" and watch.status("child").pid != first, "ready again")
        assert "child had lost a part of itself for 0.2 s; restart in 0.5 s" in watch.said
    finally:
        watch.supervisor.stop()


def test_restart_delays_double_up_to_a_limit(tmp_path: Path, federation: str, wait: Callable) -> None:
    notes: list[str] = []

    def changed(status: ChildStatus) -> None:
        if status.state == "waiting":
            notes.append(status.note)

    keeper = Keeper(
        child(tmp_path, "raise SystemExit(3)"),
        federation=federation,
        changed=changed,
        started=lambda session: None,
        first_delay_s=0.01,
        longest_delay_s=0.04,
    )
    keeper.start()
    wait(lambda: len(notes) >= 5, "five restarts")
    keeper.halt()
    keeper.finish()
    delays = [note.split("restart in ")[1] for note in notes[:5]]
    assert delays == ["0.01 s", "0.02 s", "0.04 s", "0.04 s", "0.04 s"]
    assert notes[0].startswith("ended with exit code 3")


def test_a_program_that_is_not_there_is_named(tmp_path: Path, federation: str, wait: Callable) -> None:
    spec = replace(child(tmp_path, ""), argv=("/nowhere/rclone", "serve"))
    watch = Watch(tmp_path, spec, federation=federation)
    watch.supervisor.start()
    try:
        wait(lambda: watch.said, "said so")
        assert "cannot be started: No such file or directory: /nowhere/rclone" in watch.said[0]
    finally:
        watch.supervisor.stop()


def test_a_child_that_never_gets_ready_is_restarted(tmp_path: Path, federation: str, wait: Callable) -> None:
    probe = HttpProbe(port=free_ports(1)[0])
    watch = Watch(tmp_path, child(tmp_path, SLEEPER, probe=probe, ready_s=0.3), federation=federation)
    watch.supervisor.start()
    try:
        wait(lambda: watch.said, "said so")
        assert "was not ready within 0.3 s" in watch.said[0]
    finally:
        watch.supervisor.stop()


def test_readiness_is_the_probes_answer(tmp_path: Path, federation: str, wait: Callable) -> None:
    port = free_ports(1)[0]
    server = f"""
        import http.server
        http.server.HTTPServer(("127.0.0.1", {port}), http.server.SimpleHTTPRequestHandler).serve_forever()
    """
    watch = Watch(tmp_path, child(tmp_path, server, probe=HttpProbe(port=port, statuses=(200,))), federation=federation)
    watch.supervisor.start()
    try:
        wait(lambda: watch.status("child").state == "ready", "ready")
        assert HttpProbe(port=port, statuses=(200,)).ready()
        assert watch.status("child").ready_after_s > 0
    finally:
        watch.supervisor.stop()
    assert not HttpProbe(port=port).ready()


def test_stopping_goes_by_stages_and_waits_for_grace(tmp_path: Path, federation: str, wait: Callable) -> None:
    code = """
        import pathlib, signal, sys, time
        def leave(*_):
            with open("order", "a") as out:
                out.write(sys.argv[1])
            sys.exit(0)
        signal.signal(signal.SIGTERM, leave)
        pathlib.Path("up" + sys.argv[1]).touch()
        while True: time.sleep(60)
    """
    specs = [
        replace(child(tmp_path, code, name), argv=(*child(tmp_path, code).argv, name), stage=stage)
        for name, stage in (("a", 0), ("c", 2), ("b", 1))
    ]
    watch = Watch(tmp_path, *specs, federation=federation)
    watch.supervisor.start()
    wait(lambda: all((tmp_path / f"up{name}").exists() for name in "abc"), "all up")
    watch.supervisor.stop()
    assert (tmp_path / "order").read_text() == "cba"
    assert watch.said == []


def test_what_a_killed_child_started_goes_with_it(tmp_path: Path, federation: str, wait: Callable) -> None:
    """One of its processes lost the mark from its environment, one left its session: both are found."""
    watch = Watch(tmp_path, child(tmp_path, FAMILY), federation=federation)
    watch.supervisor.start()
    try:
        wait(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().count(" "), "started")
        family = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        os.kill(watch.status("child").pid, signal.SIGKILL)
        wait(lambda: not any(_alive(pid) for pid in family), "family gone")
        wait(lambda: watch.status("child").restarts == 1, "restarted")
    finally:
        watch.supervisor.stop()
    assert leftovers.find(federation) == []


def test_leftovers_are_this_federations_and_nobody_elses(tmp_path: Path, federation: str) -> None:
    mine, other = (
        subprocess.Popen([sys.executable, "-c", SLEEPER], env={**os.environ, leftovers.MARK: mark})
        for mark in (federation, federation + "-other")
    )
    try:
        assert [process.pid for process in leftovers.find(federation)] == [mine.pid]
        assert leftovers.federations_alive()[federation] == [mine.pid]
        assert leftovers.end(lambda: leftovers.find(federation)) == [mine.pid]
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


def test_a_child_that_dies_on_a_full_disk_is_restarted_and_its_state_is_written_later(
    tmp_path: Path, federation: str, wait: Callable
) -> None:
    directory = FederationDir(root=tmp_path / "federation")
    said: list[str] = []

    def publish(statuses: list[ChildStatus]) -> None:
        write_json(directory.status_file, {status.name: status.pid for status in statuses})

    def record(sessions: list[Session]) -> None:
        write_json(directory.sessions_file, {"sessions": [asdict(session) for session in sessions]})

    supervisor = Supervisor(
        [child(tmp_path, SLEEPER)], federation=federation, say=said.append, publish=publish, record=record
    )
    supervisor.start()
    try:
        wait(lambda: supervisor.statuses()[0].state == "ready", "ready")
        first = supervisor.statuses()[0].pid
        with no_room():
            os.kill(first, signal.SIGKILL)
            wait(lambda: supervisor.statuses()[0].state == "ready" and supervisor.statuses()[0].pid != first, "again")
            supervisor.rewrite()
        again = supervisor.statuses()[0].pid
        assert [line for line in said if "cannot be written" in line] == [
            "how the children stand cannot be written: File too large; they are kept alive"
        ]
        assert read_json(directory.status_file) == {"child": first}
        supervisor.rewrite()
        assert read_json(directory.status_file) == {"child": again}
        assert [session.pid for session in read_sessions(directory)] == [again]
        with no_room():
            supervisor.stop()
    finally:
        supervisor.stop()
    assert not psutil.pid_exists(again)
    assert read_sessions(directory) == []


def test_notes_that_a_full_disk_does_not_take_stop_nothing(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w") as log:
        voice = _Voice(log)
        with no_room():
            voice.note("first")
        voice.note("second")
    assert [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()] == ["first", "second"]


def test_a_session_number_that_now_belongs_to_a_stranger_is_left_alone(federation: str) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
    try:
        created = psutil.Process(stranger.pid).create_time()
        assert leftovers.find(federation, [Session(child="x", pid=stranger.pid, created=created - 3600)]) == []
        found = leftovers.find(federation, [Session(child="x", pid=stranger.pid, created=created)])
        assert [process.pid for process in found] == [stranger.pid]
    finally:
        stranger.kill()
        stranger.wait()


def test_a_second_federation_in_the_same_home_is_a_conflict(tmp_path: Path) -> None:
    with HomeLock(tmp_path, tmp_path / "one"):
        assert holder(tmp_path) == (os.getpid(), str(tmp_path / "one"))
        with pytest.raises(ConflictError, match="running already") as fault, HomeLock(tmp_path, tmp_path / "two"):
            pass
        assert "consortium down" in str(fault.value)
    assert holder(tmp_path) is None
    with HomeLock(tmp_path, tmp_path / "two"):
        pass


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
