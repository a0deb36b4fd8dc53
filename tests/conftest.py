"""Fixtures that several rooms share: one whole embedded federation and one S3 server per test run.

Each is started where a test asks for it.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

from consortium.cli.app import run
from consortium.client import Client
from consortium.keys.signing import SigningKey
from consortium.local.paths import FederationDir
from consortium.storage.objects import ObjectStore
from tests.s3 import S3, serving

# A busy machine makes an example slow, not wrong; pytest's own timeout ends what hangs. A change is judged by the same
# examples in every run; `make test-search` draws others (`--hypothesis-profile search`).
settings.register_profile("consortium", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("consortium")


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A running federation with all its processes: three Ray clusters, stores, gateways, agents, server, MLflow."""

    directory: FederationDir
    home: Path

    def client(self, person: str) -> Client:
        """Return a connection as `person`."""
        known = self.directory.client()
        return Client(known["server_url"], Path(known["token_paths"][person]).read_text().strip())

    def key(self, person: str) -> SigningKey:
        """Return a person's signing key."""
        return SigningKey.load(self.directory.client()["key_paths"][person])


def pytest_configure() -> None:
    """Let torch and numpy compute on one thread, as in a leg, before they are imported.

    Threads that wait for each other on a busy machine make the steps of a small model take forty times as long.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what the tests' modules bring to no garbage collection: half a million objects that stay all the same.

    Going through them again and again took a third of the time of tests that make many objects of their own. What comes
    later is looked through seldom, for the same reason.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the tests with the whole federation come last: once it runs, its fifty processes share the machine.

    Those that start Ray and stores come first: they wait a lot, and at the end there is nothing to do meanwhile.
    """
    items.sort(
        key=lambda item: (
            "embedded" in getattr(item, "fixturenames", ()),
            item.get_closest_marker("integration") is None,
        )
    )


def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers `-n logical` means: one more than processors, as some wait for leases and processes."""
    return min(4, (os.cpu_count() or 1) + 1)


@pytest.fixture(scope="session")
def embedded() -> Iterator[Embedded]:
    """The whole embedded federation, started once per test run in a home of its own, and stopped at its end.

    `CONSORTIUM_HOME` points to it only while it starts; tests that call the command line pass `embedded.home` on.
    """
    from consortium.local.service import await_ready, start

    home = Path(tempfile.mkdtemp(prefix="cs-test-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONSORTIUM_HOME", str(home))
        running = start(FederationDir.named("tests"), _say)
    try:
        with running:
            await_ready(running, _say)
            yield Embedded(directory=running.directory, home=home)
    finally:
        if not os.environ.get("CONSORTIUM_KEEP_TEST_HOME"):
            shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def empty_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite state with all its tables and nothing in them, made once."""
    from consortium.state import Database

    path = tmp_path_factory.mktemp("empty") / "state.db"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server; who needs stores of its own makes fresh buckets there."""
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def store(s3: S3) -> ObjectStore:
    """A fresh bucket."""
    return s3.fresh()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Call = Callable[..., Outcome]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """Run `consortium ARGUMENTS`; without `home`, in an empty home."""
    for name in ("CONSORTIUM_SERVER", "CONSORTIUM_TOKEN", "CONSORTIUM_KEY", "CONSORTIUM_AS"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*arguments: str, home: Path | None = None) -> Outcome:
        monkeypatch.setenv("CONSORTIUM_HOME", str(home or tmp_path / "home"))
        monkeypatch.setattr(sys, "argv", ["consortium", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            run()
        printed = capsys.readouterr()
        code = leaving.value.code
        return Outcome(code=code if isinstance(code, int) else 0, out=printed.out, err=printed.err)

    return invoke


def _say(text: str) -> None:
    print(text, file=sys.stderr)
