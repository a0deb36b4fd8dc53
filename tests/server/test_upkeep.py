"""Maintenance windows, reservations and recalls with notice, on a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from consortium.domain.data import ArtifactClass
from consortium.domain.job import JobKind, LegState, Resources
from tests.server.test_faults import ONE, THREE, downtime, row_of

pytestmark = pytest.mark.integration


@pytest.fixture
def fed(quiet_fed: Any) -> Iterator[Any]:
    """A federation in which fr-1 has three nodes."""
    quiet_fed.sign_site("fr-1", ONE, THREE)
    quiet_fed.start()
    return quiet_fed


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def submitted(fed: Any, laws: Any, gpus: int = 2, walltime_s: int = 600, **changes: Any) -> str:
    answer = fed.submit(fed.spec([laws], resources=Resources(gpus=gpus, walltime_s=walltime_s), **changes))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def planned(fed: Any, site: str, start_s: float, end_s: float, who: str = "fr/bruno", **more: Any) -> Any:
    start, end = now_ms() + round(start_s * 1000), now_ms() + round(end_s * 1000)
    body = {"kind": "maintenance", "start_ms": start, "end_ms": end} | more
    return fed.call(who, "POST", f"/v1/sites/{site}/windows", body)


def stops(site: Any) -> list[Any]:
    return list(site.fed.until(lambda: site.poll().stops))


def test_nobody_starts_what_would_run_into_maintenance(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    window = planned(fed, "fr-1", 300, 900).json()
    long = submitted(fed, laws, walltime_s=600)
    short = submitted(fed, laws, walltime_s=60)
    site.succeed(site.run(short))
    assert fed.job(long)["state"] == "pending"
    assert fed.job(long)["reason"]["message"]
    assert fed.call("fr/bruno", "DELETE", f"/v1/windows/{window['id']}").status_code == 200
    site.succeed(site.run(long))
    assert [body["state"] for body in downtime(fed, "fr-1")] == ["planned", "called off"]


def test_what_still_runs_when_maintenance_begins_makes_way_and_comes_back(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = submitted(fed, laws)
    offer = site.run(job)
    elsewhere = [node for node in ("fr-1-n1", "fr-1-n2", "fr-1-n3") if node not in offer.nodes]
    beside = planned(fed, "fr-1", 0, 600, nodes=elsewhere[:1]).json()
    for _ in range(10):
        assert not site.poll().stops
    window = planned(fed, "fr-1", 0.5, 600, nodes=sorted(offer.nodes)).json()
    stop = stops(site)[0]
    assert (stop.leg, stop.keep_s > 0) == (offer.leg, True)
    assert "maintenance at fr-1 has begun" in stop.reason
    assert fed.job(job)["state"] == "preempting"
    site.say(offer.leg, offer.epoch, LegState.STOPPED)
    again = site.run(job)
    assert again.attempt_number == 2
    assert set(again.nodes) == set(elsewhere[1:])
    site.succeed(again)
    told = [r["body"] for r in fed.records("server") if r["type"] == "decision" and r["body"].get("evicted")]
    assert [(body["rule"], body["window"], body["gpus"]) for body in told] == [("maintenance", window["id"], 2)]
    for item in (beside, window):
        assert fed.call("fr/bruno", "DELETE", f"/v1/windows/{item['id']}").status_code == 200


def test_a_federated_job_goes_on_without_the_site_under_maintenance_and_takes_it_back(fed: Any) -> None:
    sites = [fed.site(name) for name in ("de-1", "fr-1", "uy-1")]
    inputs = [fed.dataset(site.name, f"clean-{site.name}", ArtifactClass.CLEAN) for site in sites]
    spec = fed.spec(inputs, kind=JobKind.TOKENIZE, params=fed.params("tokenize"), min_sites=2,
                    resources=Resources(gpus=1, walltime_s=600))  # fmt: skip
    job = fed.submit(spec).json()["id"]
    offers = [site.hold(job) for site in sites]
    for site, offer in zip(sites, offers, strict=True):
        site.wait_start(offer)
        site.say(offer.leg, offer.epoch, LegState.RUNNING)
    planned(fed, "fr-1", 0, 4)
    assert stops(sites[1])[0].leg == offers[1].leg
    sites[1].say(offers[1].leg, offers[1].epoch, LegState.STOPPED)
    assert fed.job(job)["state"] == "running"
    again = sites[1].run(job)
    assert (again.leg, again.attempt) == (offers[1].leg, offers[1].attempt)
    for site, offer in zip(sites, (offers[0], again, offers[2]), strict=True):
        site.succeed(offer)
    assert fed.job(job)["state"] == "succeeded"


def test_a_reservation_keeps_nodes_for_its_account(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    assert planned(fed, "fr-1", 0, 900, kind="reservation").status_code == 422
    assert planned(fed, "fr-1", 0, 900, account="fr/health").status_code == 422
    assert planned(fed, "fr-1", 0, 900, kind="reservation", account="zz").status_code == 404
    window = planned(fed, "fr-1", 0, 900, kind="reservation", account="fr/health", nodes=["fr-1-n1", "fr-1-n2"]).json()
    clash = planned(fed, "fr-1", 600, 1200, kind="reservation", account="fr", nodes=["fr-1-n2"])
    assert clash.status_code == 409
    assert window["id"] in clash.json()["detail"]
    others = site.run(submitted(fed, laws, 8))
    assert set(others.nodes) == {"fr-1-n3"}
    waits = submitted(fed, laws, 8)
    mine = site.run(submitted(fed, laws, 8, account="fr/health"))
    assert set(mine.nodes) < {"fr-1-n1", "fr-1-n2"}
    assert fed.job(waits)["state"] == "pending"
    fed.call("fr/bruno", "DELETE", f"/v1/windows/{window['id']}")
    offer = site.run(waits)
    for item in (others, mine, offer):
        site.succeed(item)
    approved = [r["body"] for r in fed.records("server") if r["type"] == "approval"]
    assert [(body["state"], body["window"]["account"]) for body in approved] == [
        ("planned", "fr/health"),
        ("called off", "fr/health"),
    ]


def test_only_the_sites_own_admins_plan_and_call_off(fed: Any) -> None:
    for who in ("de/bernd", "fr/amelie"):
        assert planned(fed, "fr-1", 10, 20, who=who).status_code == 403
        assert fed.call(who, "POST", "/v1/sites/fr-1/withdraw", {"notice_s": 0}).status_code == 403
    window = planned(fed, "fr-1", 10, 20).json()
    assert fed.get("/v1/windows", who="de/anna") == [window]
    assert fed.call("de/bernd", "DELETE", f"/v1/windows/{window['id']}").status_code == 403
    assert fed.call("fr/bruno", "DELETE", "/v1/windows/win-none").status_code == 404
    assert planned(fed, "fr-1", 10, 20, nodes=["fr-1-n9"]).status_code == 404
    assert planned(fed, "fr-1", 20, 10).status_code == 422
    assert planned(fed, "fr-1", -20, -10).status_code == 422
    assert fed.call("fr/bruno", "DELETE", f"/v1/windows/{window['id']}").status_code == 200
    assert fed.get("/v1/windows") == []


def test_a_recalled_site_takes_no_leg_that_outlives_its_notice_and_then_stops_the_rest(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    runs = site.run(submitted(fed, laws, walltime_s=600))
    assert fed.call("fr/bruno", "POST", "/v1/sites/fr-1/withdraw", {"notice_s": 120}).status_code == 200
    row = row_of(fed, "fr-1")
    assert (row["state"], row["withdraw_ms"] > now_ms()) == ("active", True)
    long, short = submitted(fed, laws, walltime_s=600), submitted(fed, laws, walltime_s=5)
    site.succeed(site.run(short))
    assert fed.job(long)["state"] == "pending"
    assert not site.poll().stops
    assert fed.call("fr/bruno", "POST", "/v1/sites/fr-1/withdraw", {"notice_s": 0}).status_code == 200
    stop = stops(site)[0]
    assert (stop.leg, stop.keep_s > 0) == (runs.leg, True)
    assert "withdrawn by its partner" in stop.reason
    site.say(runs.leg, runs.epoch, LegState.STOPPED)
    fed.until(lambda: row_of(fed, "fr-1")["state"] == "withdrawn")
    shown = fed.until(lambda: (j := fed.job(runs.job))["state"] == "pending" and j)
    fed.until(lambda: fed.job(runs.job)["reason"]["code"] == "site_state")
    assert not site.poll().offers
    assert fed.call("fr/bruno", "POST", "/v1/sites/fr-1/drain").status_code == 409
    assert fed.call("fr/bruno", "POST", "/v1/sites/fr-1/resume").json()["state"] == "active"
    offers = [site.run(job) for job in (long, shown["id"])]
    for offer in offers:
        site.succeed(offer)
    states = [(body["state"], body["by"]) for body in downtime(fed, "fr-1")]
    assert states == [
        ("recalled", "fr/bruno"),
        ("recalled", "fr/bruno"),
        ("withdrawn", "server"),
        ("active", "fr/bruno"),
    ]


def test_a_recall_can_be_taken_back_during_its_notice(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    fed.call("fr/bruno", "POST", "/v1/sites/fr-1/withdraw", {"notice_s": 60})
    assert fed.call("fr/bruno", "POST", "/v1/sites/fr-1/resume").json()["withdraw_ms"] == 0
    site.succeed(site.run(submitted(fed, laws)))
