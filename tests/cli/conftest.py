"""Calling the command line as its console script does, in this process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from consortium.cli.app import run


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
