"""A real Ray head, and a site's agent and gateway as processes of their own before a scripted server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consortium.domain.job import LegState
from consortium.domain.protocol import LegOffer, LegReport
from consortium.ledger.origins import check_chain
from consortium.local.ports import free_ports
from consortium.site.db import SiteDb
from tests.site.world import Script, World

PROGRAM = """
import sys, time
from pathlib import Path
from consortium.client.leg import run

MARKS = Path({marks!r})

def program(session):
    with (MARKS / f"ran-{{session.context.leg}}").open("a") as ran:
        ran.write("once\\n")
    print("hello from the leg", flush=True)
    session.progress(phase="wait")
    session.store().put(session.context.store.prefix + "out", b"data")
    while not (MARKS / f"go-{{session.context.leg}}").exists():
        time.sleep(0.1)
    session.result(metrics={{"loss": 1.5}}, manifest_digest="sha256:" + "0" * 64)

sys.exit(run(program))
"""


GARBLED = """
import sys
from consortium.client.leg import run

def program(session):
    print("hello before the garbage", flush=True)
    sys.stdout.buffer.write(bytes([0xff, 10]))
    sys.stdout.buffer.flush()
    session.result(metrics={}, manifest_digest="sha256:" + "0" * 64)

sys.exit(run(program))
"""


LISTENER = """
import sys, time
from pathlib import Path
from consortium.client.leg import run

def program(session):
    (Path({marks!r}) / f"ran-{{session.context.leg}}").touch()
    while not session.stopping():
        time.sleep(0.2)
    time.sleep(6)  # longer than Ray lets a program live that it was told to stop
    session.store().put(session.context.store.prefix + "kept", b"progress")
    session.progress(phase="kept")

sys.exit(run(program))
"""


def wait_for(what: str, condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds:.0f} s"
        time.sleep(0.1)


@dataclass
class RayHead:
    """A head that can be killed and started again on the same ports, as a supervisor does."""

    folder: Path
    token: Path
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['dashboard-port']}"

    def start(self) -> None:
        names = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
                 "metrics-export-port", "runtime-env-agent-port")  # fmt: skip
        self.ports = self.ports or dict(zip(names, free_ports(len(names)), strict=True))
        flags = [f"--{name}={port}" for name, port in self.ports.items()]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
             "--node-ip-address=127.0.0.2", "--dashboard-host=127.0.0.1", "--num-cpus=2", "--num-gpus=0",
             '--resources={"sim_gpu": 8}', "--object-store-memory=100000000", f"--temp-dir={self.folder}", *flags],
            env=self.environment(), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for("Ray head", self.answers, 120)

    def environment(self) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "CONSORTIUM_"))}
        env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "OMP_NUM_THREADS": "1"}
        return env | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "the Ray head ended"
        request = urllib.request.Request(f"{self.url}/api/jobs/")
        request.add_header("Authorization", f"Bearer {self.token.read_text()}")
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    @contextmanager
    def joined(self, label: str) -> Iterator[None]:
        """A second node of the cluster, with `label`."""
        names = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port",
                 "runtime-env-agent-port")  # fmt: skip
        node = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats",
             f"--address=127.0.0.2:{self.ports['port']}", "--node-ip-address=127.0.0.3", "--num-cpus=1",
             "--num-gpus=0", "--object-store-memory=100000000", f"--labels={label}",
             *(f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True))],
            env=self.environment() | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"},  # else it may not join
            start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield
        finally:
            os.killpg(node.pid, signal.SIGKILL)
            node.wait(timeout=20)

    def jobs(self) -> dict[str, str]:
        """Submission ids, and the Ray node that each program runs on."""
        request = urllib.request.Request(f"{self.url}/api/jobs/")
        request.add_header("Authorization", f"Bearer {self.token.read_text()}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return {job["submission_id"]: job["driver_node_id"] for job in json.load(answer)}

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=20)


@dataclass
class Site:
    """fr-1's two processes and the server they talk to."""

    world: World
    script: Script
    head: RayHead
    marks: Path
    config: Path
    gateway_url: str
    store: object
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, what: str) -> None:
        with (self.world.root / f"{what}.log").open("ab") as log:
            self.children[what] = subprocess.Popen(
                [sys.executable, "-m", f"consortium.site.{what}", "--config", str(self.config)], stdout=log, stderr=log
            )

    def kill(self, what: str, number: int = signal.SIGKILL) -> int:
        child = self.children.pop(what)
        child.send_signal(number)
        return child.wait(timeout=30)

    def offer(self, number: int, kind: str = "clean") -> LegOffer:
        offer = self.world.offer(number, gpus=2, epoch=None, kind=kind)
        with self.script.lock:
            self.script.offers[offer.leg] = offer
        return offer

    def until(self, offer: LegOffer, state: LegState, seconds: float = 90) -> LegReport:
        def there() -> bool:
            report = self.script.report(offer.leg)
            assert report is None or report.state is state or not report.state.final, f"{report}\n{self.said()}"
            return report is not None and report.state is state

        wait_for(f"{state.value} of {offer.leg}\n{self.said()}", there, seconds)
        report = self.script.report(offer.leg)
        assert report is not None
        return report

    def until_program_runs(self, offer: LegOffer) -> None:
        wait_for("program", (self.marks / f"ran-{offer.leg}").exists, 90)
        self.until(offer, LegState.RUNNING)

    def go(self, offer: LegOffer) -> None:
        (self.marks / f"go-{offer.leg}").touch()

    def runs(self, offer: LegOffer) -> int:
        return len((self.marks / f"ran-{offer.leg}").read_text().splitlines())

    def usage(self, offer: LegOffer) -> list[tuple[int, int]]:
        """All metered intervals of a leg, in the order of its records, after all records have arrived."""
        box = SiteDb(self.config.parent)
        wait_for(
            "records",
            lambda: len(self.script.records) == box.read().execute("SELECT count(*) FROM outbox").fetchone()[0],
        )
        with self.script.lock:
            records = list(self.script.records)
        check_chain(records, lambda _: self.script.key)
        rows = [row for record in records if record.type.value == "usage" for row in record.body["rows"]]
        return [(row["start_ms"], row["end_ms"]) for row in rows if row["leg"] == offer.leg]

    def said(self) -> str:
        return "\n".join(
            path.read_text()[-3000:] for path in (self.world.root / "agent.log", self.world.root / "gateway.log")
            if path.exists()
        )  # fmt: skip
