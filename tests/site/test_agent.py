"""The agent against a server that speaks the real protocol; Ray is away in these tests, clocks are set by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consortium.domain.codec import to_json
from consortium.domain.job import Fault, LegState
from consortium.domain.protocol import LegCommand
from consortium.errors import UnreachableError, UsageError
from consortium.site.agent.loop import RESULTS_BYTES, Agent
from consortium.site.agent.runner import classify
from consortium.site.legs import new_leg
from consortium.site.ray_jobs import RayCluster, RayJob, RayStatus
from tests import builders
from tests.site.stage import Stage
from tests.site.world import World


def test_an_offer_is_held_durably_then_started(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    assert stage.agent.table.active()[0].state is LegState.HELD
    stage.agent = stage.start()
    stage.poll()
    assert stage.script.reports[offer.leg].state is LegState.HELD
    assert stage.agent.table.active()[0].state is LegState.STARTING


def test_a_refusal_is_reported_and_recorded_once(stage: Stage) -> None:
    offer = stage.world.offer(purpose="border-control")
    stage.script.offers[offer.leg] = offer
    for _ in range(3):
        stage.poll()
        stage.agent._send_records(stage.line)
    report = stage.script.reports[offer.leg]
    assert (report.state, report.reason_code) == (LegState.REFUSED, "policy")
    assert [record.type.value for record in stage.script.records] == ["refusal"]
    assert stage.agent.table.reported() == []


def test_a_server_that_lies_about_an_input_is_refused_and_its_lie_recorded(stage: Stage) -> None:
    records = builders.dataset(categories=("health-records",))
    offer = replace(stage.world.offer(inputs=(records,)), inputs=(replace(records, categories=()),))
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    stage.agent._send_records(stage.line)
    report = stage.script.reports[offer.leg]
    assert (report.state, report.reason_code) == (LegState.REFUSED, "inputs")
    (record,) = stage.script.records
    assert record.body["code"] == "inputs"
    assert records.id in record.body["reason"]


@pytest.mark.parametrize("lie", [{"lease_ms": 10**400}, {"lease_ms": 0}, {"acked_seq": 2**63}, {"incarnation": -1}])
def test_numbers_that_no_server_sends_are_named_and_do_not_end_the_agent(stage: Stage, lie: dict[str, int]) -> None:
    honest = stage.script.answer
    stage.script.answer = lambda request: honest(request) | lie
    stage.script.offers = {offer.leg: offer for offer in [stage.world.offer()]}
    with pytest.raises(UsageError, match=next(iter(lie))):
        stage.poll()
    assert stage.agent.table.active() == []


def test_a_stop_of_endless_patience_is_refused(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stop = to_json(LegCommand(leg=offer.leg, epoch=offer.epoch)) | {"keep_s": 10**30}
    honest = stage.script.answer
    stage.script.answer = lambda request: honest(request) | {"stops": [stop]}
    with pytest.raises(UsageError, match="keep_s"):
        stage.poll()


def test_large_results_go_one_after_the_other_and_keep_no_lease_from_being_renewed(stage: Stage) -> None:
    offers = [stage.world.offer(number, gpus=2) for number in (1, 2, 3)]
    for offer in offers:
        stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    large = {"outputs": [], "metrics": {"x": "y" * (RESULTS_BYTES - 1000)}}
    for leg in stage.agent.table.active()[:2]:
        stage.agent.table.change(leg, state=LegState.SUCCEEDED.value, result=large)
    done, waits, running = (stage.agent.table.get(offer.leg, offer.epoch) for offer in offers)
    stage.now_ms += 5_000
    stage.poll()
    first = {report.leg: report for report in stage.script.polls[-1].legs}
    assert done is not None
    assert waits is not None
    assert running is not None
    assert first[done.offer.leg].result == large
    assert (first[waits.offer.leg].state, first[waits.offer.leg].result) == (LegState.RUNNING, {})
    assert stage.agent._news.is_set(), "the next poll follows at once"
    (left,) = stage.agent.table.active()
    assert left.lease_until_ms > running.lease_until_ms
    stage.poll()
    second = {report.leg: report for report in stage.script.polls[-1].legs}
    assert second[waits.offer.leg].result == large
    assert [leg.offer.leg for leg in stage.agent.table.reported()] == [running.offer.leg]


def test_after_a_large_result_one_poll_goes_without_any(stage: Stage) -> None:
    offers = [stage.world.offer(number, gpus=2) for number in (1, 2)]
    for offer in offers:
        stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    large = {"outputs": [], "metrics": {"x": "y" * 2 * RESULTS_BYTES}}
    for leg in stage.agent.table.active():
        stage.agent.table.change(leg, state=LegState.SUCCEEDED.value, result=large)
    went = []
    for _ in range(3):
        stage.poll()
        went.append(sum(bool(report.result) for report in stage.script.polls[-1].legs))
    assert went == [1, 0, 1]


def test_a_stop_that_comes_before_its_offer_is_confirmed(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.stops[offer.leg] = LegCommand(leg=offer.leg, epoch=offer.epoch)
    stage.poll()
    stage.poll()
    assert stage.script.reports[offer.leg].state is LegState.STOPPED


def test_a_lost_poll_answer_changes_nothing(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.script.reports.clear()
    stage.poll()
    assert len(stage.agent.table.reported()) == 1


def test_a_ray_head_that_is_away_makes_the_site_unhealthy(stage: Stage) -> None:
    stage.agent.runner.step()
    assert stage.agent.runner.unhealthy == ""
    stage.agent.runner.step()
    assert "does not answer" in stage.agent.runner.unhealthy
    stage.poll()
    assert not stage.script.polls[-1].healthy


def test_ray_must_answer_before_anything_is_offered(world: World) -> None:
    agent = Agent(world.settings())
    assert agent.runner.unhealthy
    with pytest.raises(UnreachableError, match="does not answer"):
        RayCluster("http://127.0.0.1:9", world.settings().ray_token_path).jobs()


@pytest.mark.parametrize(
    ("job", "failure", "fault"),
    [
        (RayJob(status=RayStatus.FAILED, exit_code=1), None, Fault.USER),
        (RayJob(status=RayStatus.FAILED, exit_code=UnreachableError.exit_code), None, Fault.SITE),
        (RayJob(status=RayStatus.FAILED, exit_code=-9), None, Fault.NODE),
        (RayJob(status=RayStatus.FAILED, exit_code=137), None, Fault.NODE),
        (RayJob(status=RayStatus.FAILED, message="runtime_env setup failed"), None, Fault.SITE),
        (RayJob(status=RayStatus.UNKNOWN), None, Fault.SITE),
        (RayJob(status=RayStatus.STOPPED), None, Fault.SITE),
        (RayJob(status=RayStatus.SUCCEEDED), None, Fault.USER),
        (RayJob(status=RayStatus.FAILED, exit_code=1), {"message": "peers are away", "fault": "site"}, Fault.SITE),
        (RayJob(status=RayStatus.FAILED, exit_code=1), {"message": "no such column", "fault": "user"}, Fault.USER),
    ],
)
def test_whose_fault_a_failure_was(world: World, job: RayJob, failure: dict[str, str] | None, fault: Fault) -> None:
    found, reason = classify(replace(new_leg(world.offer()), failure=failure), job)
    assert found is fault
    assert reason
    assert failure is None or reason == failure["message"]
