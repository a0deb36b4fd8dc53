"""What sites push: gapless, chained, signed; usage is billed once."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.job import Resources
from consortium.domain.records import RecordType, UsageRow
from consortium.keys.signing import sign_value

pytestmark = pytest.mark.integration
START = 1_795_000_000_000


def row(site: str, leg: str, start: int, end: int, **changes: Any) -> UsageRow:
    base = UsageRow(leg=leg, epoch="1.1", job="job-x", account="fr", site=site, flavor="h100-sxm", gpus=4,
                    start_ms=START + start, end_ms=START + end)  # fmt: skip
    return replace(base, **changes)


def test_duplicates_are_passed_over_and_a_gap_names_the_expected_number(fed: Any) -> None:
    site = fed.site("fr-1")
    for number in range(3):
        site.usage(row("fr-1", "leg-a", number * 10, number * 10 + 10))
    assert site.push(*site.chain[:2]).json() == {"acked_seq": 1}
    assert site.push().json() == {"acked_seq": 2}
    assert site.push().json() == {"acked_seq": 2}
    site.record(RecordType.DOWNTIME, {})
    site.record(RecordType.DOWNTIME, {})
    gap = site.push(site.chain[4])
    assert gap.status_code == 409
    assert "3 is expected" in gap.json()["detail"]
    assert gap.json()["fix"] == "send from record 3 on"
    assert site.push().json() == {"acked_seq": 4}
    assert site.poll().acked_seq == 4
    assert len(fed.until(lambda: (r := fed.typed("fr-1")) and len(r) == 5 and r)) == 5


def test_a_site_whose_records_are_refused_is_shown_with_the_reason_until_they_are_taken(fed: Any) -> None:
    def shown() -> str:
        return str(next(row["records_refused"] for row in fed.get("/v1/sites") if row["id"] == "uy-1"))

    site = fed.site("uy-1")
    good = site.record(RecordType.DOWNTIME, {"why": "power"})
    newer = {**to_json(good), "type": "weather"}
    for _ in range(2):
        assert site.post("/v1/sites/uy-1/records", {"records": [newer]}).status_code == 422
    assert "weather" in shown() or "type" in shown()
    assert fed.log().count("uy-1 has records that are refused") == 1
    assert site.push(good).status_code == 200
    assert shown() == ""
    assert site.push(replace(good, seq=7)).status_code == 409
    assert shown() == "", "a gap closes by itself"


def test_overlapping_usage_is_kept_but_billed_once(fed: Any) -> None:
    site = fed.site("de-1")
    spec = fed.spec([fed.dataset("de-1", "laws-de")], account="de", submitter="de/anna")
    job = fed.submit(replace(spec, resources=Resources(gpus=4, walltime_s=600))).json()["id"]
    offer = site.run(job)
    now = time.time_ns() // 1_000_000
    leased = UsageRow(leg=offer.leg, epoch=str(offer.epoch), job=job, account="de", site="de-1", flavor="a100-80g",
                      gpus=4, start_ms=now, end_ms=now + 100)  # fmt: skip
    site.usage(leased)
    site.usage(replace(leased, start_ms=now + 50, end_ms=now + 150))
    site.usage(replace(leased, account="fr", start_ms=now + 100, end_ms=now + 110))
    site.usage(row("de-1", "leg-b", 0, 1000))
    assert site.push().status_code == 200
    found = fed.get("/v1/usage")
    assert found["partners"]["de"] == {"delivered_gpu_ms": 400, "consumed_gpu_ms": 400}
    of_site = [item for item in found["rows"] if item["site"] == "de-1"]
    assert [(item["account"], item["conflict"], item["gpu_ms"], item["rows"]) for item in of_site] == [
        ("de", False, 400, 1), ("de", True, 400, 1), ("fr", True, 40, 1),
        ("fr", True, 4000, 1),
    ]  # fmt: skip
    site.succeed(offer)


def test_crossings_of_both_sides_meet(fed: Any) -> None:
    crossing = Crossing(
        sender="de-1",
        recipient="uy-1",
        side=CrossingSide.RELEASE,
        artifact_class=ArtifactClass.STATISTIC,
        size_bytes=77,
        count=1,
        digest="sha256:x",
        job="job-x",
        at_ms=START,
    )
    for name, side in (("de-1", CrossingSide.RELEASE), ("uy-1", CrossingSide.RECEIPT)):
        site = fed.site(name)
        sums = {"count": 1, "size_bytes": 77}
        body = {"period": "2026-11", "crossings": [replace(crossing, side=side)], "cumulative": sums}
        site.record(RecordType.CROSSING, body)
        assert site.push().status_code == 200
    found = fed.get("/v1/crossings")
    assert [(c["from"], c["to"], c["class"], c["bytes"], c["count"], c["agree"]) for c in found] == [
        ("de-1", "uy-1", "statistic", 77, 1, True)
    ]


def test_forged_foreign_and_rewritten_records_are_refused(fed: Any) -> None:
    site = fed.site("uy-1")
    good = site.record(RecordType.DOWNTIME, {"why": "power"})
    forged = replace(good, body={"why": "holiday"})
    answer = site.push(forged)
    assert answer.status_code == 409
    assert answer.json()["type"] == "urn:consortium:verification-failed"
    assert site.push(good).status_code == 200
    rewritten = sign_value(site.key, replace(good, body={"why": "another story"}, signature=""))
    answer = site.push(rewritten)
    assert answer.status_code == 409
    assert "two different records" in answer.json()["detail"]
    foreign = site.push(sign_value(site.key, replace(good, origin="fr-1", signature="")))
    assert foreign.status_code == 422
    other = fed.call("uy-1", "POST", "/v1/sites/fr-1/records", {"records": []})
    assert other.status_code == 403
