"""The command line against a real server, as the people who type it see it: dry runs, arrays, quotas, shares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consortium.domain.data import ArtifactClass, Shard
from tests.conftest import Call, Outcome

pytestmark = pytest.mark.integration
As = Callable[..., Outcome]


@pytest.fixture
def person(fed: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> As:
    """Call the command line as somebody who knows the server, a token and a key, and nothing else.

    The code that is signed is the one that the scripted sites say they have.
    """
    monkeypatch.setattr("consortium.client.submission.code_digest", lambda *_: "sha256:test")

    def run(who: str, *arguments: str, key: bool = True) -> Outcome:
        from tests.server.fed import ROLES

        monkeypatch.setenv("CONSORTIUM_SERVER", fed.url)
        monkeypatch.setenv("CONSORTIUM_TOKEN", fed.token(who, (ROLES[who],)))
        path = fed.home / f"{who.replace('/', '_')}.key"
        if not path.exists():
            fed.people[who].save(path)
        monkeypatch.setenv("CONSORTIUM_KEY", str(path) if key else "/nowhere")
        return call(*arguments)

    return run


def test_a_dry_run_needs_no_key_and_shows_all_sites_with_price(fed: Any, person: As) -> None:
    fed.dataset("fr-1", "laws-fr")
    for name in ("de-1", "fr-1", "uy-1"):
        fed.site(name)
    shown = person("fr/amelie", "submit", "clean", "inputs=[laws-fr]", "gpus=2", "--dry-run", key=False)
    assert shown.code == 0, shown.err
    print(shown.out)
    lines: dict[str, str] = {}
    for line in shown.out.splitlines():
        lines.setdefault((line.split() or [""])[0], line)
    assert lines["de-1"].split()[2] == "no"
    assert lines["fr-1"].split()[2:4] == ["yes", "at"]
    assert "at most 2.00, paid by fr" in lines["cost"]
    assert "about 1800 s" in lines["run"]
    assert person("fr/amelie", "jobs").out == ""


def test_a_denied_dry_run_leaves_as_a_submission_would(fed: Any, person: As) -> None:
    fed.dataset("uy-1", "laws-es")
    shown = person("fr/amelie", "submit", "clean", "inputs=[laws-es]", "sites=[fr-1]", "--dry-run")
    assert shown.code == 3
    assert shown.err.splitlines()[1].startswith("error: the job is denied by uy/residency")
    assert "job-" not in shown.err, "nothing was submitted: there is no such id"
    assert "it would be denied" in shown.out
    assert "uy/residency" in shown.out
    fed.dataset("fr-1", "laws-fr")
    huge = person("fr/amelie", "submit", "clean", "inputs=[laws-fr]", "gpus=64", "--dry-run")
    assert huge.code == 4
    assert "error: the job is denied: " in huge.err
    assert "job-" not in huge.err
    (row,) = [line for line in huge.out.splitlines() if line.startswith("fr-1  ")]
    assert row.split()[2] == "no"
    assert "can never hold 64 GPUs" in row


def test_a_dry_run_that_no_site_takes_is_not_said_to_run(fed: Any, person: As) -> None:
    fed.dataset("uy-1", "laws-es")
    fed.site("uy-1")
    asked = ("submit", "clean", "inputs=[laws-es]", "--account", "uy", "--dry-run")
    assert "it would run at uy-1" in person("uy/alma", *asked).out
    assert person("uy/bruno", "site", "drain", "uy-1").code == 0
    shown = person("uy/alma", *asked)
    assert person("uy/bruno", "site", "resume", "uy-1").code == 0
    print(shown.out)
    assert "nothing was submitted; it would wait: as things are uy-1 does not take it\n" in shown.out


def test_an_array_is_submitted_listed_and_explained(fed: Any, person: As, monkeypatch: pytest.MonkeyPatch) -> None:
    fed.dataset("fr-1", "laws-fr")
    fed.site("fr-1")
    done = person("fr/amelie", "submit", "clean", "inputs=[laws-fr]", "min_chars=1%a", "--array", "3", "--array-limit",
                  "1", "--json")  # fmt: skip
    assert done.code == 0, done.err
    jobs = json.loads(done.out)
    assert [job["spec"]["params"]["min_chars"] for job in jobs] == [10, 11, 12]
    array = jobs[0]["spec"]["array"]["id"]
    listed = person("fr/amelie", "jobs", "--array", array)
    rows = [line.split() for line in listed.out.splitlines()[1:]]
    assert [row[3] for row in rows] == ["clean-0", "clean-1", "clean-2"]
    assert all(row[1] in ("pending", "starting") for row in rows), "early: a narrow terminal cuts the end of a line"
    monkeypatch.setattr("consortium.cli.jobs._LISTED", 2)
    newest = person("fr/amelie", "jobs", "--array", array, "--json")
    assert [job["id"] for job in json.loads(newest.out)] == [job["id"] for job in jobs[1:]]
    assert newest.err.startswith("only the newest 2 are listed; ")
    last = jobs[2]["id"]
    fed.until(lambda: (fed.job(last)["reason"] or {}).get("code") == "array")
    assert "1 members of" in person("fr/amelie", "explain", last).out
    assert f"2 of 3 in {array}" in person("fr/amelie", "show", last).out
    after = person("fr/amelie", "submit", "clean", "inputs=[laws-fr]", f"after=[{last}]", "deadline=2d")
    assert after.code == 0, after.err
    assert f"after        {last}" in person("fr/amelie", "show", after.out.strip()).out
    ended = person("fr/amelie", "cancel", array)
    watched = person("fr/amelie", "show", last, "--watch")
    assert watched.err.startswith("cancelled")
    assert "state        cancelled" in watched.out
    assert ended.err.count("is cancelled") == 3
    fed.until(lambda: fed.job(after.out.strip())["state"] == "cancelled")
    assert "no member" in person("fr/amelie", "cancel", array).err
    none = person("fr/amelie", "jobs", "--array", array, "--state", "running")
    assert (none.code, none.out) == (0, "")


@pytest.mark.parametrize("size", ["0", "-1"])
def test_an_array_of_none_submits_no_job(fed: Any, person: As, size: str) -> None:
    fed.dataset("fr-1", "laws-fr")
    before = person("fr/amelie", "jobs", "--json").out
    shown = person("fr/amelie", "submit", "clean", "inputs=[laws-fr]", "--array", size)
    assert (shown.code, shown.out) == (2, "")
    assert f"an array has 1 to 1,000 members, got {size}" in shown.err
    assert person("fr/amelie", "jobs", "--json").out == before


def test_logs_and_lists_of_what_does_not_exist_are_named(fed: Any, person: As) -> None:
    fed.dataset("fr-1", "laws-fr")
    made = person("fr/amelie", "submit", "clean", "inputs=[laws-fr]", "gpus=8")
    job = made.out.strip()
    for more in ([], ["-f"]):
        shown = person("fr/amelie", "logs", job, "--site", "nope", *more)
        assert (shown.code, shown.out) == (5, "")
        assert "no leg at 'nope'" in shown.err
        assert "its sites: fr-1\n" in shown.err
    early = person("fr/amelie", "logs", job, "--site", "fr-1")
    assert (early.code, early.out, early.err) == (0, "", "no log yet\n")
    person("fr/amelie", "cancel", job)
    stranger = person("fr/amelie", "jobs", "--account", "zz")
    assert stranger.code == 5
    assert "there is no account 'zz'" in stranger.err
    assert "accounts: de" in stranger.err
    assert person("fr/amelie", "jobs", "--account", "uy").code == 0
    unknown = fed.new_id("arr")
    for command in (("jobs", "--array"), ("cancel",)):
        stranger = person("fr/amelie", *command, unknown)
        assert (stranger.code, stranger.out) == (5, "")
        assert f"there is no array '{unknown}'" in stranger.err
    stranger = person("fr/amelie", "data", "trace", "job-01m80zv")
    assert stranger.code == 5
    assert "there is no job 'job-01m80zv'" in stranger.err


def test_who_is_named_must_be_the_tokens(fed: Any, person: As) -> None:
    for command in (("jobs",), ("submit", "clean", "inputs=[x]"), ("sites",)):
        shown = person("fr/amelie", *command, "--as", "de/anna")
        assert (shown.code, shown.out) == (2, "")
        assert shown.err.startswith("error: the token is that of fr/amelie, not of de/anna\n")
    assert person("fr/amelie", "jobs", "--as", "fr/amelie").code == 0


def test_a_token_says_who_calls_the_federation_here_too(
    fed: Any, person: As, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def paths(suffix: str) -> dict[str, str]:
        return {who: str(tmp_path / f"{who.replace('/', '_')}{suffix}") for who in ("fr/amelie", "fr/bruno", "de/anna")}

    person("fr/bruno", "sites")  # sets the environment
    monkeypatch.delenv("CONSORTIUM_SERVER")
    monkeypatch.delenv("CONSORTIUM_KEY")
    known = {
        "server_url": fed.url,
        "token_paths": paths(".token"),
        "key_paths": paths(".key"),
        "roles": {who: ["engineer"] for who in paths("")},
        "default_person": "de/anna",
    }
    (tmp_path / "client.json").write_text(json.dumps(known))
    (tmp_path / "current").symlink_to(tmp_path)
    fed.people["fr/bruno"].save(paths(".key")["fr/bruno"])
    assert call("site", "drain", "fr-1", home=tmp_path).code == 0
    shown = call("site", "drain", "fr-1", "--as", "fr/amelie", home=tmp_path)
    assert (shown.code, shown.out) == (2, "")
    assert shown.err.startswith("error: the token is that of fr/bruno, not of fr/amelie\n")
    signed = call("quota", "apply", "accounts.de.weight=3", home=tmp_path)  # with the key of whose token it is
    assert signed.code == 0, signed.err
    assert "signed by fr;" in signed.err


def test_whom_an_override_names_as_the_payer_says_who_submits(
    fed: Any, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("consortium.client.submission.code_digest", lambda *_: "sha256:test")
    fed.dataset("fr-1", "laws-fr")
    people = ("fr/amelie", "de/anna")
    for who in people:
        fed.people[who].save(tmp_path / f"{who[:2]}.key")
        (tmp_path / f"{who[:2]}.token").write_text(fed.token(who, ("engineer",)))
    known = {
        "server_url": fed.url,
        "token_paths": {who: str(tmp_path / f"{who[:2]}.token") for who in people},
        "key_paths": {who: str(tmp_path / f"{who[:2]}.key") for who in people},
        "roles": {who: ["engineer"] for who in people},
        "default_person": "de/anna",
    }
    (tmp_path / "client.json").write_text(json.dumps(known))
    (tmp_path / "current").symlink_to(tmp_path)
    for account in (["account=fr/health"], ["--account", "fr/health"]):
        shown = call("submit", "clean", "inputs=[laws-fr]", *account, "--dry-run", home=tmp_path)
        assert shown.err.startswith("as fr/amelie, paid by account fr/health\n"), account


def test_an_admin_plans_and_applies_and_the_others_sign(fed: Any, person: As) -> None:
    change = "accounts.fr.projects.health.quotas.h100-sxm.nominal=3"
    planned = person("fr/bruno", "quota", "plan", change)
    assert planned.code == 0, planned.err
    assert "needs the consent of fr" in planned.out
    assert "no running job is evicted" in planned.out
    applied = person("fr/bruno", "quota", "apply", change)
    assert applied.code == 0, applied.err
    assert "in force as version 2, signed by fr" in applied.err
    weight = "accounts.de.weight=2"
    assert "once an admin of fr and of uy" in person("de/bernd", "quota", "apply", weight).err
    shown = person("fr/amelie", "quota", "show")
    assert "waits for an admin of fr and of uy to sign it" in shown.out
    assert "version 2" in shown.out
    file = fed.home / "agreed.yaml"
    file.write_text(json.loads(person("fr/bruno", "quota", "show", "--json").out)["document"]["text"])
    assert person("fr/bruno", "quota", "plan", str(file)).err == "nothing would change\n"
    refused = person("de/bernd", "quota", "apply", change.replace("=3", "=2"))
    assert refused.code == 2
    assert "ask an admin of fr" in refused.err
    assert person("fr/amelie", "quota", "plan", "accounts.fr.wait=2").code == 2


def test_a_plan_names_the_change_at_fault_and_fails_where_apply_would(fed: Any, person: As) -> None:
    month = "budgets.fr.2026-13=3"
    for what in ("plan", "apply"):
        shown = person("fr/bruno", "quota", what, "accounts.fr.weight=2", month)
        assert shown.code == 2
        assert f"where: override 2: {month}\n" in shown.err
    file = fed.home / "mine.yaml"
    file.write_text("accounts: [1\n")
    for what in ("plan", "apply"):
        shown = person("fr/bruno", "quota", what, str(file))
        assert shown.code == 2
        assert f"where: {file}:" in shown.err
    began = "pledges.uy.a100-40g.2026-11=1"
    planned = person("uy/bruno", "quota", "plan", began)
    assert planned.code == person("uy/bruno", "quota", "apply", began).code == 2
    assert "refused: lowering it needs 30 days' notice" in planned.out
    assert "pledge a100-40g 2026-11 of uy: lowering it needs 30 days' notice before 2026-11 begins" in planned.err
    told = person("uy/bruno", "quota", "plan", began, "--json")
    assert (told.code, json.loads(told.out)["consent"]) == (2, ["uy"])


def test_shares_show_the_factors_of_every_account(fed: Any, person: As) -> None:
    shown = person("fr/amelie", "shares")
    assert shown.code == 0, shown.err
    head = next(line for line in shown.out.splitlines() if line.startswith("account") and "weight" in line)
    for word in ("level", "share", "dominant", "borrowed", "lent", "credit"):
        assert word in head
    rows = json.loads(person("fr/amelie", "shares", "--json").out)
    assert {"weight", "level", "credit", "borrowed_reference_gpu_ms", "dominant_share"} <= set(rows[0])


def test_a_dry_run_of_a_training_says_what_it_takes(fed: Any, person: As) -> None:
    described = {"vocab_size": "32000", "tokenizer_digest": "sha256:one"}
    for site in ("fr-1", "de-1"):
        shards = (Shard(key=f"t/{site}", digest="sha256:" + site, size_bytes=10**9, documents=10, tokens=10**9),)
        fed.dataset(site, f"tokens-{site}", ArtifactClass.TOKENS, attributes=described, shards=shards)
        fed.site(site)
    asked = ("submit", "pretrain", "inputs=[tokens-fr-1,tokens-de-1]", "model=7b", "gpus=8", "outer.rounds=100",
             "outer.inner_steps=500", "--dry-run")  # fmt: skip
    shown = person("fr/amelie", *asked, key=False)
    assert shown.code == 0, shown.err
    lines = {line.split()[0]: line for line in shown.out.splitlines() if line}
    assert "7.24 billion parameters with 32,000 words" in lines["model"]
    assert "100 rounds of 500 steps" in lines["training"]
    assert "walltime_s=" in lines["warning"]
    assert [line.split()[1] for line in shown.out.splitlines() if line.startswith("de-1  fr-1")] == ["fr-1"]
    answer = json.loads(person("fr/amelie", *asked, "--json", key=False).out)
    assert [site["site"] for site in answer["training"]["sites"]] == ["de-1", "fr-1"]
    assert answer["training"]["borders"][0]["round_bytes"] == 4 * 7_241_732_096

    fed.dataset("de-1", "other-tokens", ArtifactClass.TOKENS, attributes=described | {"tokenizer_digest": "sha256:two"})
    other = person("fr/amelie", "submit", "pretrain", "inputs=[tokens-fr-1,other-tokens]", "--dry-run", key=False)
    assert other.code == 2
    assert "tokens-fr-1 and other-tokens were made with different tokenizers" in other.err
