"""Leases and clocks, full disks, stops, and what is billed: as the agent keeps them in its database."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import ExitStack
from dataclasses import replace

import pytest

from consortium.domain.job import Epoch, Fault, LegState
from consortium.domain.protocol import LegCommand
from consortium.domain.records import RecordType
from consortium.errors import ConfigError, UnreachableError
from consortium.site.db import SiteDb
from consortium.site.legs import LegTable, new_leg
from consortium.site.process import wait_for_room
from consortium.site.ray_jobs import RayJob, RayStatus
from tests.disk import no_room
from tests.site.stage import Stage
from tests.site.world import World
from tests.waiting import until


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
