"""A state in a fresh SQLite file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from consortium.state import Database


@pytest.fixture
def db(empty_state: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(empty_state, tmp_path / "state.db")
    database = Database(f"sqlite:///{tmp_path}/state.db")
    yield database
    database.close()
