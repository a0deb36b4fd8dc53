"""Faults that are not the program's: backoff, the node avoided, the node cordoned, and who ends a cordon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from consortium.domain.data import ArtifactClass
from consortium.domain.job import Fault, JobKind, LegState, Resources
from consortium.domain.partner import SiteState
from consortium.scheduler import explain
from consortium.server import awaited, faults, loop, snapshots
from consortium.state import jobs
from consortium.state.sites import all_sites, update_site
from tests.server.placed import at_work

pytestmark = pytest.mark.integration
ONE = "- {id: fr-1-n1, gpus: 8}"
THREE = "\n  ".join(f"- {{id: fr-1-n{n}, gpus: 8}}" for n in (1, 2, 3))


@pytest.fixture
def fed(quiet_fed: Any) -> Iterator[Any]:
    """A federation in which fr-1 has three nodes, and failures are forgiven soon."""
    quiet_fed.settings["retry"] = {"backoff_ms": 20, "max_backoff_ms": 100, "max_tries": 4}
    quiet_fed.sign_site("fr-1", ONE, THREE)
    quiet_fed.start()
    return quiet_fed


def submitted(fed: Any, laws: Any, gpus: int = 2) -> str:
    answer = fed.submit(fed.spec([laws], resources=Resources(gpus=gpus, walltime_s=600)))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def row_of(fed: Any, site: str) -> dict[str, Any]:
    return dict(next(row for row in fed.get("/v1/sites") if row["id"] == site))


def downtime(fed: Any, site: str) -> list[dict[str, Any]]:
    return [r["body"] for r in fed.records("server") if r["type"] == "downtime" and r["body"]["site"] == site]


def test_the_next_epoch_is_not_on_the_node_that_failed(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = submitted(fed, laws)
    first = site.run(job)
    site.fail(first, Fault.NODE, "killed by signal 7")
    second = site.run(job)
    assert (second.leg, second.epoch > first.epoch) == (first.leg, True)
    assert not set(first.nodes) & set(second.nodes)
    site.fail(second, Fault.NODE, "killed by signal 7")
    third = site.run(job)
    assert not set(third.nodes) & (set(first.nodes) | set(second.nodes))
    site.succeed(third)
    assert fed.job(job)["state"] == "succeeded"
    faults = {r["body"]["epoch"]: r["body"]["fault"] for r in fed.records("server") if r["type"] == "lease"}
    assert [faults[str(offer.epoch)] for offer in (first, second, third)] == ["node", "node", ""]


def test_a_faulty_node_that_has_no_alternative_is_tried_again(fed: Any) -> None:
    laws = fed.dataset("uy-1", "laws-es")
    site = fed.site("uy-1")
    spec = fed.spec([laws], account="uy", submitter="uy/alma")
    job = fed.submit(spec).json()["id"]
    first = site.run(job)
    site.fail(first, Fault.NODE, "killed by signal 7")
    again = site.run(job)
    assert again.nodes == first.nodes
    site.succeed(again)


def test_a_job_whose_other_nodes_are_busy_goes_back_in_line(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    busy = [site.run(submitted(fed, laws, gpus)) for gpus in (8, 8)]
    job = submitted(fed, laws, 8)
    first = site.run(job)
    site.fail(first, Fault.NODE, "killed by signal 7")
    shown = fed.until(lambda: (j := fed.job(job))["state"] == "pending" and len(j["attempts"]) == 1 and j)
    assert shown["reason"]["message"]
    site.succeed(busy[0])
    second = site.run(job)
    assert (second.attempt_number, second.nodes) == (2, busy[0].nodes)
    site.succeed(second)
    site.succeed(busy[1])


def test_who_fails_too_often_at_a_site_gives_it_up(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = submitted(fed, laws)
    for _ in range(4):
        site.fail(site.run(job), Fault.SITE, "the Ray head died")
    shown = fed.job(job)
    assert (shown["state"], shown["reason"]["code"]) == ("failed", "site_fault")
    assert "failed 4 times" in shown["reason"]["message"]


@pytest.mark.parametrize(("kind", "first_done"), [(JobKind.CLEAN, True), (JobKind.TOKENIZE, False)])
def test_a_dataset_that_its_home_gave_up_fails_the_job_whatever_the_others_have_done(
    fed: Any, kind: JobKind, first_done: bool
) -> None:
    sites = [fed.site(name) for name in ("de-1", "fr-1")]
    inputs = [fed.dataset(site.name, f"clean-{site.name}", ArtifactClass.CLEAN) for site in sites]
    spec = fed.spec(inputs, kind=kind, params=fed.params(kind.value), resources=Resources(gpus=1, walltime_s=600))
    assert spec.min_sites == 1
    job = fed.submit(spec).json()["id"]
    offers = [site.hold(job) for site in sites]
    for site, offer in zip(sites, offers, strict=True):
        site.wait_start(offer)
        site.say(offer.leg, offer.epoch, LegState.RUNNING)
    if first_done:
        sites[0].succeed(offers[0])
    again = offers[1]
    for _ in range(3):
        sites[1].fail(again, Fault.SITE, "the Ray head died")
        again = sites[1].run(job)
    sites[1].fail(again, Fault.SITE, "the Ray head died")
    shown = fed.job(job)
    assert (shown["state"], shown["reason"]["code"], shown["reason"]["site"]) == ("failed", "site_fault", "fr-1")
    if not first_done:
        assert [stop.leg for stop in sites[0].poll().stops] == [offers[0].leg]
        sites[0].say(offers[0].leg, offers[0].epoch, LegState.STOPPED)


def test_a_program_at_fault_is_never_retried(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = submitted(fed, laws)
    site.fail(site.run(job), Fault.USER, "ZeroDivisionError")
    shown = fed.job(job)
    assert (shown["state"], shown["reason"]["code"], len(shown["attempts"][0]["legs"])) == ("failed", "program", 1)


def test_a_node_that_fails_several_jobs_is_cordoned_until_an_admin_says_so(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    for _ in range(3):
        job = submitted(fed, laws)
        offer = site.run(job)
        assert offer.nodes == {"fr-1-n1": 2}
        site.fail(offer, Fault.NODE, "a GPU fell off the bus")
        moved = site.run(job)
        assert "fr-1-n1" not in moved.nodes
        site.succeed(moved)
    row = row_of(fed, "fr-1")
    assert [(item["node"], item["by"]) for item in row["cordoned"]] == [("fr-1-n1", "server")]
    assert "3 faults of 3 jobs" in row["cordoned"][0]["reason"]
    assert "fell off the bus" in row["cordoned"][0]["reason"]
    offer = site.run(submitted(fed, laws))
    assert "fr-1-n1" not in offer.nodes
    site.succeed(offer)
    path = "/v1/sites/fr-1/nodes/fr-1-n1/uncordon"
    assert fed.call("de/bernd", "POST", path).status_code == 403
    assert fed.call("fr/amelie", "POST", path).status_code == 403
    assert fed.call("fr/bruno", "POST", path).json()["cordoned"] == []
    offer = site.run(submitted(fed, laws))
    assert offer.nodes == {"fr-1-n1": 2}
    site.fail(offer, Fault.NODE, "once more")
    assert row_of(fed, "fr-1")["cordoned"] == [], "what was before the repair counts no more"
    site.succeed(site.run(offer.job))
    states = [body["state"] for body in downtime(fed, "fr-1") if body.get("node") == "fr-1-n1"]
    assert states == ["cordoned", "uncordoned"]


def test_one_job_that_fails_everywhere_cordons_no_node(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    for _ in range(2):
        job = submitted(fed, laws)
        for _ in range(4):
            site.fail(site.run(job), Fault.NODE, "killed by signal 11")
        assert fed.job(job)["state"] == "failed"
    assert row_of(fed, "fr-1")["cordoned"] == []


def test_an_admin_cordons_a_node_of_the_partners_own(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    going_on = site.run(submitted(fed, laws))
    assert "fr-1-n1" in going_on.nodes
    path = "/v1/sites/fr-1/nodes/{}/cordon"
    assert fed.call("fr/bruno", "POST", path.format("fr-1-n9"), {}).status_code == 404
    answer = fed.call("fr/bruno", "POST", path.format("fr-1-n1"), {"reason": "fan is loud"})
    assert answer.status_code == 200, answer.text
    assert [(item["node"], item["reason"]) for item in answer.json()["cordoned"]] == [("fr-1-n1", "fan is loud")]
    assert fed.call("fr/bruno", "POST", path.format("fr-1-n1"), {}).status_code == 200
    for node in ("fr-1-n2", "fr-1-n3"):
        fed.call("fr/bruno", "POST", path.format(node), {})
    waits = submitted(fed, laws)
    shown = fed.until(lambda: (j := fed.job(waits))["reason"] and j)
    assert shown["state"] == "pending"
    assert not site.poll().stops, "what runs on a cordoned node goes on"
    site.succeed(going_on)
    fed.call("fr/bruno", "POST", "/v1/sites/fr-1/nodes/fr-1-n2/uncordon")
    offer = site.run(waits)
    assert offer.nodes == {"fr-1-n2": 2}
    site.succeed(offer)


def test_a_federated_jobs_leg_moves_to_another_node_while_its_peers_go_on(fed: Any) -> None:
    sites = [fed.site(name) for name in ("de-1", "fr-1")]
    inputs = [fed.dataset(site.name, f"clean-{site.name}", ArtifactClass.CLEAN) for site in sites]
    spec = fed.spec(inputs, kind=JobKind.TOKENIZE, params=fed.params("tokenize"),
                    resources=Resources(gpus=1, walltime_s=600))  # fmt: skip
    job = fed.submit(spec).json()["id"]
    offers = [site.hold(job) for site in sites]
    for site, offer in zip(sites, offers, strict=True):
        site.wait_start(offer)
        site.say(offer.leg, offer.epoch, LegState.RUNNING)
    sites[1].fail(offers[1], Fault.NODE, "killed by signal 7")
    again = sites[1].run(job)
    assert again.leg == offers[1].leg
    assert not set(again.nodes) & set(offers[1].nodes)
    assert fed.job(job)["state"] == "running"
    sites[0].succeed(offers[0])
    sites[1].succeed(again)
    assert fed.job(job)["state"] == "succeeded"


def backing_off(core: Any, fed: Any, *sites: str, then: LegState = LegState.RUNNING) -> Any:
    """A job at these sites whose leg at the first has failed and waits to be tried again; the others are `then`."""
    job = at_work(
        core,
        fed,
        *sites,
        cls=ArtifactClass.CLEAN,
        kind=JobKind.TOKENIZE,
        params=fed.params("tokenize"),
        account="fr",
        resources=Resources(gpus=1, walltime_s=600),
    )
    now_ms = core.clock.now_ms()
    with core.db.write() as connection:
        jobs.start_attempt(connection, job.attempt.id, now_ms)
        for leg in job.attempt.legs:
            jobs.set_leg(connection, leg, then, now_ms)
            core.contacts.heard_site(leg.site, now_ms)
        failed = next(leg for leg in job.attempt.legs if leg.site == sites[0])
        faults.not_its_own(core, connection, failed, LegState.FAILED, Fault.SITE, "the Ray head died", now_ms - 60_000)
        update_site(connection, failed.site, healthy=True)
    return job


def ways(core: Any, job: Any) -> tuple[str, bool, list[str]]:
    """A job's state, whether its attempt goes on, and the sites where it holds GPUs."""
    with core.db.read() as connection:
        held = sorted(leg.site for leg in snapshots.held_legs(connection) if leg.job == job.id)
        open_attempt = jobs.open_attempt(connection, job.id) is not None
        return jobs.find_job(connection, job.id).state.value, open_attempt, held


@pytest.mark.parametrize("silent", [False, True])
def test_a_leg_in_backoff_whose_site_goes_away_lets_go_of_its_gpus_and_waits_in_line(parts: Any, silent: bool) -> None:
    core, fed = parts
    job = backing_off(core, fed, "fr-1")
    assert ways(core, job) == ("pending", True, ["fr-1"])
    if silent:
        core.contacts.heard_site("fr-1", core.clock.now_ms() - 3_600_000)
    else:
        with core.db.write() as connection:
            update_site(connection, "fr-1", state=SiteState.WITHDRAWN)
    loop._offer_again(core)
    assert ways(core, job) == ("pending", False, [])
    with core.db.read() as connection:
        reason = jobs.find_job(connection, job.id).reason
    assert reason is not None
    assert reason.message == "fr-1 is gone, where it was to be tried again; last: the Ray head died"


def test_a_leg_in_backoff_whose_site_does_not_go_away_keeps_its_gpus(parts: Any) -> None:
    core, fed = parts
    job = backing_off(core, fed, "fr-1")
    with core.db.write() as connection:
        update_site(connection, "fr-1", healthy=False)
    loop._offer_again(core)
    assert ways(core, job) == ("pending", True, ["fr-1"])


def unhealthy(core: Any, *sites: str, for_ms: int) -> None:
    """The sites' agents live and call, and their Ray has been away for so long."""
    now_ms = core.clock.now_ms()
    for site in sites:
        core.contacts.heard_site(site, now_ms - for_ms)
        core.contacts.heard_site(site, now_ms, healthy=False)
        with core.db.write() as connection:
            update_site(connection, site, healthy=False, unhealthy_reason="Ray is away", last_contact_ms=now_ms)


def test_nobody_waits_for_a_site_whose_agent_lives_and_whose_ray_is_away_for_long(parts: Any) -> None:
    core, fed = parts
    job = backing_off(core, fed, "fr-1", "de-1")
    unhealthy(core, "fr-1", for_ms=core.settings.site_lost_ms // 2)
    with core.db.read() as connection:
        found = jobs.find_job(connection, job.id)
        assert awaited.expected(core, connection, found, 1) == ["de-1", "fr-1"]
    unhealthy(core, "fr-1", for_ms=core.settings.site_lost_ms + 1_000)
    with core.db.read() as connection:
        assert awaited.expected(core, connection, found, 1) == ["de-1"]
        assert core.site_state("fr-1", all_sites(connection)["fr-1"]) is SiteState.LOST
    core.contacts.heard_site("fr-1", core.clock.now_ms())
    with core.db.read() as connection:
        assert awaited.expected(core, connection, found, 1) == ["de-1", "fr-1"], "its Ray is back"


def test_a_job_whose_only_site_is_unhealthy_for_long_waits_in_line_and_explain_says_why(parts: Any) -> None:
    core, fed = parts
    job = backing_off(core, fed, "fr-1")
    unhealthy(core, "fr-1", for_ms=core.settings.site_lost_ms + 1_000)
    loop._offer_again(core)
    assert ways(core, job) == ("pending", False, [])
    with core.db.write() as connection:
        reason = jobs.find_job(connection, job.id).reason
        for leg in job.attempt.legs:
            jobs.set_leg(connection, leg, LegState.STOPPED, core.clock.now_ms())
    assert reason is not None
    assert reason.message == "fr-1 is unhealthy (Ray is away), where it was to be tried again; last: the Ray head died"
    with core.db.read() as connection:
        told = explain(snapshots.take(core, connection).snapshot, job.id)
    dropped = [drop.reason for step in told.steps for drop in step.dropped if step.rule == "site_state"]
    assert [one.message for one in dropped] == ["fr-1 is unhealthy (Ray is away) and takes no new legs"]


def test_a_federated_job_goes_on_without_the_site_that_went_away_while_another_leg_is_at_work(parts: Any) -> None:
    core, fed = parts
    job = backing_off(core, fed, "fr-1", "de-1")
    core.contacts.heard_site("fr-1", core.clock.now_ms() - 3_600_000)
    before = ways(core, job)
    loop._offer_again(core)
    assert ways(core, job) == before
    assert before[1:] == (True, ["de-1", "fr-1"])


def test_a_job_that_one_of_its_homes_went_away_from_waits_in_line_once_the_others_are_through(parts: Any) -> None:
    core, fed = parts
    job = backing_off(core, fed, "fr-1", "de-1", then=LegState.SUCCEEDED)
    core.contacts.heard_site("fr-1", core.clock.now_ms() - 3_600_000)
    loop._offer_again(core)
    assert ways(core, job) == ("pending", False, [])
