"""The life of an embedded federation: deaths are mended, ends are clean, a killed supervisor leaves nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from consortium.errors import ConflictError, ConsortiumError
from consortium.local import leftovers
from consortium.local.lock import holder
from consortium.local.paths import FederationDir
from consortium.local.ports import is_free
from consortium.local.probes import HttpProbe
from consortium.local.service import await_ready, children, start, stop
from consortium.site.settings import SiteSettings, StoreSettings
from consortium.storage.objects import ObjectStore
from tests.conftest import Embedded
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cs-test-"))
    monkeypatch.setenv("CONSORTIUM_HOME", str(path))
    yield path
    stop(print)
    shutil.rmtree(path, ignore_errors=True)


def _row(directory: FederationDir, child: str) -> dict[str, Any]:
    return children(directory).get(child, {"state": "", "pid": 0, "restarts": 0})


def _nothing_left(federation: dict[str, Any]) -> None:
    assert leftovers.federations_alive().get(federation["id"]) is None
    tmp = federation["ray_tmp"]
    assert [p.pid for p in psutil.process_iter() if tmp in " ".join(_cmdline(p))] == []
    assert {name: port for name, port in federation["ports"].items() if not is_free(port)} == {}
    assert not Path(tmp).exists()


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_deaths_are_mended_and_ends_are_clean(home: Path) -> None:
    directory = FederationDir.named("life")
    said: list[str] = []
    with start(directory, said.append) as running:
        await_ready(running, said.append)
        federation = directory.federation()
        with pytest.raises(ConflictError, match="running already"):
            start(FederationDir.named("other"), print)

        raylet = next(p for p in leftovers.find(federation["id"]) if p.name() == "raylet")
        head = int(_row(directory, "ray-fr-1")["pid"])
        cluster = [p for p in leftovers.find(federation["id"]) if os.getsid(p.pid) == head]
        assert len(cluster) > 5
        store = int(_row(directory, "store-de-1-private")["pid"])
        os.kill(head, signal.SIGKILL)
        os.kill(store, signal.SIGKILL)
        until(lambda: _row(directory, "store-de-1-private")["pid"] not in (0, store), "the store restarted")
        until(lambda: _row(directory, "ray-fr-1")["pid"] not in (0, head), "the Ray head restarted")
        assert [p.pid for p in cluster if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
        until(lambda: _row(directory, "ray-fr-1")["state"] == "ready", "the Ray head ready again")
        assert raylet.is_running() or raylet in cluster

        log = directory.log("supervisor").read_text()
        assert "ray-fr-1 was ended by SIGKILL; restart in 0.5 s" in log
        assert "ray-fr-1 is ready again" in log
    _nothing_left(federation)
    assert holder(home) is None


def test_what_a_killed_supervisor_left_is_found_and_a_second_start_works_at_once(home: Path) -> None:
    directory = FederationDir.named("life")
    with start(directory, print) as running:
        until(lambda: _row(directory, "server")["state"] == "ready", "the server ready")
        federation = directory.federation()
        running.detach()
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
    assert leftovers.federations_alive().get(federation["id"])
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, leftovers.MARK: "another"}
    )
    try:
        said: list[str] = []
        with start(directory, said.append):
            assert any("left over" in line for line in said)
            assert directory.federation()["id"] == federation["id"]
            until(lambda: _row(directory, "server")["state"] == "ready", "the server ready again")
        _nothing_left(directory.federation())
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_the_federation_ends_with_the_program_that_started_it(home: Path) -> None:
    """Killed outright, without a chance to say goodbye."""
    code = """
import sys, time
from consortium.local.paths import FederationDir
from consortium.local.service import start
start(FederationDir.named("life"), print)
print("started", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "started\n"
        directory = FederationDir.named("life")
        federation = directory.federation()
        until(lambda: leftovers.federations_alive().get(federation["id"]), "children running")
        starter.kill()
    until(lambda: holder(home) is None, "the supervisor gone")
    assert leftovers.federations_alive().get(federation["id"]) is None


def test_an_interrupted_up_leaves_nothing(home: Path) -> None:
    command = [sys.executable, "-m", "consortium.cli", "up", "--name", "life"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as up:
        directory = FederationDir.named("life")
        until(lambda: children(directory), "children running")
        up.send_signal(signal.SIGTERM)
        out, err = up.communicate(timeout=60)
    assert (up.returncode, out) == (130, "")
    assert "Traceback" not in err
    _nothing_left(directory.federation())


def test_peers_read_new_objects_at_once_and_can_write_nothing(embedded: Embedded) -> None:
    def open_store(store: StoreSettings) -> ObjectStore:
        return ObjectStore(store.endpoint, store.access_key, store.secret(), store.bucket, attempts=1)

    directory = embedded.directory
    own = open_store(SiteSettings.load(directory.site("fr-1") / "config.json").egress_store)
    seen = open_store(SiteSettings.load(directory.site("de-1") / "config.json").peer_egress["fr-1"])
    for number in range(20):
        own.put(f"jobs/j/{number}/x", b"%d" % number)
        assert seen.get(f"jobs/j/{number}/x") == b"%d" % number
    with pytest.raises(ConsortiumError):
        seen.put("jobs/j/0/x", b"forged")
    with pytest.raises(ConsortiumError):
        seen.delete("jobs/j/0/x")
    assert own.get("jobs/j/0/x") == b"0"
    assert HttpProbe(port=directory.federation()["ports"]["fr-1/peers"]).ready()
