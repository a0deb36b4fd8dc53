"""Several processes as the ranks of one site, without Ray: a gloo group on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[2]


def start(main: str, given: Any, world: int = 2) -> list[subprocess.Popen[bytes]]:
    """Start so many processes that call the function `main` of a test module, as `module:function`, with `given`.

    It is called with the rank and what is given, which is JSON. Those that a test does not wait for it must end.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "from tests.train.ranks import begin; import sys; begin(*sys.argv[1:])"
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, main, str(rank), str(world), str(port), json.dumps(given)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]


def begin(main: str, rank: str, world: str, port: str, given: str) -> None:
    """What each process does."""
    from importlib import import_module

    torch.set_num_threads(1)
    where = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=where, rank=int(rank), world_size=int(world))
    module, _, name = main.partition(":")
    getattr(import_module(module), name)(int(rank), json.loads(given))
    dist.destroy_process_group()
