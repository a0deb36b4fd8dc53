"""`audit verify`: whose keys a report is checked under, and that this is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consortium.reports.text import render_json
from tests.conftest import Call
from tests.reports import builders as b

WORLD = b.example()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return WORLD.report(tmp_path_factory.mktemp("log"))


@pytest.fixture
def file(report: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "fr.json"
    path.write_text(render_json(report), encoding="utf-8")
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home where another consortium's federation was started."""
    root = tmp_path / "home" / "federations" / "left-over"
    root.mkdir(parents=True)
    b.example().trust.save(root / "trust.json")
    (tmp_path / "home" / "current").symlink_to(root)
    return tmp_path / "home"


def test_the_keys_of_the_federation_here_are_not_those_of_another_server(
    call: Call, file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = call("audit", "verify", str(file), home=home)
    assert shown.code == 7
    assert "another key for log" in shown.err
    assert f"keys of the federation on this machine, {home}/federations/left-over/trust.json" in shown.err
    assert "--trust" in shown.err
    monkeypatch.setenv("CONSORTIUM_SERVER", "https://consortium.example")
    there = call("audit", "verify", str(file), home=home)
    assert there.code == 0, there.err
    assert "keys: from the report itself; compare these fingerprints" in there.out


def test_keys_that_were_named_are_not_explained(call: Call, report: dict[str, Any], file: Path, home: Path) -> None:
    named = file.with_name("trust.json")
    WORLD.trust.save(named)
    assert f"keys: pinned in {named}" in call("audit", "verify", str(file), "--trust", str(named), home=home).out
    file.write_text(json.dumps(report | {"partner": "de"}), encoding="utf-8")
    shown = call("audit", "verify", str(file), "--trust", str(named), home=home)
    assert (shown.code, "on this machine" in shown.err) == (7, False)
