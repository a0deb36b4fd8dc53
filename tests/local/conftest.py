"""A home of its own for every test, and a quick look at what is alive."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

Wait = Callable[[Callable[[], object], str], None]


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("CONSORTIUM_HOME", str(home))
    return home


@pytest.fixture
def wait() -> Wait:
    """Poll a condition until it holds; fail, naming it, after 15 s."""

    def until(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 15
        while not condition():
            assert time.monotonic() < deadline, f"not within 15 s: {what}"
            time.sleep(0.02)

    return until
