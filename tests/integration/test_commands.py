"""The command line against a whole federation: what the three users type, what they read, with which exit code."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Call, Embedded, Outcome

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
TEXTS = [
    f"Article {number}. Le présent décret fixe les conditions dans lesquelles les communes peuvent conclure "
    f"la convention numéro {number} avec le département et la région."
    for number in range(60)
]


@pytest.fixture
def consortium(call: Call, embedded: Embedded) -> Call:
    def invoke(*arguments: str) -> Outcome:
        return call(*arguments, home=embedded.home)

    return invoke


def _json(outcome: Outcome) -> Any:
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.fixture
def notes(consortium: Call, tmp_path: Path) -> dict[str, Any]:
    """A small French collection, registered at fr-1 by its engineer."""
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    name = f"notes-{time.monotonic_ns()}"
    options = ["--site", "fr-1", "--language", "fr", "--licence", "CC0-1.0", "--source", "tests", "--as", "fr/amelie"]
    return _json(consortium("data", "register", name, str(path), *options, "--json"))


def test_sites_are_listed_and_taken_out_and_back_by_their_own_admin(consortium: Call) -> None:
    rows = {row["id"]: row for row in _json(consortium("sites", "--json"))}
    assert {site: row["gpus"] for site, row in rows.items()} == {"fr-1": 8, "de-1": 8, "uy-1": 4}
    assert all(row["healthy"] for row in rows.values())
    stranger = consortium("site", "drain", "uy-1", "--as", "fr/bruno")
    assert stranger.code == 2
    assert "uy" in stranger.err
    assert _json(consortium("site", "drain", "uy-1", "--json"))["state"] in ("draining", "drained")
    assert _json(consortium("site", "resume", "uy-1", "--json"))["state"] == "active"
    assert re.search(r"^fr-1 +active +h100-sxm +8 ", consortium("sites").out, re.MULTILINE)


def test_quotas_and_shares(consortium: Call) -> None:
    accounts = {account["id"] for account in _json(consortium("quota", "show", "--json"))["accounts"]}
    assert {"fr", "fr/health", "de", "uy"} <= accounts
    shares = _json(consortium("shares", "--json"))
    assert {"account", "flavor", "nominal", "held", "borrowed", "lent"} <= set(shares[0])
    assert "fr/health" in consortium("quota", "show").out
    assert "nominal" in consortium("shares").out


def test_an_engineers_day(consortium: Call, notes: dict[str, Any]) -> None:
    submitted = ["submit", "clean", f"inputs=[{notes['name']}]", "min_chars=20", "--as", "fr/amelie"]
    dry = consortium(*submitted, "--dry-run")
    assert (dry.code, "nothing was submitted" in dry.out) == (0, True)
    done = consortium(*submitted, "--watch", "--json", "--idempotency-key", notes["id"])
    job = _json(done)
    assert job["state"] == "succeeded"
    assert "running" in done.err
    again = _json(consortium(*submitted, "--json", "--idempotency-key", notes["id"]))
    assert again["id"] == job["id"], "the same key makes no second job"

    listed = _json(consortium("jobs", "--state", "succeeded", "--account", "fr", "--json"))
    assert job["id"] in [row["id"] for row in listed]
    assert job["id"] in consortium("jobs").out
    shown = consortium("show", job["id"])
    assert re.search(r"^state +succeeded$", shown.out, re.MULTILINE)
    assert "fr-1" in shown.out
    assert "succeeded" in consortium("explain", job["id"]).out
    logs = consortium("logs", job["id"])
    assert logs.code == 0
    cancelled = consortium("cancel", job["id"])
    assert "Traceback" not in cancelled.err

    clean = _json(consortium("data", "show", f"{notes['name']}-clean", "--json"))
    assert clean["parents"] == [notes["id"]]
    trace = consortium("data", "trace", f"{notes['name']}-clean")
    assert notes["name"] in trace.out
    assert notes["name"] in consortium("data", "ls").out


def test_a_waiting_job_can_be_explained_and_cancelled(consortium: Call, notes: dict[str, Any]) -> None:
    assert consortium("site", "drain", "fr-1").code == 0
    try:
        told = consortium("submit", "clean", f"inputs=[{notes['name']}]", "--as", "fr/amelie")
        job = told.out.strip()
        assert job.startswith("job-")
        deadline = time.monotonic() + 20
        while "drain" not in (why := consortium("explain", job)).out:
            assert time.monotonic() < deadline, why.out
        assert "fr-1" in why.out
        stranger = consortium("cancel", job, "--as", "de/anna")
        assert stranger.code == 2
        assert "ask fr/amelie" in stranger.err
        assert consortium("cancel", job, "--as", "fr/amelie").code == 0
        assert _json(consortium("show", job, "--json"))["state"] == "cancelled"
    finally:
        assert consortium("site", "resume", "fr-1").code == 0


def test_a_denial_by_policy_exits_3_with_clause_file_and_line(consortium: Call, notes: dict[str, Any]) -> None:
    outcome = consortium("submit", "clean", f"inputs=[{notes['name']}]", "sites=[de-1]", "--as", "de/anna")
    assert outcome.code == 3
    assert outcome.out == ""
    assert re.search(r"fr/residency/\d", outcome.err)
    assert re.search(r"configs/policy/fr\.yaml:\d+", outcome.err)
    assert "would pass" in outcome.err


def test_a_job_that_could_never_fit_exits_4(consortium: Call, notes: dict[str, Any]) -> None:
    outcome = consortium("submit", "clean", f"inputs=[{notes['name']}]", "gpus=80", "--as", "fr/amelie")
    assert outcome.code == 4, outcome.err
    assert "80" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["submit", "pretrian"], 2, ["pretrian", "pretrain"]),
        (["submit", "clean", "inputs=[no-such-data]"], 5, ["no-such-data"]),
        (["submit", "clean", "inputs=[x]", "min_charz=3"], 2, ["min_charz", "min_chars"]),
        (["submit", "clean", "inputs=[x]", "gpus=-5"], 2, ["gpus", "-5"]),
        (["submit", "clean", "inputs=[x]", "flavors=[h100-smx]"], 5, ["x"]),
        (["submit", "clean"], 2, ["inputs"]),
        (["submit", "clean", "inputs=[x]", "name=${oc.env:HOME}"], 2, ["name"]),
        (["show", "job-00000000000000000000000000"], 5, ["job-00000000000000000000000000"]),
        (["data", "show", "no-such-data"], 5, ["no-such-data"]),
        (["data", "register", "x", "/nowhere.jsonl", "--site", "fr-1"], 5, ["/nowhere.jsonl"]),
        (["site", "drain", "fr-9"], 5, ["fr-9"]),
        (["report", "zz"], 5, ["zz"]),
        (["jobs", "--state", "sleeping"], 2, ["sleeping"]),
    ],
    ids=lambda value: "_".join(value[:3]) if isinstance(value, list) else "",
)
def test_bad_input_is_named_with_the_right_exit_code(
    consortium: Call, arguments: list[str], code: int, words: list[str]
) -> None:
    outcome = consortium(*arguments)
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


def test_an_auditor_fetches_verifies_and_catches_a_forgery(consortium: Call, tmp_path: Path) -> None:
    path = tmp_path / "fr.json"
    period = datetime.now(UTC).strftime("%Y-%m")
    assert consortium("report", "fr", "--period", period, "-o", str(path)).code == 0
    good = consortium("audit", "verify", str(path))
    assert good.code == 0, good.err
    assert "verified: fr" in good.out
    text = path.read_text()
    digit = re.search(r'"at_ms": ?\d*(\d)', text)
    assert digit is not None
    changed = str((int(digit.group(1)) + 1) % 10)
    path.write_text(text[: digit.start(1)] + changed + text[digit.end(1) :])
    forged = consortium("audit", "verify", str(path))
    assert forged.code == 7
    assert "Traceback" not in forged.err


def test_the_log_is_listed(consortium: Call) -> None:
    found = _json(consortium("audit", "log", "--count", "5", "--json"))
    assert found["size"] >= len(found["entries"]) > 0
    assert "record" in consortium("audit", "log").out


def test_an_expired_token_says_when_it_expired(consortium: Call, embedded: Embedded, monkeypatch: Any) -> None:
    from consortium.domain.partner import Role
    from consortium.keys.signing import SigningKey
    from consortium.keys.tokens import issue

    key = SigningKey.load(embedded.directory.server / "server.key")
    monkeypatch.setenv("CONSORTIUM_TOKEN", issue(key, "fr/amelie", (Role.ENGINEER,), "fr", 1_700_000_000_000))
    outcome = consortium("jobs")
    assert outcome.code == 2
    assert "expired on 2023-11-14" in outcome.err
