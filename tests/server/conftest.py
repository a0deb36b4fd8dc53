"""A federation's keys and signed documents, a real server process on a free port, and sites that speak its protocol.

The server never sees Ray; a `ScriptedSite` is a site's agent and gateway as far as the server can tell: real keys, real
HTTP, its own chain of records.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consortium.domain.partner import Person, Role
from consortium.keys.roster import Rosters
from consortium.keys.signing import SigningKey
from consortium.server.core import Core
from consortium.server.settings import ServerSettings
from consortium.state import Database
from tests.server.fed import Fed, make_fed
from tests.server.played import ADMIN, GRACE_MS, KEYS


@pytest.fixture
def quiet_fed(tmp_path: Path) -> Iterator[Fed]:
    """A federation whose server the test starts itself."""
    found = make_fed(tmp_path / "fed")
    yield found
    if found.process is not None:
        found.kill()


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fed]:
    """A federation with its server up, shared by the tests of a module: each ends the jobs it starts."""
    found = make_fed(tmp_path_factory.mktemp("server") / "fed")
    found.start()
    yield found
    if found.process is not None:
        found.kill()


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_state: Path) -> Iterator[tuple[Core, Fed]]:
    """The server's own parts in this process, without its loop, and their federation."""
    fed = make_fed(tmp_path / "fed")
    shutil.copy(empty_state, fed.home / "server" / "state.db")
    fed.write_settings()
    monkeypatch.setattr(Fed, "_next_version", lambda *_: 1)
    core = Core.open(ServerSettings.load(fed.config))
    yield core, fed
    core.close()


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("rounds")
    db = Database(f"sqlite:///{folder / 'state.db'}")
    clock = SimpleNamespace(now=1_000)
    known = {site: SimpleNamespace(id=site, signing_key=key.public) for site, key in KEYS.items()}
    admin = Person(id="fr/bruno", name="Bruno", roles=(Role.ADMIN,), signing_key=ADMIN.public)
    yield Core(
        settings=SimpleNamespace(round_grace_ms=GRACE_MS),  # type: ignore[arg-type]  # all that rounds read of them
        db=db,
        ledger=None,  # type: ignore[arg-type]  # records wait in the outbox
        key=SigningKey.generate(),
        trust=None,  # type: ignore[arg-type]
        clock=SimpleNamespace(now_ms=lambda: clock.now, at=clock),  # type: ignore[arg-type]
        contacts=None,  # type: ignore[arg-type]
        files=SimpleNamespace(current=SimpleNamespace(site=known.__getitem__, rosters=Rosters({admin.id: admin}))),  # type: ignore[arg-type]
        incarnation=7,
    )
    db.close()
    shutil.rmtree(folder)
