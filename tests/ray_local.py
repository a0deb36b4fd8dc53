"""A small Ray cluster in a process of its own: Ray keeps token and mode per process, so no test may hold them."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


@contextmanager
def cluster(cpus: int = 2) -> Iterator[Run]:
    """Yield a function that calls another with its arguments in a process connected to the cluster."""
    with (
        tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp") as folder,  # short: Unix socket paths are limited
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        pool.submit(_start, folder, cpus).result(timeout=120)
        try:
            yield lambda function, *args, **named: pool.submit(function, *args, **named).result(timeout=240)
        finally:
            pool.submit(_stop).result(timeout=60)


def _start(folder: str, cpus: int) -> None:
    token = Path(folder, "token")
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), OMP_NUM_THREADS="1")
    import ray

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, _temp_dir=folder)


def _stop() -> None:
    import ray

    ray.shutdown()
