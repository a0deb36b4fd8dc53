"""The two programs on a real Ray cluster, against a scripted gateway over HTTP and a real S3 store."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from consortium.domain.training import RoundPhase
from consortium.errors import UnreachableError
from tests.train.conftest import PARAMS, context, put_tokens
from tests.train.hub import Hub, Line, serve

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
JOBS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray head of its own with 4 simulated GPUs; yields the environment that points at it."""
    with tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp") as directory:
        token = Path(directory) / "ray.token"
        token.write_text(secrets.token_hex(32))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "OMP_NUM_THREADS": "1"}
        env["TMPDIR"] = directory
        env.pop("RAY_ADDRESS", None)
        head = subprocess.Popen(
            [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}",
             "--node-ip-address=127.0.0.1", "--num-cpus=2", '--resources={"sim_gpu": 4}', "--include-dashboard=false",
             "--disable-usage-stats", f"--temp-dir={directory}", "--object-store-memory=100000000",
             "--dashboard-agent-listen-port=0", "--dashboard-agent-grpc-port=0", "--metrics-export-port=0"],
            env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        address = {**env, "RAY_ADDRESS": f"127.0.0.1:{port}"}
        try:
            _wait_for_head(head, address)
            yield address
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait(timeout=10)


def _wait_for_head(head: subprocess.Popen[bytes], env: dict[str, str]) -> None:
    deadline = time.monotonic() + 90
    ask = [str(Path(sys.executable).parent / "ray"), "status", f"--address={env['RAY_ADDRESS']}"]
    while subprocess.run(ask, env=env, capture_output=True, check=False).returncode:
        assert head.poll() is None, "the Ray head ended"
        assert time.monotonic() < deadline, "the Ray head did not come up"


def _run(program: str, line: Line, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    with serve(line) as url:
        leg = {**env, "CONSORTIUM_GATEWAY": url, "CONSORTIUM_LEG_TOKEN": "leg-token"}
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-P", str(JOBS / program)],
            env=leg,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        print(f"{program}: {time.monotonic() - started:.1f} s\n{done.stdout}\n{done.stderr}")
        return done


def test_pretrain_then_evaluate_on_a_real_cluster(cluster, s3):
    store = s3.store(f"private-{secrets.token_hex(4)}")
    store.ensure_bucket()
    hub = Hub(("fr-1",))
    params = {**PARAMS, "data": {**PARAMS["data"], "mixture": ["fr:1", "de:2"]}, "parallel": "fsdp"}
    leg = context(store, "fr-1", ("fr-1",), s3=s3, gpus=2, gpus_per_worker=1, params=params)
    done = _run("pretrain.py", Line(hub, leg, store), cluster)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [hub.rounds[number].phase for number in (1, 2, 3)] == [RoundPhase.CLOSED] * 3
    result = hub.results["fr-1"]
    assert result["rounds"] == 3
    assert result["tokens"] == 3 * 4 * (4 * 2) * 16
    assert result["outer_digest"] == hub.agreed["outer/3"]["fr-1"]
    assert result["loss"]["3"] < result["loss"]["1"]
    tokens = leg.inputs[0].shards[0].tokens
    assert result["mixture"] == {"fr": {"share": 1.0, "passes": 3 * 4 * (4 * 2) / ((tokens - 1) // 16)}}

    held_out = put_tokens(store, "fr-1", held_out=True)
    params = {"rounds": [0, -1], "batches": 4, "batch_size": 8}
    asked = replace(leg, job_kind="evaluate", model=leg.job, params=params, inputs=(held_out,), gpus=1)
    done = _run("evaluate.py", Line(hub, asked, store), cluster)
    assert done.returncode == 0, done.stderr[-3000:]
    loss = hub.results["fr-1"]["loss"]["fr"]
    assert loss["after"] < loss["before"]


def test_a_leg_that_is_told_to_stop_ends_well_and_the_next_one_goes_on(cluster, s3):
    store = s3.store(f"private-{secrets.token_hex(4)}")
    store.ensure_bucket()
    hub = Hub(("fr-1",))
    leg = context(store, "fr-1", ("fr-1",), s3=s3, gpus=2, gpus_per_worker=1)

    class Told(Line):
        def stopping(self) -> bool:
            return bool(hub.rounds.get(1)) and any(said.get("round") == 2 for said in hub.progress)

    done = _run("pretrain.py", Told(hub, leg, store), cluster)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "what it has is kept" in done.stdout + done.stderr
    assert hub.results == {}
    assert hub.progress[-1]["kept"] == "1.1", "one step of the second round"
    done = _run("pretrain.py", Line(hub, leg, store), cluster)
    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.results["fr-1"]["rounds"] == 3
    assert hub.results["fr-1"]["tokens"] == 3 * 4 * (4 * 2) * 16
    assert [number for _, number, _ in hub.commits_seen] == [1, 2, 3]


def test_a_worker_that_is_lost_is_not_the_programs_fault(cluster, s3):
    store = s3.store(f"private-{secrets.token_hex(4)}")
    store.ensure_bucket()
    hub = Hub(("fr-1",))
    params = {**PARAMS, "outer": {**PARAMS["outer"], "rounds": 10_000}}
    leg = context(store, "fr-1", ("fr-1",), s3=s3, gpus=2, gpus_per_worker=1, params=params)

    class Killing(Line):
        def progress(self, **numbers: Any) -> None:
            super().progress(**numbers)
            if numbers.get("phase") == "round closed" and numbers["round"] == 2:
                workers = _of(cluster, "RayTrainWorker")
                assert len(workers) == 2
                workers[-1].kill()

        def failed(self, message: str, fault: str) -> None:
            failures.append((message, fault))

    failures: list[tuple[str, str]] = []
    done = _run("pretrain.py", Killing(hub, leg, store), cluster)
    assert done.returncode != 0
    assert len(failures) == 1
    assert "was lost" in failures[0][0]
    assert failures[0][1] == "site"
    folder = Path(cluster["TMPDIR"])
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in files if not path.parts[0].startswith(("session_", "ray"))], "no tokens are left"


@pytest.mark.parametrize(
    ("name", "number", "code", "fault"),
    [
        ("TrainController", signal.SIGKILL, UnreachableError.exit_code, "site"),
        ("RayTrainWorker", signal.SIGTERM, UnreachableError.exit_code, "site"),
        # the agent knows this code for that of a program that was killed
        ("pretrain.py", signal.SIGTERM, 128 + signal.SIGTERM, None),
    ],
)
def test_what_is_killed_of_a_training_is_not_the_programs_fault(cluster, s3, name, number, code, fault):
    store = s3.store(f"private-{secrets.token_hex(4)}")
    store.ensure_bucket()
    params = {**PARAMS, "outer": {**PARAMS["outer"], "rounds": 10_000}}
    leg = context(store, "fr-1", ("fr-1",), s3=s3, gpus=1, gpus_per_worker=1, params=params)
    line = _Killing(Hub(("fr-1",)), leg, store, env=cluster, name=name, number=number)
    done = _run("pretrain.py", line, cluster)
    assert done.returncode == code
    assert [whose for _, whose in line.failures] == ([fault] if fault else [])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_task_that_is_killed_is_not_the_programs_fault(cluster, s3, number):
    store = s3.store(f"private-{secrets.token_hex(4)}")
    store.ensure_bucket()
    hub = Hub(("fr-1",))
    leg = context(store, "fr-1", ("fr-1",), s3=s3, gpus=1, gpus_per_worker=1)
    assert _run("pretrain.py", Line(hub, leg, store), cluster).returncode == 0
    params = {"rounds": [0, -1], "batches": 4, "batch_size": 8}
    held_out = put_tokens(store, "fr-1", held_out=True)
    asked = replace(leg, job_kind="evaluate", model=leg.job, params=params, inputs=(held_out,))
    line = _Killing(hub, asked, store, env=cluster, name="::_task", number=number)
    done = _run("evaluate.py", line, cluster)
    assert done.returncode == UnreachableError.exit_code
    assert [whose for _, whose in line.failures] == ["site"]


class _Killing(Line):
    """Signals what bears `name`, once, when the leg tells of a round, and keeps what it says of its failure."""

    def __init__(self, *given: Any, env: dict[str, str], name: str, number: signal.Signals) -> None:
        super().__init__(*given)
        self.victim = env, name, number
        self.failures: list[tuple[str, str]] = []
        self.done = False

    def progress(self, **numbers: Any) -> None:
        super().progress(**numbers)
        env, name, number = self.victim
        if "round" in numbers and not self.done:
            self.done = True
            (process,) = _of(env, name)
            process.send_signal(number)

    def failed(self, message: str, fault: str) -> None:
        self.failures.append((message, fault))


def _of(env: dict[str, str], name: str) -> list[psutil.Process]:
    """Return the processes of this test's own cluster, its drivers included, with `name` in their command line."""
    return [process for process in psutil.process_iter(["cmdline"]) if _is(process, env, name)]


def _is(process: psutil.Process, env: dict[str, str], name: str) -> bool:
    try:
        ours = process.environ().get("RAY_AUTH_TOKEN_PATH") == env["RAY_AUTH_TOKEN_PATH"]
        return ours and any(name in part for part in process.cmdline())
    except psutil.Error:
        return False


def test_a_leg_with_wrong_inputs_ends_with_exit_code_two_and_no_traceback(cluster, s3):
    store = s3.store(f"private-{secrets.token_hex(4)}")
    store.ensure_bucket()
    leg = context(store, "fr-1", ("fr-1",), s3=s3)
    bad = replace(leg, inputs=(put_tokens(store, "fr-1", held_out=True),))
    hub = Hub(("fr-1",))
    done = _run("pretrain.py", Line(hub, bad, store), cluster)
    assert done.returncode == 2
    assert "is not a training dataset" in done.stderr
    assert "Traceback" not in done.stderr
    assert any("is not a training dataset" in str(said.get("failure")) for said in hub.progress)
