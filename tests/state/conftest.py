"""A state in a fresh SQLite file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from consortium.state import Database


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state with all its tables and nothing in them, made once."""
    path = tmp_path_factory.mktemp("empty") / "state.db"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def db(empty: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(empty, tmp_path / "state.db")
    database = Database(f"sqlite:///{tmp_path}/state.db")
    yield database
    database.close()
