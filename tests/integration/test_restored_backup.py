"""Yesterday's copy of the server's state and ledger, put back: every agent notices, and no epoch is used again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from consortium.client import Client
from consortium.client.submission import make_spec
from consortium.data.sample import generate
from consortium.domain.job import Job, JobState
from consortium.keys.signing import SigningKey
from consortium.local.service import children
from consortium.local.steward import register_at_home
from tests.conftest import Embedded
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
ENGINEER = "fr/amelie"


def kill_server(embedded: Embedded, meanwhile: Callable[[], None]) -> None:
    """Kill the server, do something while it is down, and wait until it answers again."""
    pid = int(children(embedded.directory)["server"]["pid"])
    supervisor = psutil.Process(pid).ppid()
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        meanwhile()
    finally:
        os.kill(supervisor, signal.SIGCONT)
    until(lambda: int(children(embedded.directory)["server"]["pid"]) not in (0, pid), "another server")
    until(lambda: children(embedded.directory)["server"]["state"] == "ready", "the server ready again")


def alarms(client: Client) -> dict[str, str]:
    return {row["id"]: row["unhealthy_reason"] for row in client.sites()}


def clean(client: Client, key: SigningKey, name: str, dataset: str) -> Job:
    overrides = [f"inputs=[{dataset}]", f"name={name}", "gpus=1"]
    return client.submit(make_spec(client, "clean", overrides, person=ENGINEER, key=key))


def test_agents_notice_a_restored_server_and_no_epoch_comes_twice(embedded: Embedded, tmp_path: Path) -> None:
    client, key = embedded.client(ENGINEER), embedded.key(ENGINEER)
    server = embedded.directory.server
    path = generate("fr", 200).write(tmp_path / "fr.jsonl")
    dataset = register_at_home(client, key, name="laws", paths=[path], site="fr-1", directory=embedded.directory)
    kill_server(embedded, lambda: shutil.copytree(server, tmp_path / "backup") and None)
    job = client.wait(clean(client, key, "before", dataset.id).id, timeout_s=120)
    assert job.state is JobState.SUCCEEDED, job.reason
    (leg,) = job.attempts[0].legs

    def restore() -> None:
        shutil.rmtree(server)
        shutil.copytree(tmp_path / "backup", server)

    kill_server(embedded, restore)
    found = until(lambda: all("log rolled back" in why for why in alarms(client).values()) and alarms(client), "alarms")
    assert set(found) == {"de-1", "fr-1", "uy-1"}
    waiting = clean(client, key, "after", dataset.id)
    assert client.job(waiting.id).state is JobState.PENDING
    for site in found:
        config = embedded.directory.site(site) / "config.json"
        command = [sys.executable, "-m", "consortium.site.agent", "--config", str(config), "--repin"]
        subprocess.run(command, check=True, timeout=60, capture_output=True)
    done = client.wait(waiting.id, timeout_s=120)
    assert done.state is JobState.SUCCEEDED, done.reason
    assert done.attempts[-1].legs[0].epoch > leg.epoch
    client.close()
