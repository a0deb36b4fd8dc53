"""Yesterday's copy of the server's state and ledger, put back: every agent notices, and no epoch is used again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consortium.client import Client
from consortium.client.submission import make_spec
from consortium.data.sample import generate
from consortium.domain.job import Job, JobState
from consortium.keys.signing import SigningKey
from consortium.local.paths import FederationDir
from consortium.local.service import Running, await_ready, children, start
from consortium.local.steward import register_at_home
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
ENGINEER = "fr/amelie"


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    home = Path(tempfile.mkdtemp(prefix="cs-test-"))
    monkeypatch.setenv("CONSORTIUM_HOME", str(home))
    with start(FederationDir.named("backup"), print) as federation:
        await_ready(federation, print)
        yield federation
    shutil.rmtree(home, ignore_errors=True)


def connect(running: Running) -> tuple[Client, SigningKey]:
    known = running.directory.client()
    token = Path(known["token_paths"][ENGINEER]).read_text().strip()
    return Client(known["server_url"], token), SigningKey.load(known["key_paths"][ENGINEER])


def kill_server(running: Running, meanwhile: Callable[[], None]) -> None:
    """Kill the server, do something while it is down, and wait until it answers again."""
    supervisor = running.process.pid
    os.kill(supervisor, signal.SIGSTOP)
    try:
        pid = int(children(running.directory)["server"]["pid"])
        os.kill(pid, signal.SIGKILL)
        meanwhile()
    finally:
        os.kill(supervisor, signal.SIGCONT)
    until(lambda: int(children(running.directory)["server"]["pid"]) not in (0, pid), "another server")
    until(lambda: children(running.directory)["server"]["state"] == "ready", "the server ready again")


def alarms(client: Client) -> dict[str, str]:
    return {row["id"]: row["unhealthy_reason"] for row in client.sites()}


def clean(client: Client, key: SigningKey, name: str, dataset: str) -> Job:
    overrides = [f"inputs=[{dataset}]", f"name={name}", "gpus=1"]
    return client.submit(make_spec(client, "clean", overrides, person=ENGINEER, key=key))


def test_agents_notice_a_restored_server_and_no_epoch_comes_twice(running: Running, tmp_path: Path) -> None:
    client, key = connect(running)
    server = running.directory.server
    path = generate("fr", 200).write(tmp_path / "fr.jsonl")
    dataset = register_at_home(client, key, name="laws", paths=[path], site="fr-1", directory=running.directory)
    kill_server(running, lambda: shutil.copytree(server, tmp_path / "backup") and None)
    job = client.wait(clean(client, key, "before", dataset.id).id, timeout_s=120)
    assert job.state is JobState.SUCCEEDED, job.reason
    (leg,) = job.attempts[0].legs

    def restore() -> None:
        shutil.rmtree(server)
        shutil.copytree(tmp_path / "backup", server)

    kill_server(running, restore)
    found = until(lambda: all("log rolled back" in why for why in alarms(client).values()) and alarms(client), "alarms")
    assert set(found) == {"de-1", "fr-1", "uy-1"}
    waiting = clean(client, key, "after", dataset.id)
    assert client.job(waiting.id).state is JobState.PENDING
    for site in found:
        config = running.directory.site(site) / "config.json"
        command = [sys.executable, "-m", "consortium.site.agent", "--config", str(config), "--repin"]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    done = client.wait(waiting.id, timeout_s=120)
    assert done.state is JobState.SUCCEEDED, done.reason
    assert done.attempts[-1].legs[0].epoch > leg.epoch
    client.close()
