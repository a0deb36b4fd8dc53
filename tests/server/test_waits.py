"""Jobs that wait for others: dependencies, arrays, deadlines; and what a dry run tells beforehand."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.codec import to_json
from consortium.domain.job import ArrayMember, LegState, Resources
from consortium.keys.canonical import canonical

pytestmark = pytest.mark.integration
SMALL = Resources(gpus=1, walltime_s=600)


def submitted(fed: Any, inputs: list[Any], **changes: Any) -> Any:
    answer = fed.submit(fed.spec(inputs, **({"resources": SMALL} | changes)))
    assert answer.status_code == 201, answer.text
    return answer.json()


def array(fed: Any, inputs: list[Any], size: int, limit: int = 0, **more: Any) -> Any:
    name = fed.new_id("arr")
    specs = [
        fed.spec(inputs, name=f"part-{index}", resources=SMALL,
                 array=ArrayMember(id=name, index=index, size=size, limit=limit))
        for index in range(size)
    ]  # fmt: skip
    members = [{"spec": to_json(spec), "signature": fed.people["fr/amelie"].sign(canonical(spec))} for spec in specs]
    return fed.call("fr/amelie", "POST", "/v1/jobs/array", {"members": members} | more)


def reason(fed: Any, job: Any, code: str) -> Any:
    return fed.until(lambda: (found := fed.job(job["id"])["reason"]) and found["code"] == code and found)


def state(fed: Any, job: Any) -> str:
    return str(fed.job(job["id"])["state"])


def cancel(fed: Any, *jobs: Any) -> None:
    for job in jobs:
        assert fed.call("fr/amelie", "POST", f"/v1/jobs/{job['id']}/cancel").status_code == 200


def test_a_job_starts_once_all_it_comes_after_have_succeeded(fed: Any) -> None:
    laws, site = fed.dataset("fr-1", "laws-fr"), fed.site("fr-1")
    first, second = submitted(fed, [laws]), submitted(fed, [laws])
    last = submitted(fed, [laws], after=(first["id"], second["id"]))
    waits = reason(fed, last, "dependency")
    assert waits["numbers"]["job"] in (first["id"], second["id"])
    site.succeed(site.run(first["id"]))
    fed.until(lambda: fed.job(last["id"])["reason"]["numbers"]["job"] == second["id"])
    assert not [offer for offer in site.poll().offers if offer.job == last["id"]]
    site.succeed(site.run(second["id"]))
    site.succeed(site.run(last["id"]))
    assert state(fed, last) == "succeeded"


def test_a_failed_dependency_ends_what_comes_after_it_and_so_on(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    first = submitted(fed, [laws])
    second = submitted(fed, [laws], after=(first["id"],))
    third = submitted(fed, [laws], after=(second["id"],))
    cancel(fed, first)
    fed.until(lambda: state(fed, third) == "cancelled")
    assert state(fed, second) == "cancelled"
    ended = fed.job(second["id"])["reason"]
    assert ended["code"] == "dependency"
    assert f"{first['id']} (clean-laws), which is cancelled" in ended["message"]
    decided = [r["body"] for r in fed.records("server") if r["type"] == "decision"]
    assert [r["state"] for r in decided if r["job"] == third["id"]] == ["cancelled"]
    refused = fed.submit(fed.spec([laws], after=(first["id"],)))
    assert refused.status_code == 409
    assert "would never start" in refused.json()["detail"]
    assert fed.submit(fed.spec([laws], after=(fed.new_id("job"),))).status_code == 404


def test_an_array_keeps_all_but_its_limit_out_of_line(fed: Any) -> None:
    laws, site = fed.dataset("fr-1", "laws-fr"), fed.site("fr-1")
    answer = array(fed, [laws], 3, limit=1)
    assert answer.status_code == 201, answer.text
    jobs = answer.json()
    assert [job["spec"]["name"] for job in jobs] == ["part-0", "part-1", "part-2"]
    listed = fed.get(f"/v1/jobs?array={jobs[0]['spec']['array']['id']}")
    assert [job["id"] for job in listed] == [job["id"] for job in jobs]
    for index, job in enumerate(jobs):
        offer = site.run(job["id"])
        for later in jobs[index + 1 :]:
            assert reason(fed, later, "array")["numbers"]["limit"] == 1
        assert {item.job for item in site.offers.values()} & {item["id"] for item in jobs[index + 1 :]} == set()
        site.succeed(offer)
    assert [state(fed, job) for job in jobs] == ["succeeded"] * 3


def test_an_array_is_submitted_whole_once_and_by_its_owner(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    first = array(fed, [laws], 2, idempotency_key="sweep")
    again = array(fed, [laws], 2, idempotency_key="sweep")
    assert [job["id"] for job in first.json()] == [job["id"] for job in again.json()]
    assert array(fed, [laws], 3, idempotency_key="sweep").status_code == 409
    member = ArrayMember(id=first.json()[0]["spec"]["array"]["id"], index=0, size=2)
    taken = fed.submit(fed.spec([laws], array=member))
    assert taken.status_code == 409
    foreign = fed.submit(fed.spec([laws], array=replace(member, index=1), account="uy", submitter="uy/alma"))
    assert foreign.status_code == 409
    before = len(fed.get("/v1/jobs"))
    half = fed.spec([laws], array=ArrayMember(id=fed.new_id("arr"), index=0, size=2))
    body = {"members": [{"spec": to_json(half), "signature": fed.people["fr/amelie"].sign(canonical(half))}]}
    assert fed.call("fr/amelie", "POST", "/v1/jobs/array", body).status_code == 422
    assert len(fed.get("/v1/jobs")) == before
    cancel(fed, *first.json())


def test_a_deadline_that_cannot_be_met_is_refused_and_one_that_passes_ends_the_job(fed: Any) -> None:
    laws, site = fed.dataset("fr-1", "laws-fr"), fed.site("fr-1")
    now_ms = time.time_ns() // 1_000_000
    refused = fed.submit(fed.spec([laws], resources=SMALL, deadline_ms=now_ms + 300_000))
    assert refused.status_code == 422
    assert "could not end by then" in refused.json()["detail"]
    assert refused.json()["fix"].startswith("walltime_s=")
    blocker = site.run(submitted(fed, [laws], resources=Resources(gpus=8, walltime_s=600))["id"])
    late = submitted(fed, [laws], deadline_ms=time.time_ns() // 1_000_000 + 602_000)
    assert state(fed, late) == "pending"
    fed.until(lambda: site.poll() and state(fed, late) == "cancelled")
    ended = fed.job(late["id"])["reason"]
    assert ended["code"] == "deadline"
    assert ended["numbers"]["left_s"] == 600
    site.succeed(blocker)


def test_a_dry_run_lists_every_site_with_start_and_cost_and_takes_no_signature(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    for name in ("de-1", "fr-1", "uy-1"):
        fed.site(name)
    spec = fed.spec([laws], resources=Resources(gpus=2, walltime_s=3600), nonce="")
    before = len(fed.get("/v1/jobs"))
    answer = fed.call("fr/amelie", "POST", "/v1/jobs", {"spec": to_json(spec), "dry_run": True})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    rows = {row["site"]: row for row in found["sites"]}
    assert {name: row["eligible"] for name, row in rows.items()} == {"de-1": False, "fr-1": True, "uy-1": False}
    assert rows["de-1"]["reason"]["code"] == "territory"
    assert rows["fr-1"]["start"]["earliest_ms"] <= rows["fr-1"]["start"]["latest_ms"]
    hour = 3_600_000 * 2
    assert rows["fr-1"]["most_reference_gpu_ms"] == hour
    assert found["cost"]["most_reference_gpu_ms"] == [hour, hour]
    assert 0 < found["cost"]["expected_reference_gpu_ms"][0] < hour
    assert [item["account"] for item in found["share"]] == ["fr"]
    assert found["run_time"]["source"] == "walltime"
    assert len(fed.get("/v1/jobs")) == before
    other = fed.call("de/anna", "POST", "/v1/jobs", {"spec": to_json(spec), "dry_run": True})
    assert other.status_code == 403
    submitted_unsigned = fed.call("fr/amelie", "POST", "/v1/jobs", {"spec": to_json(replace(spec, nonce="n"))})
    assert submitted_unsigned.status_code == 409, "what a dry run sends cannot be submitted"


def test_a_denied_dry_run_still_says_what_every_site_thinks(fed: Any) -> None:
    foreign = fed.dataset("uy-1", "laws-es")
    spec = fed.spec([foreign], sites=("fr-1",), nonce="")
    found = fed.call("fr/amelie", "POST", "/v1/jobs", {"spec": to_json(spec), "dry_run": True}).json()
    assert found["state"] == "denied"
    assert found["denials"]
    rows = {row["site"]: row["reason"]["code"] for row in found["sites"]}
    assert rows == {"de-1": "territory", "fr-1": "policy", "uy-1": "territory"}


def test_a_leg_that_ran_teaches_how_long_its_account_runs(fed: Any) -> None:
    laws, site = fed.dataset("fr-1", "laws-fr"), fed.site("fr-1")
    before = fed.call("fr/amelie", "GET", "/v1/shares").json()
    assert before is not None
    offer = site.run(submitted(fed, [laws])["id"])
    site.say(offer.leg, offer.epoch, LegState.RUNNING)
    site.succeed(offer)
