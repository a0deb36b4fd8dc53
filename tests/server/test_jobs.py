"""A job's way through a real server, with scripted sites."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.data import ArtifactClass, Description
from consortium.domain.job import Fault, JobKind, LegState, Resources
from consortium.domain.protocol import Voucher
from consortium.keys.canonical import canonical
from consortium.keys.signing import verify

pytestmark = pytest.mark.integration


def submitted(fed: Any, inputs: list[Any], **changes: Any) -> Any:
    answer = fed.submit(fed.spec(inputs, **changes))
    assert answer.status_code == 201, answer.text
    return answer.json()


def gang(fed: Any, **changes: Any) -> tuple[Any, list[Any]]:
    """A tokenize job over the three sites."""
    sites = [fed.site(name) for name in ("de-1", "fr-1", "uy-1")]
    inputs = [
        fed.dataset(site.name, f"clean-{site.name}-{secrets.token_hex(3)}", ArtifactClass.CLEAN) for site in sites
    ]
    given = {"kind": JobKind.TOKENIZE, "params": fed.params("tokenize"), "min_sites": 3, "name": "tokenize-laws",
             "resources": Resources(gpus=1, walltime_s=600)}  # fmt: skip
    job = submitted(fed, inputs, **(given | changes))
    assert job["state"] == "pending", job
    return job, sites


def state(fed: Any, job: Any) -> str:
    return str(fed.job(job["id"])["state"])


def test_a_job_goes_from_submission_to_success_and_its_records_reach_the_ledger(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = submitted(fed, [laws])
    assert job["state"] == "pending"
    assert job["target_sites"] == ["fr-1"]
    offer = site.run(job["id"])
    assert [item.id for item in offer.inputs] == [laws.id]
    assert sum(offer.nodes.values()) == 2
    running = fed.job(job["id"])
    assert running["state"] == "running"
    assert running["progress"] == {"fr-1": {"phase": "run"}}
    output = replace(
        laws, id=fed.new_id("ds"), name="laws-fr-clean", artifact_class=ArtifactClass.CLEAN, parents=(laws.id,)
    )
    site.succeed(offer, metrics={"kept": 9}, outputs=fed.to_json([output]))
    done = fed.job(job["id"])
    assert done["state"] == "succeeded", done
    assert done["result"]["fr-1"]["metrics"] == {"kept": 9}
    assert done["result"]["fr-1"]["outputs"] == [output.id]
    assert not site.legs, "the server acknowledged the final report"
    made = [r for r in fed.records("server") if r["body"].get("job") == job["id"]]
    assert sorted(r["type"] for r in made) == ["dataset", "decision", "decision", "job", "lease", "manifest"]
    lease = next(r["body"] for r in made if r["type"] == "lease")
    assert 0 < lease["offered_ms"] <= lease["start_ms"] <= lease["running_ms"] <= lease["final_ms"]
    traced = fed.get(f"/v1/datasets/{output.id}/trace")
    assert traced["collections"] == [laws.id]
    assert [item["id"] for item in traced["jobs"]] == [job["id"]]


def test_an_offer_says_who_vouches_for_each_input(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    offer = site.run(submitted(fed, [laws])["id"])
    voucher = offer.vouchers[laws.id]
    assert (voucher.person, voucher.leg) == ("fr/amelie", "")
    verify(fed.people["fr/amelie"].public, canonical(offer.inputs[0]), voucher.signature, what="laws-fr")
    output = replace(
        laws, id=fed.new_id("ds"), name="laws-fr-clean", artifact_class=ArtifactClass.CLEAN, parents=(laws.id,)
    )
    site.succeed(offer, outputs=fed.to_json([output]))
    job = submitted(fed, [output], kind=JobKind.TOKENIZE, params=fed.params("tokenize"))
    later = site.run(job["id"])
    assert later.vouchers == {output.id: Voucher(leg=offer.leg)}
    site.succeed(later)


def test_a_gang_starts_only_when_every_site_holds(fed: Any) -> None:
    job, (de, fr, uy) = gang(fed)
    offers = [de.hold(job["id"]), fr.hold(job["id"])]
    assert not de.poll().starts
    assert not fr.poll().starts
    assert state(fed, job) == "starting"
    last = uy.hold(job["id"])
    assert last.peers == ("de-1", "fr-1", "uy-1")
    for site, offer in zip((de, fr, uy), [*offers, last], strict=True):
        site.wait_start(offer)
        site.say(offer.leg, offer.epoch, LegState.RUNNING)
    assert state(fed, job) == "running"
    for site, offer in zip((de, fr, uy), [*offers, last], strict=True):
        assert state(fed, job) == "running"
        site.succeed(offer)
    assert state(fed, job) == "succeeded"


def test_one_refusal_releases_the_gang_and_the_job_waits_with_the_sites_reason(fed: Any) -> None:
    job, (de, fr, uy) = gang(fed)
    held = de.hold(job["id"])
    other = fr.offer(job["id"])
    fr.say(other.leg, other.epoch, LegState.REFUSED, reason="the code differs", reason_code="code")
    shown = fed.job(job["id"])
    assert shown["state"] == "pending"
    assert shown["reason"]["code"] in ("refused", "held")
    assert "the code differs" in shown["reason"]["message"]
    assert [stop.leg for stop in de.poll().stops] == [held.leg]
    de.say(held.leg, held.epoch, LegState.STOPPED)
    uy.poll()
    uy.poll()
    cancelled = fed.call("fr/amelie", "POST", f"/v1/jobs/{job['id']}/cancel")
    assert cancelled.json()["state"] == "cancelled"


def test_a_refusal_by_the_sites_own_policy_denies_the_job_and_names_the_clause(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = submitted(fed, [laws])
    offer = site.offer(job["id"])
    denial = {"partner": "fr", "clause": "fr/purposes/1", "message": "not for this", "file": "configs/policy/fr.yaml",
              "line": 7, "would_pass": "purpose=research"}  # fmt: skip
    site.say(offer.leg, offer.epoch, LegState.REFUSED, reason="own policy", reason_code="policy", denial=denial)
    shown = fed.job(job["id"])
    assert shown["state"] == "denied"
    assert shown["denials"] == [denial]


def test_a_dataset_whose_consent_has_ended_is_denied_with_the_day_and_what_to_do(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr", about=Description(consent_until="2020-02-29"))
    fed.site("fr-1")
    job = submitted(fed, [laws])
    assert (job["state"], job["reason"]["code"]) == ("denied", "consent")
    assert job["reason"]["message"] == f"the consent to use laws-fr@{laws.version} ended on 2020-02-29"
    assert job["reason"]["numbers"] == {"dataset": laws.id, "consent_until": "2020-02-29"}
    assert "--consent-until" in job["reason"]["fix"]


def test_a_job_whose_inputs_consent_ends_while_it_waits_ends_with_the_sites_refusal(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr", about=Description(consent_until="9998-12-31"))
    site = fed.site("fr-1")
    job = submitted(fed, [laws])
    offer = site.offer(job["id"])
    assert offer.inputs[0].about == laws.about
    site.say(offer.leg, offer.epoch, LegState.REFUSED, reason="the consent ended", reason_code="consent")
    shown = fed.job(job["id"])
    assert (shown["state"], shown["reason"]["code"]) == ("denied", "consent")


def test_reading_another_states_raw_text_is_denied_with_clause_file_and_line(fed: Any) -> None:
    foreign = fed.dataset("uy-1", "laws-es")
    fed.site("fr-1")
    job = submitted(fed, [foreign], sites=("fr-1",))
    assert job["state"] == "denied"
    first = job["denials"][0]
    assert first["clause"].startswith("uy/residency/")
    assert first["file"].endswith("policy/uy.yaml")
    assert first["line"] > 1
    assert job["reason"]["code"] == "policy"


def test_a_job_that_can_never_fit_its_quota_is_denied_for_good(fed: Any) -> None:
    laws = fed.dataset("uy-1", "laws-es")
    job = submitted(fed, [laws], account="uy", submitter="uy/alma", resources=Resources(gpus=64, walltime_s=60))
    assert job["state"] == "denied"
    assert job["reason"]["code"] in ("gang_size", "quota_never", "flavor")


def test_a_program_that_fails_fails_the_job_and_stops_its_peers(fed: Any) -> None:
    job, sites = gang(fed)
    offers = [site.hold(job["id"]) for site in sites]
    for site, offer in zip(sites, offers, strict=True):
        site.wait_start(offer)
        site.say(offer.leg, offer.epoch, LegState.RUNNING)
    sites[0].fail(offers[0], Fault.USER, "ZeroDivisionError")
    shown = fed.job(job["id"])
    assert shown["state"] == "failed"
    assert "ZeroDivisionError" in shown["reason"]["message"]
    for site, offer in zip(sites[1:], offers[1:], strict=True):
        assert [stop.leg for stop in site.poll().stops] == [offer.leg]
        site.say(offer.leg, offer.epoch, LegState.STOPPED)
    assert state(fed, job) == "failed"


def test_a_leg_that_fails_by_its_sites_fault_gets_a_new_epoch(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = submitted(fed, [laws])
    first = site.run(job["id"])
    site.fail(first, Fault.SITE, "the Ray head died")
    shown = fed.job(job["id"])
    assert shown["state"] in ("pending", "starting")
    assert shown["reason"]["code"] == "held"
    assert "Ray head" in shown["reason"]["message"]
    again = site.run(job["id"])
    assert again.leg == first.leg
    assert again.epoch > first.epoch
    assert again.attempt == first.attempt
    stale = site.say(first.leg, first.epoch, LegState.RUNNING)
    assert [(stop.leg, stop.epoch) for stop in stale.stops] == [(first.leg, first.epoch)]
    site.succeed(again)
    assert state(fed, job) == "succeeded"
    leases = [
        r["body"]["epoch"] for r in fed.records("server") if r["type"] == "lease" and r["body"]["leg"] == first.leg
    ]
    assert leases == [str(first.epoch), str(again.epoch)]


def test_cancel_stops_the_leg_and_frees_its_gpus_once_the_site_confirms(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = submitted(fed, [laws])
    offer = site.run(job["id"])
    answer = fed.call("fr/amelie", "POST", f"/v1/jobs/{job['id']}/cancel")
    assert answer.status_code == 200, answer.text
    assert answer.json()["state"] == "cancelled"
    assert next(s for s in fed.get("/v1/sites") if s["id"] == "fr-1")["gpus_held"] == 2
    assert [stop.leg for stop in site.poll().stops] == [offer.leg]
    site.say(offer.leg, offer.epoch, LegState.STOPPED)
    assert next(s for s in fed.get("/v1/sites") if s["id"] == "fr-1")["gpus_held"] == 0
    again = fed.call("fr/amelie", "POST", f"/v1/jobs/{job['id']}/cancel")
    assert again.json()["state"] == "cancelled"


def test_only_its_people_cancel_a_job(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    job = submitted(fed, [laws])
    refused = fed.call("de/anna", "POST", f"/v1/jobs/{job['id']}/cancel")
    assert refused.status_code == 403
    assert refused.json()["type"] == "urn:consortium:forbidden"
    assert fed.call("fr/bruno", "POST", f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    fed.site("fr-1")
    fed.site("fr-1")


def test_over_quota_waits_says_why_and_borrows_when_there_is_room(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    first = submitted(fed, [laws], resources=Resources(gpus=6, walltime_s=600))
    offer = site.run(first["id"])
    second = submitted(fed, [laws], resources=Resources(gpus=6, walltime_s=600), account="fr/health")
    shown = fed.until(lambda: (j := fed.job(second["id"]))["reason"] and j)
    assert shown["state"] == "pending"
    assert shown["reason"]["message"]
    why = fed.get(f"/v1/jobs/{second['id']}/explain")
    assert why["funnel"]["steps"]
    site.succeed(offer)
    borrowed = site.run(second["id"])
    share = next(s for s in fed.get("/v1/shares") if s["account"] == "fr/health")
    assert share["held"] == 6
    assert share["borrowed"] == 6 - share["nominal"]
    site.succeed(borrowed)
    assert state(fed, second) == "succeeded"


def test_a_drained_site_takes_no_new_legs_until_it_is_resumed(fed: Any) -> None:
    laws = fed.dataset("uy-1", "laws-es")
    site = fed.site("uy-1")
    assert fed.call("fr/bruno", "POST", "/v1/sites/uy-1/drain").status_code == 403
    assert fed.call("uy/bruno", "POST", "/v1/sites/uy-1/drain").status_code == 200
    job = submitted(fed, [laws], account="uy", submitter="uy/alma")
    fed.until(lambda: next(s for s in fed.get("/v1/sites") if s["id"] == "uy-1")["state"] == "drained")
    shown = fed.until(lambda: (j := fed.job(job["id"]))["reason"] and j)
    assert shown["reason"]["code"] == "site_state"
    assert not site.poll().offers
    assert fed.call("uy/bruno", "POST", "/v1/sites/uy-1/resume").status_code == 200
    offer = site.run(job["id"])
    site.succeed(offer)
    assert state(fed, job) == "succeeded"


def test_an_unhealthy_site_gets_no_offers(fed: Any) -> None:
    laws = fed.dataset("uy-1", "laws-es")
    site = fed.site("uy-1")
    site.healthy = False
    site.poll()
    job = submitted(fed, [laws], account="uy", submitter="uy/alma")
    fed.until(lambda: fed.job(job["id"])["reason"])
    assert not site.poll().offers
    site.healthy = True
    site.succeed(site.run(job["id"]))
    assert state(fed, job) == "succeeded"


def test_a_job_signed_for_other_code_is_not_offered_and_says_so(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    site.poll()
    job = fed.submit(fed.spec([laws], code_digest="sha256:other")).json()
    reason = fed.until(lambda: fed.job(job["id"])["reason"])
    assert reason["code"] == "refused"
    assert "sha256:test" in reason["message"]
    assert "install the same version" in reason["fix"]
    assert not site.poll().offers
