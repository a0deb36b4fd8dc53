"""Starting and stopping: each fault is one clear error with the right exit code."""

from __future__ import annotations

import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from consortium.errors import ConfigError, UsageError
from consortium.server.settings import ServerSettings
from consortium.state import Database

pytestmark = pytest.mark.integration


def said(run: Any, code: int, *words: str) -> None:
    text = run.stderr.decode()
    assert run.returncode == code, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, text


def test_a_port_in_use_is_named(quiet_fed: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", quiet_fed.settings["port"]))
        taken.listen()
        said(quiet_fed.start(expect=2), 2, str(quiet_fed.settings["port"]), "in use", "fix:")


def test_a_second_server_on_the_same_state_is_refused_and_sigterm_ends_cleanly(quiet_fed: Any) -> None:
    quiet_fed.start()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    first = quiet_fed.settings["port"]
    quiet_fed.settings["port"] = port
    said(quiet_fed.start(expect=2), 2, "another server", "state.db")
    quiet_fed.settings["port"] = first
    assert quiet_fed.kill(signal.SIGTERM) == 0
    assert "Traceback" not in quiet_fed.log()
    quiet_fed.start()


def test_a_server_whose_state_on_postgresql_was_taken_over_ends_and_says_so(
    quiet_fed: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pgserver = pytest.importorskip("pgserver", reason="the wheel pgserver is not installed")
    postgres = pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    try:
        quiet_fed.settings["database_url"] = postgres.get_uri()
        quiet_fed.start()
        quiet_fed.process.send_signal(signal.SIGSTOP)  # or it takes its lock anew at once
        others = "pid <> pg_backend_pid() AND datname = current_database() AND backend_type = 'client backend'"
        postgres.psql(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE {others};")
        other = Database(postgres.get_uri())
        other.new_incarnation(1)
        quiet_fed.process.send_signal(signal.SIGCONT)
        assert quiet_fed.process.wait(30) == 2
        quiet_fed.process = None
        assert "another server took this state over" in quiet_fed.log()
        other.close()
        quiet_fed.start()
        assert quiet_fed.kill(signal.SIGTERM) == 0
    finally:
        postgres.cleanup()


def test_a_server_outlasts_a_postgresql_that_is_away_and_says_so_once(
    quiet_fed: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pgserver = pytest.importorskip("pgserver", reason="the wheel pgserver is not installed")
    folder = tmp_path_factory.mktemp("pg")
    postgres = pgserver.get_server(folder, cleanup_mode="stop")
    try:
        quiet_fed.settings["database_url"] = postgres.get_uri()
        quiet_fed.start()
        postgres.cleanup()
        quiet_fed.until(lambda: "the state database fails" in quiet_fed.log())
        away = quiet_fed.call("fr/amelie", "GET", "/v1/jobs")
        assert (away.status_code, away.json()["type"]) == (503, "urn:consortium:unreachable")
        began_ms = quiet_fed.get("/v1/health")["last_cycle_ms"]
        postgres = pgserver.get_server(folder, cleanup_mode="stop")
        quiet_fed.until(lambda: quiet_fed.get("/v1/health")["last_cycle_ms"] > began_ms, 30)
        fr = quiet_fed.dataset("fr-1", "laws-fr")
        assert quiet_fed.submit(quiet_fed.spec([fr])).json()["state"] == "pending"
        log = quiet_fed.log()
        assert log.count("the state database fails") == log.count("the state database answers again") == 1, log
        assert quiet_fed.kill(signal.SIGTERM) == 0
    finally:
        postgres.cleanup()


def test_half_written_or_wrong_settings_name_the_file_and_the_key(quiet_fed: Any) -> None:
    quiet_fed.settings["surprise"] = 1
    said(quiet_fed.start(expect=2), 2, "surprise", "config.json")
    quiet_fed.settings.pop("surprise")
    quiet_fed.settings["database_url"] = "mysql://nowhere"
    said(quiet_fed.start(expect=2), 2, "mysql")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("lease_ms", 10**9, "lease_ms must be"),
        ("max_skew_ms", -1, "max_skew_ms must be"),
        ("cycle_ms", 10**13, "cycle_ms must be"),
        ("round_grace_ms", 0, "round_grace_ms must be"),
        ("site_lost_ms", 1_000, "a leg could run twice"),
    ],
)
def test_settings_have_the_bounds_of_the_embedded_federations(quiet_fed: Any, key: str, value: int, word: str) -> None:
    quiet_fed.settings[key] = value
    quiet_fed.write_settings()
    with pytest.raises(UsageError, match=word):
        ServerSettings.load(quiet_fed.config)


def test_settings_that_are_not_text_are_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.json"):
        ServerSettings.load(tmp_path / "config.json")


def test_a_document_changed_by_somebody_else_stops_the_start_with_7(quiet_fed: Any) -> None:
    path = quiet_fed.home / "documents" / "policy-uy.json"
    document = json.loads(path.read_text())
    document["text"] = document["text"].replace("to: []", "to: [fr]")
    path.write_text(json.dumps(document))
    said(quiet_fed.start(expect=7), 7, "policy of uy", "policy-uy.json")
    path.write_text("{half")
    said(quiet_fed.start(expect=2), 2, "policy-uy.json")


def test_a_broken_database_file_is_said(quiet_fed: Any) -> None:
    (quiet_fed.home / "server" / "state.db").write_bytes(b"this is not a database, at all" * 100)
    said(quiet_fed.start(expect=2), 2, "state.db")


def test_an_expired_policy_denies_what_it_touches_and_nothing_else(quiet_fed: Any) -> None:
    document = quiet_fed.sign("policy", "uy", expires_ms=1_700_000_000_000)
    quiet_fed.start()
    uy, fr = quiet_fed.dataset("uy-1", "laws-es"), quiet_fed.dataset("fr-1", "laws-fr")
    denied = quiet_fed.submit(quiet_fed.spec([uy], account="uy", submitter="uy/alma")).json()
    assert denied["state"] == "denied", denied
    assert quiet_fed.submit(quiet_fed.spec([fr])).json()["state"] == "pending"
    assert document.file in quiet_fed.log()
    quiet_fed.sign("policy", "uy", version=2)

    def accepted() -> bool:
        again = quiet_fed.submit(quiet_fed.spec([uy], account="uy", submitter="uy/alma"))
        return bool(again.json()["state"] == "pending")

    quiet_fed.until(accepted)
    changes = [r["body"]["document"]["version"] for r in quiet_fed.records("server")
               if r["type"] == "policy" and r["body"]["partner"] == "uy"]  # fmt: skip
    assert changes == [1, 2]
