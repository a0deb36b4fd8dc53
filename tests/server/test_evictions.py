"""GPUs taken back from running jobs by a real server: for another job, and confirmed by the site that ran them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from consortium.domain.job import Fault, LegState, Resources

pytestmark = pytest.mark.integration


@pytest.fixture
def fed(quiet_fed: Any) -> Iterator[Any]:
    """A federation whose server takes GPUs back at once."""
    quiet_fed.settings["scheduler"] = {"min_run_s": 0, "stop_s": 40}
    quiet_fed.start()
    return quiet_fed


def submitted(fed: Any, laws: Any, account: str, gpus: int, **changes: Any) -> dict[str, Any]:
    given = {"resources": Resources(gpus=gpus, walltime_s=6000), "account": account, "min_sites": 1}
    answer = fed.submit(fed.spec([laws], **(given | changes)))
    assert answer.status_code == 201, answer.text
    assert answer.json()["state"] == "pending", answer.text
    return dict(answer.json())


def borrowed(fed: Any) -> tuple[Any, dict[str, Any], dict[str, Any], Any]:
    """de runs on all eight GPUs of fr-1, all of them borrowed; then fr asks for six, its nominal."""
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    borrower = submitted(fed, laws, "de", 8, submitter="de/anna")
    offer = site.run(borrower["id"])
    owner = submitted(fed, laws, "fr", 6)
    return site, borrower, owner, offer


def stop_of(site: Any, offer: Any) -> Any:
    """Poll until the stop of an offer's leg comes, and return the command."""

    def found() -> Any:
        stops = [stop for stop in site.poll().stops if (stop.leg, stop.epoch) == (offer.leg, offer.epoch)]
        return stops[0] if stops else None

    return site.fed.until(found)


def decisions(fed: Any, job: str) -> list[dict[str, Any]]:
    return [r["body"] for r in fed.records("server") if r["type"] == "decision" and r["body"]["job"] == job]


def test_a_borrower_makes_way_and_runs_again_when_the_owner_is_done(fed: Any) -> None:
    site, borrower, owner, offer = borrowed(fed)
    stop = stop_of(site, offer)
    assert stop.keep_s == 30, "stop_s less what stopping itself takes"
    shown = fed.job(borrower["id"])
    assert shown["state"] == "preempting"
    assert shown["reason"]["code"] == "preempted"
    assert shown["reason"]["numbers"]["for_job"] == owner["id"]
    assert "more than its nominal" in shown["reason"]["message"]
    assert owner["id"] in stop.reason
    assert fed.job(owner["id"])["state"] == "pending", "the GPUs are not free before the site says so"
    site.say(offer.leg, offer.epoch, LegState.STOPPED, reason=stop.reason)
    assert fed.job(borrower["id"])["state"] == "pending"
    taken = site.run(owner["id"])
    site.succeed(taken)
    again = site.run(borrower["id"])
    assert (again.attempt_number, again.leg == offer.leg) == (2, False)
    site.succeed(again)
    assert fed.job(borrower["id"])["state"] == "succeeded"
    told = [body for body in decisions(fed, borrower["id"]) if body.get("evicted")]
    assert len(told) == 1
    assert (told[0]["for_job"], told[0]["rule"], told[0]["gpus"]) == (owner["id"], "borrower", 8)
    assert [leg["leg"] for leg in told[0]["legs"]] == [offer.leg]
    leases = {r["body"]["leg"]: r["body"] for r in fed.records("server") if r["type"] == "lease"}
    assert leases[offer.leg]["evicted_for"] == owner["id"], "billed to the borrower, and said why it ended"
    assert leases[offer.leg]["account"] == "de"
    assert leases[again.leg]["evicted_for"] == ""


def test_a_leg_that_ends_well_before_it_hears_of_its_eviction_has_ended_well(fed: Any) -> None:
    site, borrower, owner, offer = borrowed(fed)
    stop_of(site, offer)
    site.succeed(offer)
    assert fed.job(borrower["id"])["state"] == "succeeded"
    site.succeed(site.run(owner["id"]))


def test_a_program_that_fails_while_it_makes_way_has_failed(fed: Any) -> None:
    site, borrower, owner, offer = borrowed(fed)
    stop_of(site, offer)
    site.fail(offer, Fault.USER, "ZeroDivisionError")
    assert fed.job(borrower["id"])["state"] == "failed"
    site.succeed(site.run(owner["id"]))


def test_a_job_cancelled_while_it_makes_way_is_stopped_at_once(fed: Any) -> None:
    site, borrower, _, offer = borrowed(fed)
    assert stop_of(site, offer).keep_s > 0
    assert fed.call("de/anna", "POST", f"/v1/jobs/{borrower['id']}/cancel").json()["state"] == "cancelled"
    assert stop_of(site, offer).keep_s == 0
    site.say(offer.leg, offer.epoch, LegState.STOPPED)
    assert fed.job(borrower["id"])["state"] == "cancelled"


def test_an_eviction_outlives_the_server(fed: Any) -> None:
    site, borrower, owner, offer = borrowed(fed)
    stop_of(site, offer)
    fed.kill(signal.SIGKILL)
    fed.start()
    assert fed.job(borrower["id"])["state"] == "preempting"
    assert stop_of(site, offer).keep_s > 0
    site.say(offer.leg, offer.epoch, LegState.STOPPED)
    site.succeed(site.run(owner["id"]))
    site.succeed(site.run(borrower["id"]))
    assert fed.job(borrower["id"])["state"] == "succeeded"


def test_without_preemption_in_the_settings_nobody_is_evicted(quiet_fed: Any) -> None:
    fed = quiet_fed
    fed.settings["scheduler"] = {"min_run_s": 0, "preemption": False}
    fed.start()
    site, borrower, owner, offer = borrowed(fed)
    fed.until(lambda: fed.job(owner["id"])["reason"])
    for _ in range(10):
        assert not site.poll().stops
    assert fed.job(borrower["id"])["state"] == "running"
    site.succeed(offer)


def test_settings_that_make_no_sense_are_refused_by_name(quiet_fed: Any) -> None:
    for given, words in (({"min_run_s": -1}, "min_run_s"), ({"minimum": 3}, "minimum"), ({"stop_s": "1h"}, "stop_s")):
        quiet_fed.settings["scheduler"] = given
        refused = quiet_fed.start(expect=2)
        assert refused.returncode == 2
        assert words in refused.stderr.decode()
        assert "Traceback" not in refused.stderr.decode()
