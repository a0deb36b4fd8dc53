"""Starting and stopping where another command does so too, or the disk is full; no federation really starts here."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from consortium.config import default_dirs
from consortium.errors import ConfigError, ConflictError
from consortium.local import leftovers
from consortium.local.layout import Prepared, drop_ray_tmp, prepare
from consortium.local.lock import HomeLock, holder, start_lock
from consortium.local.paths import FederationDir
from consortium.local.service import Running, _supervisor_of, await_ready, start, stop
from tests.disk import no_room
from tests.waiting import until

NOW = 1_800_000_000_000
SUPERVISOR = """
import subprocess, sys, time
from pathlib import Path
from consortium.local.lock import HomeLock, start_lock
root, home, federation = sys.argv[2:]
with start_lock(Path(home)):
    print("starting", flush=True)
    sys.stdin.readline()
    lock = HomeLock(Path(home), Path(root)).__enter__()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
    env={"CONSORTIUM_FEDERATION": federation, "CONSORTIUM_CHILD": "server"}, start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
"""Starts as a supervisor does: one child, and no `bury`."""


@pytest.fixture
def built(own_home: Path) -> Iterator[Prepared]:
    """A federation that does not run yet; whatever carries its mark at the end is killed."""
    built = prepare(FederationDir.named("t"), default_dirs(), now_ms=NOW)
    yield built
    leftovers.end(lambda: leftovers.find(built.federation["id"]))
    drop_ray_tmp(built.directory)


@pytest.fixture
def first(built: Prepared, own_home: Path) -> Iterator[subprocess.Popen[str]]:
    """A supervisor that is being started, and goes on after a line of input."""
    words = ["consortium.local.supervisor", str(built.directory.root), str(own_home), built.federation["id"]]
    with subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting\n"
        yield process
        process.kill()


def _go_on(first: subprocess.Popen[str]) -> None:
    assert first.stdin is not None
    first.stdin.write("\n")
    first.stdin.flush()


def _child(federation: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, leftovers.MARK: federation}
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)


def test_a_second_start_within_that_of_the_first_is_a_conflict_and_kills_nothing(
    built: Prepared, first: subprocess.Popen[str]
) -> None:
    before = built.directory.federation_file.read_text()
    threading.Timer(0.5, _go_on, [first]).start()
    with pytest.raises(ConflictError, match="running already") as fault:
        start(built.directory, print)
    assert fault.value.where == f"{built.directory.root}, supervisor pid {first.pid}"
    assert first.stdout is not None
    pid = int(first.stdout.readline())
    assert [process.pid for process in leftovers.find(built.federation["id"])] == [pid]
    assert built.directory.federation_file.read_text() == before


def test_a_supervisor_that_comes_second_leaves_the_processes_of_the_first_alone(own_home: Path) -> None:
    """The first one's lock is there where the second looks for it only when its own supervisor runs."""
    directory = FederationDir.named("t")
    own_home.mkdir()
    with open(own_home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # keeps a supervisor away, and does not look like one
        with start(directory, print) as running:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with open(own_home / "start.lock") as other, pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its supervisor holds it on
            # a process just begun has an empty command line for a moment: about one time in a hundred
            until(lambda: _supervisor_of(running.process.pid, str(directory.root)), "a supervisor", timeout_s=5)
            lock.write(json.dumps({"pid": os.getpid(), "root": str(directory.root)}))
            lock.flush()
            child = _child(directory.federation()["id"])
            with pytest.raises(ConflictError, match="running already"):
                await_ready(running, print)
            with start_lock(own_home):
                pass
    try:
        assert child.poll() is None
        assert Path(directory.federation()["ray_tmp"]).is_dir()
        ended = Running(prepared=running.prepared, process=running.process, home=running.home)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CONSORTIUM_HOME", str(own_home / "elsewhere"))
            ended.stop()
        child.wait(30)  # nobody holds the lock any more: what is left is buried
        assert not Path(directory.federation()["ray_tmp"]).exists()
    finally:
        child.kill()
        child.wait()


def test_stopping_waits_for_one_that_is_just_starting(built: Prepared, first: subprocess.Popen[str]) -> None:
    built.directory.make_current()
    threading.Timer(0.5, _go_on, [first]).start()
    assert stop(print)
    first.wait(30)
    assert leftovers.find(built.federation["id"]) == []


def test_a_lock_without_a_pid_signals_nobody(own_home: Path) -> None:
    """A pid of 0 would be the whole process group of whoever says `down`."""
    own_home.mkdir()
    with open(own_home / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for text in ("", "[1]", '{"pid": 1, "root": "/"}'):
            os.truncate(lock.fileno(), 0)
            os.pwrite(lock.fileno(), text.encode(), 0)
            shown = subprocess.run(
                ["bash", "-c", f"{sys.executable} -m consortium.cli down; echo went on with $?"],
                capture_output=True,
                text=True,
                start_new_session=True,
                check=False,
                timeout=60,
            )
            assert shown.stdout == "went on with 2\n", shown.stderr
            assert "it cannot be told which process runs the embedded federation here" in shown.stderr
            assert f"where: {own_home / 'lock'}" in shown.stderr


def test_a_pid_that_is_no_supervisor_is_not_signalled(own_home: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from consortium.local.lock import HomeLock
with HomeLock(Path({str(own_home)!r}), Path("/nowhere")):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as stranger:
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "held\n"
        with pytest.raises(ConflictError, match="cannot be told"):
            stop(print)
        assert stranger.poll() is None
        stranger.kill()


def test_a_start_on_a_full_disk_says_what_to_do(own_home: Path) -> None:
    with pytest.raises(ConfigError, match="the folder of federations cannot be used: ") as fault, no_room(1000):
        start(FederationDir.named("t"), print)
    assert fault.value.where == f"$CONSORTIUM_HOME={own_home}"
    assert (fault.value.fix or "").startswith("make room on its disk, or set $CONSORTIUM_HOME")
    assert holder(own_home) is None
    with start_lock(own_home), HomeLock(own_home, own_home):
        pass


def test_what_killed_supervisors_left_of_any_federation_is_ended(built: Prepared, own_home: Path) -> None:
    """Each demo has a name of its own: what is left of one that was killed is not that of the next."""
    broken = FederationDir.named("broken")
    broken.root.mkdir(parents=True)
    broken.federation_file.write_text("{")
    other = FederationDir.named("other")
    for stops in (False, True):
        child, tmp = _child(built.federation["id"]), Path(built.federation["ray_tmp"])
        tmp.mkdir(exist_ok=True)
        if stops:
            assert stop(print)
        else:
            with start(other, print):
                assert not psutil.pid_exists(child.pid)
        child.wait(30)
        assert not tmp.exists()
        assert FederationDir.current().root == other.root


def test_a_start_waits_for_one_that_is_being_stopped(built: Prepared, own_home: Path) -> None:
    """The starter of a demo is killed and the demo run again: the first one's supervisor needs a while to stop it."""
    code = f"""
import sys
from pathlib import Path
from consortium.local.lock import HomeLock
with HomeLock(Path({str(own_home)!r}), Path({str(built.directory.root)!r})) as held:
    held.leave()
    print("held", flush=True)
    sys.stdin.readline()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as stopping:
        assert stopping.stdout is not None
        assert stopping.stdout.readline() == "held\n"
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            _go_on(stopping)

        with start(FederationDir.named("u"), say) as running:
            assert stopping.wait(30) == 0
            until(lambda: holder(own_home) == (running.process.pid, str(running.directory.root)), "another holder")
        assert said[0] == "waiting until t has stopped"
