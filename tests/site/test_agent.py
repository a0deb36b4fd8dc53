"""The agent against a server that speaks the real protocol; Ray is away in these tests, clocks are set by hand."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from consortium.domain.codec import to_json
from consortium.domain.job import Epoch, Fault, LegState
from consortium.domain.protocol import LegCommand
from consortium.domain.records import Record, RecordType
from consortium.errors import ConfigError, UnreachableError, UsageError
from consortium.keys.signing import SigningKey
from consortium.ledger.log import Ledger
from consortium.ledger.origins import check_chain
from consortium.site.agent.loop import RECORDS, RESULTS_BYTES, Agent
from consortium.site.agent.runner import classify
from consortium.site.agent.server import ServerLine
from consortium.site.db import SiteDb
from consortium.site.legs import LegTable, new_leg
from consortium.site.process import wait_for_room
from consortium.site.ray_jobs import RayCluster, RayJob, RayStatus
from tests import builders
from tests.disk import no_room
from tests.site.world import Script, World, consortium_server, script_for
from tests.waiting import until


class Stage:
    def __init__(self, world: World) -> None:
        self.world = world
        self.script: Script = script_for(world)
        self.serving = consortium_server(self.script).__enter__()
        self.settings = world.settings(gateway_url=self.serving.url)
        self.now_ms = 1_750_000_000_000
        self.agent = self.start()

    def start(self) -> Agent:
        """A new agent process on the same database."""
        agent = Agent(self.settings)
        agent.clock.now_ms = lambda: self.now_ms  # type: ignore[method-assign]
        agent.runner.now_ms = lambda: self.now_ms
        agent.runner.unhealthy = ""
        self.line = ServerLine(self.settings)
        return agent

    def poll(self) -> None:
        self.agent.poll_once(self.line)


@pytest.fixture
def stage(world: World) -> Iterator[Stage]:
    stage = Stage(world)
    yield stage
    stage.serving.__exit__()


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


def test_a_server_that_takes_no_record_is_not_sent_them_without_end(stage: Stage) -> None:
    offer = stage.world.offer(purpose="border-control")
    stage.script.offers[offer.leg] = offer
    stage.poll()
    asked: list[int] = []

    def take(records: list[Record]) -> int:
        asked.append(len(records))
        return -1 if len(asked) < 10 else 10**30

    stage.script.take = take  # type: ignore[method-assign]
    stage.agent._send_records(stage.line)
    assert asked == [1]


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


def test_a_lease_is_renewed_by_polls_and_ends_without_them(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    assert stage.agent.table.active()[0].state is LegState.STARTING
    stage.now_ms += 10_000
    stage.poll()
    stage.now_ms += 10_000
    stage.agent.runner.end_leases()
    assert stage.agent.table.active()[0].state is LegState.STARTING
    stage.script.away = True
    with pytest.raises(UnreachableError):
        stage.poll()
    stage.now_ms += 5_000
    stage.agent.runner.end_leases()
    (leg,) = stage.agent.table.active()
    assert (leg.state, leg.stop_state, leg.fault) == (LegState.STOPPING, LegState.LOST, Fault.SITE)


def test_a_clock_set_back_while_no_agent_ran_makes_no_lease_longer(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    stage.agent = stage.start()
    stage.agent.runner.shorten_leases()
    assert stage.agent.table.active()[0].lease_until_ms == stage.now_ms + 15_000 - stage.settings.max_skew_ms
    stage.now_ms -= 3_600_000
    stage.agent = stage.start()
    stage.agent.runner.shorten_leases()
    assert stage.agent.table.active()[0].lease_until_ms == stage.now_ms + 15_000
    stage.now_ms += 15_000
    stage.agent.runner.end_leases()
    assert stage.agent.table.active()[0].state is LegState.STOPPING


def test_a_full_disk_does_not_end_the_agent(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    lease_ms = stage.agent.table.active()[0].lease_until_ms
    stage.now_ms += 1_000
    agent, polls = stage.start(), len(stage.script.polls)
    running = threading.Thread(target=agent._guarded, args=(agent.run,))
    with no_room():
        running.start()
        until(lambda: len(stage.script.polls) > polls + 2, "polls on a full disk", 30)
        assert stage.agent.table.active()[0].lease_until_ms == lease_ms
    until(lambda: stage.agent.table.active()[0].lease_until_ms > lease_ms, "the lease renewed", 30)
    agent.stop()
    running.join(30)
    assert not running.is_alive()
    assert agent._fault is None
    said = [record.getMessage() for record in caplog.records]
    assert f"leases: cannot use {agent.db.path}: disk I/O error; see that its disk has room" in said


def test_an_agent_that_starts_on_a_full_disk_waits_for_room_and_says_so_once(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    home = world.settings().home
    SiteDb(home).close()
    waits = 0

    def pause(_: float) -> None:
        nonlocal waits
        waits += 1
        if waits == 3:
            room.close()

    with ExitStack() as room:
        room.enter_context(no_room())
        db = wait_for_room(home, pause)
    assert (waits, db.meta("alarm")) == (3, "")
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("waiting: cannot use the site's database: disk I/O error")
    with pytest.raises(ConfigError, match="not a folder"):
        wait_for_room(f"{home}/nowhere", pause)


def test_leases_found_on_a_full_disk_are_shortened_before_any_is_renewed(stage: Stage) -> None:
    first, second = stage.world.offer(1), stage.world.offer(2)
    for offer in (first, second):
        stage.script.offers[offer.leg] = offer
        stage.poll()
    stage.poll()
    stage.now_ms -= 3_600_000  # the clock is set back while no agent runs
    stage.agent = stage.start()
    began_ms = stage.now_ms
    with no_room(), pytest.raises(sqlite3.OperationalError):
        stage.agent.runner.shorten_leases()
    stage.now_ms += 5_000
    stage.agent.runner.shorten_leases()
    assert {leg.lease_until_ms for leg in stage.agent.table.active()} == {began_ms + 15_000}
    stage.poll()
    assert {leg.lease_until_ms for leg in stage.agent.table.active()} == {stage.now_ms + 15_000}
    stage.agent.runner.shorten_leases()
    assert {leg.lease_until_ms for leg in stage.agent.table.active()} == {stage.now_ms + 15_000}, "once is enough"


def test_a_transaction_that_the_disk_does_not_take_says_why_and_leaves_none_open(world: World) -> None:
    db = SiteDb(world.settings().home)
    for size in (10_000, 10_000_000):  # more than SQLite keeps in memory: it ends such a transaction by itself
        with no_room(), pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            db.set_meta(alarm="x" * size)
    db.set_meta(alarm="y")
    assert db.meta("alarm") == "y"


def test_a_held_leg_whose_lease_ends_frees_its_gpus_at_once(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.now_ms += 15_000
    stage.agent.runner.end_leases()
    assert stage.agent.table.active() == []
    assert stage.agent.table.reported()[0].state is LegState.LOST


def test_a_stop_that_comes_before_its_offer_is_confirmed(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.stops[offer.leg] = LegCommand(leg=offer.leg, epoch=offer.epoch)
    stage.poll()
    stage.poll()
    assert stage.script.reports[offer.leg].state is LegState.STOPPED


def test_an_offer_waits_until_the_earlier_epoch_of_its_job_has_stopped(stage: Stage) -> None:
    first = stage.world.offer()
    stage.script.offers[first.leg] = first
    stage.poll()
    stage.poll()
    stage.now_ms += 15_000
    stage.agent.runner.end_leases()
    (old,) = stage.agent.table.active()
    assert old.state is LegState.STOPPING
    again = replace(first, epoch=Epoch(incarnation=1, counter=2))
    stage.script.offers[first.leg] = again
    stage.script.reports.clear()
    stage.poll()
    assert stage.agent.table.get(again.leg, again.epoch) is None
    stage.agent.table.change(old, state=LegState.LOST.value)
    for _ in range(2):  # the first poll tells of the end, the second brings the offer again
        stage.script.reports.clear()
        stage.poll()
    taken = stage.agent.table.get(again.leg, again.epoch)
    assert taken is not None
    assert taken.state is LegState.HELD


def test_a_lost_poll_answer_changes_nothing(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.script.reports.clear()
    stage.poll()
    assert len(stage.agent.table.reported()) == 1


def test_a_leg_that_listens_has_time_to_keep_its_progress_unless_it_is_taken_back(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    for _ in range(3):
        stage.poll()
    runner, table = stage.agent.runner, stage.agent.table
    (leg,) = table.active()
    table.change(leg, state=LegState.RUNNING.value, listens=1)
    stage.script.stops[offer.leg] = LegCommand(leg=offer.leg, epoch=offer.epoch, reason="make way", keep_s=30)
    stage.poll()
    (leg,) = table.active()
    assert (leg.state, leg.stop_by_ms) == (LegState.STOPPING, stage.now_ms + 30_000)
    runner._finish_stop(leg, RayJob(status=RayStatus.RUNNING))  # Ray is away: to ask it to stop would raise
    stage.now_ms += 10_000
    stage.poll()
    (leg,) = table.active()
    assert leg.stop_by_ms == stage.now_ms + 20_000, "told again, it has no more time"
    stage.script.stops[offer.leg] = LegCommand(leg=offer.leg, epoch=offer.epoch, reason="cancelled")
    stage.poll()
    (leg,) = table.active()
    with pytest.raises(UnreachableError):
        runner._finish_stop(leg, RayJob(status=RayStatus.RUNNING))


def _look(stage: Stage, seconds: int) -> None:
    """Let that much time pass, and then see every leg running."""
    stage.now_ms += seconds * 1000
    runner = stage.agent.runner
    for leg in stage.agent.table.active():
        runner._observe(leg, RayJob(status=RayStatus.RUNNING), stage.now_ms)
    runner._meter_running()


def _metered_s(stage: Stage) -> list[list[float]]:
    """Seconds of every row of every usage record."""
    records = [record for record in stage.agent.outbox.after(-1) if record.type is RecordType.USAGE]
    return [[(row["end_ms"] - row["start_ms"]) / 1000 for row in record.body["rows"]] for record in records]


def test_usage_of_all_legs_is_recorded_together_every_ten_minutes_and_at_a_legs_end(stage: Stage) -> None:
    offers = [stage.world.offer(number, gpus=2) for number in (1, 2)]
    for offer in offers:
        stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    for _ in range(61):
        _look(stage, 10)
    assert _metered_s(stage) == [[600, 600]]
    _look(stage, 50)
    first, second = stage.agent.table.active()
    done = RayJob(status=RayStatus.FAILED, end_ms=stage.now_ms - 1000)
    stage.agent.runner._end(first, done, LegState.FAILED, "it failed", Fault.USER)
    assert _metered_s(stage)[1:] == [[49]]
    assert [leg.key for leg in stage.agent.table.active()] == [second.key]
    stage.agent.runner.meter_seen()
    assert _metered_s(stage)[2:] == [[50]]
    stage.agent.runner.meter_seen()
    assert len(_metered_s(stage)) == 3


def test_what_was_used_before_a_month_ends_is_recorded_at_once(stage: Stage) -> None:
    stage.now_ms = 1_754_006_395_000  # 2025-07-31T23:59:55Z
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    _look(stage, 0)
    _look(stage, 8)
    assert _metered_s(stage) == [[5], [3]]


def test_an_agent_that_was_killed_bills_a_leg_that_ray_forgot_until_it_was_last_seen(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    for _ in range(31):
        _look(stage, 10)
    stage.agent = stage.start()
    stage.now_ms += 3_600_000
    (leg,) = stage.agent.table.active()
    stage.agent.runner._end(leg, RayJob(status=RayStatus.UNKNOWN), LegState.LOST, "Ray lost it", Fault.SITE)
    assert _metered_s(stage) == [[300]]


def test_a_database_of_an_earlier_version_gets_its_new_columns(world: World) -> None:
    settings = world.settings()
    SiteDb(settings.home).close()
    with sqlite3.connect(SiteDb(settings.home).path) as raw:
        for column in ("calls", "listens", "stop_by_ms", "seen_ms"):
            raw.execute(f"ALTER TABLE legs DROP COLUMN {column}")
    table = LegTable(SiteDb(settings.home))
    with table.db.write() as write:
        table.add(new_leg(world.offer()), 1, write)
    assert (table.active()[0].calls, table.active()[0].listens) == (0, False)


def test_a_log_that_shrank_raises_a_durable_alarm_until_repinned(stage: Stage, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    world, script = stage.world, stage.script
    script.ledger.append([("a", {"x": 1}), ("b", {"x": 2})])
    stage.poll()
    assert stage.agent.watch.pinned is not None
    assert stage.agent.watch.pinned.size == 2
    old = Ledger(tmp_path_factory.mktemp("backup"), world.log_key, world.trust.log_name)
    old.append([("a", {"x": 1})])
    script.ledger = old
    stage.poll()
    assert stage.agent.watch.alarm.startswith("log rolled back: ")
    offer = world.offer()
    script.offers[offer.leg] = offer
    stage.agent = stage.start()
    stage.poll()
    stage.poll()
    assert script.polls[-1].unhealthy_reason.startswith("log rolled back: ")
    assert not script.polls[-1].healthy
    assert script.reports[offer.leg].state is LegState.REFUSED
    assert "log rolled back" in stage.agent.watch.repin()
    stage.poll()
    assert stage.agent.watch.alarm == ""
    assert stage.agent.watch.pinned.size == 1


def test_a_rewritten_log_of_the_same_size_is_noticed(stage: Stage, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    stage.script.ledger.append([("a", {"x": 1})])
    stage.poll()
    other = Ledger(tmp_path_factory.mktemp("fork"), stage.world.log_key, stage.world.trust.log_name)
    other.append([("a", {"x": 9}), ("b", {"x": 2})])
    stage.script.ledger = other
    stage.poll()
    assert "does not extend" in stage.agent.watch.alarm


def test_a_log_signed_by_another_key_is_noticed(stage: Stage, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    stage.script.ledger = Ledger(tmp_path_factory.mktemp("x"), SigningKey.generate(), stage.world.trust.log_name)
    stage.poll()
    assert stage.agent.watch.alarm


def test_an_older_incarnation_is_noticed_and_its_renewals_count_for_nothing(stage: Stage) -> None:
    offer = stage.world.offer()
    stage.script.offers[offer.leg] = offer
    stage.script.incarnation = 7
    stage.poll()
    lease = stage.agent.table.active()[0].lease_until_ms
    stage.script.incarnation = 6
    stage.now_ms += 5_000
    stage.poll()
    assert "incarnation went back from 7 to 6" in stage.agent.watch.alarm
    (leg,) = stage.agent.table.active()
    assert (leg.state, leg.lease_until_ms) == (LegState.HELD, lease)


def test_a_server_that_lost_records_gets_them_again(stage: Stage) -> None:
    for number in (1, 2):
        offer = stage.world.offer(number, purpose="border-control")
        stage.script.offers[offer.leg] = offer
    stage.poll()
    stage.poll()
    stage.agent._send_records(stage.line)
    assert len(stage.script.records) == 2
    del stage.script.records[1:]
    stage.script.head = check_chain(stage.script.records, lambda _: stage.script.key)
    stage.poll()
    stage.agent._send_records(stage.line)
    assert [record.seq for record in stage.script.records] == [0, 1]


def test_a_record_that_is_refused_holds_back_none_of_those_before_it(stage: Stage) -> None:
    for number in range(RECORDS + 7):
        with stage.agent.db.write() as write:
            stage.agent.outbox.add(write, RecordType.DOWNTIME, {"n": number}, stage.now_ms)
    taken, refused = stage.script.take, [RECORDS - 37]

    def take(records: list[Record]) -> int:
        if {record.seq for record in records} & set(refused):
            raise UsageError("a record of a later release")
        return taken(records)

    stage.script.take = take  # type: ignore[method-assign]
    stage.poll()
    for _ in range(2):
        with pytest.raises(UsageError, match="later release"):
            stage.agent._send_records(stage.line)
        assert len(stage.script.records) == RECORDS - 37
    refused.clear()  # the server is upgraded
    stage.agent._send_records(stage.line)
    assert len(stage.script.records) == RECORDS + 7


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
