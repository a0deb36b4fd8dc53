"""Quotas on a real server: plan, consent, in force without a restart, in the ledger; budgets bind; shares say why."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import pytest

from consortium.accounting.periods import period_of
from consortium.config.quota_edit import edit_quota
from consortium.domain.job import LegState, Resources, SignedSpec
from consortium.domain.partner import Role
from consortium.domain.quota import QuotaApproval
from consortium.domain.records import UsageRow
from consortium.errors import ConfigError
from consortium.keys.canonical import canonical, digest, digest_json
from consortium.keys.tokens import Claims
from consortium.scheduler.forecast import forecast
from consortium.server import quotas, snapshots, submit
from consortium.state import data
from consortium.state.sites import update_site
from tests.server.placed import ME, at_work

pytestmark = pytest.mark.integration
MINUTE, HOUR = 60_000, 3_600_000
NOMINAL = "accounts.fr.projects.health.quotas.h100-sxm.nominal"
LIMIT = "accounts.fr.projects.health.quotas.h100-sxm.borrowing_limit"


def changed(fed: Any, *overrides: str) -> str:
    document = fed.get("/v1/quota")["document"]
    return edit_quota(document["text"], overrides, document["file"])


def plan(fed: Any, *overrides: str, who: str = "fr/bruno") -> Any:
    return fed.call(who, "POST", "/v1/quota/plan", {"text": changed(fed, *overrides)})


def apply(fed: Any, *overrides: str, who: str = "fr/bruno", text: str = "", **more: Any) -> Any:
    text = text or changed(fed, *overrides)
    replaces = fed.get("/v1/quota")["document"]["digest"]
    said = QuotaApproval(federation=fed.trust.log_name, person=who, change=digest(text.encode()), replaces=replaces)
    body = {"text": text, "replaces": replaces, "signature": fed.people[who].sign(canonical(said))}
    return fed.call(who, "POST", "/v1/quota/apply", body | more)


def nominal(fed: Any, account: str, flavor: str = "h100-sxm") -> int:
    accounts = {item["id"]: item for item in fed.get("/v1/quota")["accounts"]}
    return next(int(q["nominal"]) for q in accounts[account]["quotas"] if q["flavor"] == flavor)


def submitted(fed: Any, inputs: list[Any], **changes: Any) -> Any:
    answer = fed.submit(fed.spec(inputs, **changes))
    assert answer.status_code == 201, answer.text
    return answer.json()


def cancel(fed: Any, job: Any) -> None:
    assert fed.call(job["spec"]["submitter"], "POST", f"/v1/jobs/{job['id']}/cancel").status_code == 200


def test_quotas_that_cannot_come_into_force_beside_a_broken_document_are_not_said_to_be(fed: Any) -> None:
    path = fed.home / "documents" / "site-de-1.json"
    whole, before = path.read_text(), fed.get("/v1/quota")["document"]
    assert nominal(fed, "fr/health") == 2
    path.write_text(whole[:200])
    try:
        refused = apply(fed, f"{NOMINAL}=1")
        assert refused.status_code == 422, refused.text
        assert "not written" in refused.json()["detail"]
        assert "site-de-1.json" in refused.text
    finally:
        path.write_text(whole)
    assert fed.get("/v1/quota")["document"] == before
    assert apply(fed, f"{NOMINAL}=1").status_code == 200, "once that is mended"
    assert nominal(fed, "fr/health") == 1
    assert apply(fed, f"{NOMINAL}=2").status_code == 200
    assert nominal(fed, "fr/health") == 2


def test_quotas_that_were_written_and_are_not_loaded_are_not_said_to_be_in_force(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, fed = parts  # no loop loads anything here
    monkeypatch.setattr(quotas, "LOAD_S", 0.05)
    document = quotas.in_force(core)
    text = edit_quota(document.text, (f"{NOMINAL}=3",), document.file)
    replaces, person = digest_json(document), "fr/bruno"
    said = QuotaApproval(federation=core.trust.log_name, person=person, change=digest(text.encode()), replaces=replaces)
    claims = Claims(subject=person, partner="fr", roles=(Role.ADMIN,), expires_ms=1 << 47)
    with pytest.raises(ConfigError, match="version 2 of the quotas is written, but not in force"):
        quotas.apply(core, claims, text, replaces, fed.people[person].sign(canonical(said)))


def test_an_admin_divides_its_own_and_it_holds_at_once_without_a_restart(fed: Any) -> None:
    before = fed.get("/v1/quota")["document"]["version"]
    planned = plan(fed, f"{NOMINAL}=3")
    assert planned.status_code == 200, planned.text
    assert {(c["account"], c["before"], c["after"]) for c in planned.json()["changes"]} == {
        ("fr", 6, 5), ("fr/health", 2, 3)}  # fmt: skip
    assert (planned.json()["consent"], planned.json()["missing"]) == (["fr"], ["fr"])
    assert nominal(fed, "fr/health") == 2, "a plan changes nothing"
    done = apply(fed, f"{NOMINAL}=3")
    assert done.status_code == 200, done.text
    assert done.json()["version"] == before + 1
    assert nominal(fed, "fr/health") == 3
    recorded = fed.until(lambda: [r for r in fed.records("server") if r["type"] == "quota"][1:])
    assert [item["person"] for item in recorded[-1]["body"]["approvals"]] == ["fr/bruno"]
    assert recorded[-1]["body"]["document"]["version"] == before + 1
    consents = [r["body"] for r in fed.records("server") if r["type"] == "approval"]
    assert consents[-1]["statement"]["person"] == "fr/bruno"
    assert {c["account"] for c in consents[-1]["changes"]} == {"fr", "fr/health"}
    assert apply(fed, f"{NOMINAL}=2").status_code == 200


def test_who_may_not_change_quotas_is_told_who_may(fed: Any) -> None:
    engineer = apply(fed, f"{NOMINAL}=3", who="fr/amelie")
    assert engineer.status_code == 403
    assert plan(fed, f"{NOMINAL}=3", who="fr/amelie").status_code == 403
    stranger = apply(fed, f"{NOMINAL}=3", who="de/bernd")
    assert stranger.status_code == 403
    assert "ask an admin of fr" in stranger.json()["fix"]
    forged = apply(fed, f"{NOMINAL}=3", signature=fed.people["fr/amelie"].sign(b"x"))
    assert forged.status_code == 409
    assert "signature" in forged.json()["detail"]
    stale = apply(fed, f"{NOMINAL}=3", replaces="sha256:old")
    assert stale.status_code == 409
    assert "plan again" in stale.json()["fix"]
    assert apply(fed, text=fed.get("/v1/quota")["document"]["text"]).status_code == 409
    broken = plan(fed, f"{NOMINAL}=99")
    assert broken.status_code == 422
    assert "its sites deliver 8" in broken.json()["detail"]
    assert nominal(fed, "fr/health") == 2


def test_what_takes_from_others_is_in_force_once_all_have_signed_the_same(fed: Any) -> None:
    text = changed(fed, "accounts.fr.weight=2")
    first = apply(fed, text=text)
    assert first.status_code == 200, first.text
    assert (first.json()["signed"], first.json()["missing"]) == (["fr"], ["de", "uy"])
    in_force = first.json()["version"]
    (waiting,) = fed.get("/v1/quota")["waiting"]
    assert waiting["missing"] == ["de", "uy"]
    assert apply(fed, text=text).json()["missing"] == ["de", "uy"], "a second signature of one partner adds nothing"
    assert apply(fed, text=text, who="de/bernd").json()["missing"] == ["uy"]
    last = apply(fed, text=text, who="uy/bruno")
    assert (last.json()["missing"], last.json()["version"]) == ([], in_force + 1)
    shown = {row["account"]: row["weight"] for row in fed.get("/v1/shares")}
    assert (shown["fr"], shown["de"]) == (2, 1)
    assert fed.get("/v1/quota")["waiting"] == []
    assert apply(fed, "accounts.fr.weight=1").json()["missing"] == [], "giving back needs nobody else"


def test_a_plan_says_which_jobs_start_earlier_or_later(fed: Any) -> None:
    laws, site = fed.dataset("fr-1", "laws-fr"), fed.site("fr-1")
    assert apply(fed, f"{LIMIT}=3").status_code == 200
    running = submitted(fed, [laws], resources=Resources(gpus=4, walltime_s=3600), account="fr/health")
    offer = site.run(running["id"])
    waits = submitted(fed, [laws], resources=Resources(gpus=4, walltime_s=3600), account="fr/health")
    fed.until(lambda: fed.job(waits["id"])["reason"] and fed.job(waits["id"])["state"] == "pending")
    try:
        found = plan(fed, f"{LIMIT}=6").json()
        (moved,) = found["effect"]["jobs"]
        assert moved["job"] == waits["id"]
        assert moved["after_ms"] < moved["before_ms"] - 60_000
        assert found["effect"]["evictions"] == []
        assert plan(fed, f"{LIMIT}=4").json()["effect"]["jobs"] == []
    finally:
        cancel(fed, waits)
        site.succeed(offer)
        assert apply(fed, f"{LIMIT}=6").status_code == 200


def test_a_plan_that_changes_nothing_moves_no_job_though_time_goes_by_meanwhile(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, fed = parts
    at_work(core, fed)
    with core.db.write() as connection:
        update_site(connection, "fr-1", healthy=True, last_contact_ms=core.clock.now_ms())
        laws = fed.new_dataset("fr-1", "laws-fr")
        data.insert_dataset(connection, laws, now_ms=1, signer="fr/amelie", signature="x")
    core.contacts.heard_site("fr-1", core.clock.now_ms())
    spec = fed.spec([laws], resources=Resources(gpus=6, walltime_s=600), account="fr/health")
    signed = SignedSpec(spec=spec, signature=fed.people["fr/amelie"].sign(canonical(spec)))
    waits = submit.submit(core, ME, signed, "")["id"]
    ticks = count(core.clock.now_ms(), 1_000)
    monkeypatch.setattr(core.clock, "now_ms", lambda: next(ticks))
    with core.db.read() as connection:
        assert waits in forecast(snapshots.take(core, connection).snapshot, run="expected"), "it has a start to compare"
    effect = quotas.plan(core, quotas.in_force(core).text)["effect"]
    assert effect == {"jobs": [], "waiting": 1, "evictions": []}


def test_a_budget_that_is_used_up_holds_jobs_back_with_its_numbers(fed: Any) -> None:
    laws, site = fed.dataset("fr-1", "laws-fr"), fed.site("fr-1")
    now_ms = time.time_ns() // 1_000_000
    period = period_of(now_ms)
    job = submitted(fed, [laws], resources=Resources(gpus=2, walltime_s=3600), account="fr/health")
    offer = site.run(job["id"])
    row = UsageRow(leg=offer.leg, epoch=str(offer.epoch), job=job["id"], account="fr/health", site="fr-1",
                   flavor="h100-sxm", gpus=2, start_ms=now_ms - 4 * MINUTE, end_ms=now_ms)  # fmt: skip
    site.usage(row)
    assert site.push().status_code == 200
    assert apply(fed, f"budgets.fr/health.{period}=10").json()["missing"] == []
    (standing,) = [s for s in fed.get("/v1/quota")["standings"] if s["account"] == "fr/health"]
    assert standing["used"] == 8 * MINUTE
    assert abs(standing["promised"] - 2 * HOUR) < HOUR / 10
    small = fed.spec([laws], resources=Resources(gpus=1, walltime_s=3600), account="fr/health", nonce="")
    dry = fed.call("fr/amelie", "POST", "/v1/jobs", {"spec": fed.to_json(small), "dry_run": True}).json()
    told = {item["account"]: item for item in dry["budgets"]}["fr/health"]
    assert told["left"] - told["left_after"] == HOUR
    big = submitted(fed, [laws], resources=Resources(gpus=2, walltime_s=4 * 3600), account="fr/health")
    why = fed.until(lambda: (r := fed.job(big["id"])["reason"]) and r["code"] == "budget" and r)
    assert why["numbers"]["needed_reference_gpu_ms"] == 8 * HOUR
    assert why["numbers"]["used_reference_gpu_ms"] == 8 * MINUTE
    assert "fr/health may use 10.0 reference GPU-hours" in why["message"]
    explained = fed.get(f"/v1/jobs/{big['id']}/explain")
    assert explained["reason"]["code"] == "budget"
    assert not [o for o in site.poll().offers if o.job == big["id"]]
    assert apply(fed, f"budgets.fr/health.{period}=100").json()["missing"] == []
    site.succeed(site.run(big["id"]))
    site.succeed(offer)


def test_shares_print_every_factor_and_what_run_times_taught(fed: Any) -> None:
    laws, site = fed.dataset("fr-1", "laws-fr"), fed.site("fr-1")
    job = submitted(fed, [laws], resources=Resources(gpus=4, walltime_s=600), account="fr/health")
    offer = site.run(job["id"])
    row = next(r for r in fed.get("/v1/shares") if (r["account"], r["flavor"]) == ("fr/health", "h100-sxm"))
    assert (row["held"], row["nominal"], row["borrowed"]) == (4, 2, 2)
    assert row["dominant_share"] == pytest.approx(2 / 8)
    assert row["dominant_flavor"] == "h100-sxm"
    assert row["share"] == pytest.approx(row["dominant_share"] + row["borrowed_share"] - row["credit"])
    assert row["level"] >= 2
    before = {item["account"]: item["jobs"] for item in fed.get("/v1/quota")["run_times"]}
    site.say(offer.leg, offer.epoch, LegState.RUNNING)
    site.succeed(offer)
    found = fed.until(lambda: next(
        (item for item in fed.get("/v1/quota")["run_times"]
         if item["account"] == "fr/health" and item["jobs"] == before["fr/health"] + 1), None))  # fmt: skip
    assert found["error"]["jobs"] == found["jobs"]
    assert found["source"] == "walltime", "too few to be judged by"
