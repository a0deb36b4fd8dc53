"""What becomes of output that nobody takes: the exit code is the command's own, whoever reads it and however."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from consortium.cli.show import say
from tests.reports import builders as b

COMMAND = f"{sys.executable} -m consortium"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report that holds (`good`), the same with one digit changed (`dig`)."""
    from consortium.reports.text import render_json

    folder = tmp_path_factory.mktemp("reports")
    report = b.example().report(folder / "log")
    (folder / "good").write_text(render_json(report))
    report["figures"]["delivered"]["total"]["gpu_ms"] += 1
    (folder / "dig").write_text(render_json(report))
    return folder


def shell(line: str, folder: Path, *, unbuffered: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a line of bash: `$c` is the command line, `$d` the folder; of a pipe the first command's exit code counts."""
    more = {"PYTHONUNBUFFERED": "1"} if unbuffered else {}
    return subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        env={"PATH": os.environ["PATH"], "c": COMMAND, "d": str(folder), "TMPDIR": str(folder)} | more,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full", "2>&1 | true"])
def test_a_failed_verification_exits_7_whoever_listens(reports: Path, where: str) -> None:
    assert shell(f"$c audit verify $d/dig {where}", reports).returncode == 7


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("command", ["$c audit verify $d/good", "$c --help"])
def test_a_reader_that_has_gone_is_nobodys_fault(reports: Path, command: str, unbuffered: bool) -> None:
    for where in (">&-", "| true"):
        shown = shell(f"{command} {where}", reports, unbuffered=unbuffered)
        assert (shown.returncode, shown.stderr) == (0, ""), where


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_full_disk_is_said_in_a_line_and_fails(reports: Path, unbuffered: bool) -> None:
    shown = shell("$c audit verify $d/good >/dev/full", reports, unbuffered=unbuffered)
    assert shown.returncode == 1
    assert shown.stderr.startswith("error: the output could not be written: No space left on device\n")
    assert shell("$c audit verify $d/good >/dev/full 2>&1", reports, unbuffered=unbuffered).returncode == 1
    assert not list(reports.glob("consortium-*.log"))


def test_bad_usage_exits_2_whoever_listens(reports: Path) -> None:
    for where in ("2>&-", "2>/dev/full", "2>&1 | true"):
        assert shell(f"$c nonsense {where}", reports).returncode == 2, where


def test_a_closed_output_is_not_the_next_file_that_is_opened(reports: Path) -> None:
    code = "import os; from consortium.cli.streams import settle; settle(); raise SystemExit(os.open('/', 0) < 3)"
    assert shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-', reports).returncode == 0


@pytest.mark.parametrize("encoding", ["iso8859-1", "ascii", "utf-8"])
def test_a_sign_that_the_encoding_lacks_is_escaped_and_json_stays_json(reports: Path, encoding: str) -> None:
    code = (
        "from consortium.cli.streams import settle; settle(); "
        "from consortium.cli.show import put_json; put_json([chr(0xe9), chr(0x2026), chr(0x1d11e)])"
    )
    shown = shell(f'PYTHONIOENCODING={encoding} {sys.executable} -c "{code}" | iconv -f {encoding} -t utf-8', reports)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert json.loads(shown.stdout) == ["\xe9", "\u2026", "\U0001d11e"]


def test_help_is_shown_in_an_old_encoding(reports: Path) -> None:
    shown = shell("PYTHONIOENCODING=latin-1 $c jobs --help", reports)
    assert (shown.returncode, shown.stderr) == (0, "")


def test_talk_that_cannot_be_said_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody hears this")
    with open(tmp_path / "closed", "w") as closed:
        monkeypatch.setattr(sys, "stderr", closed)
    say("nor this")
    assert capsys.readouterr().out == ""
