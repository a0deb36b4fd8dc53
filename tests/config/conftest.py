from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from consortium.config import Dirs, default_dirs


@pytest.fixture
def copied(tmp_path: Path) -> Dirs:
    """A copy of the project's configs that a test may damage."""
    original = default_dirs()
    shutil.copytree(original.configs, tmp_path / "configs")
    shutil.copytree(original.clusters, tmp_path / "clusters")
    return Dirs(configs=tmp_path / "configs", clusters=tmp_path / "clusters")
