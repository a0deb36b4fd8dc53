"""What others wrote reaches a terminal as text, and never as a command."""

from __future__ import annotations

import json

import pytest

from consortium.cli.show import put, put_json, say, table, when

HOSTILE = "\x1b]0;title\x07\x1b[2Jall was re-executed\u202e\x9b31m\ud800\r"


def test_controls_become_visible_and_colours_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    put(HOSTILE)
    say(f"a\nb\tc {HOSTILE}")
    table(["a", "b"], [[HOSTILE, "x\ny"]], empty="")
    put("\x1b[31mred\x1b[0m")
    found = capsys.readouterr()
    shown = found.out + found.err
    assert all(sign.isprintable() or sign in "\n\t" for sign in shown)
    assert "⟨1B⟩]0;title⟨7⟩⟨1B⟩[2Jall was re-executed⟨202E⟩⟨9B⟩31m⟨D800⟩⟨D⟩" in found.out
    assert "x y" in found.out
    assert found.out.endswith("\nred\n")
    assert found.err.startswith("a\nb\tc")


def test_json_keeps_its_value(capsys: pytest.CaptureFixture[str]) -> None:
    put_json({"é": [HOSTILE, "\U000e0001", "\x7f"]})
    text = capsys.readouterr().out
    assert json.loads(text) == {"é": [HOSTILE, "\U000e0001", "\x7f"]}
    assert "é" in text
    assert all(sign.isprintable() or sign == "\n" for sign in text)


@pytest.mark.parametrize("unix_ms", [10**18, 10**40, -(10**18)])
def test_a_time_that_no_calendar_has_is_shown_as_a_number(unix_ms: int) -> None:
    assert when(unix_ms) == f"{unix_ms} ms"
    assert when(0) == "-"
    assert when(1_764_000_000_000) == "2025-11-24 16:00:00"
