"""The runner and the keeper of logs with many legs, against a Ray whose answers are scripted and counted."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.job import Fault, LegState
from consortium.errors import UnreachableError
from consortium.site.agent.logs import MAX_READ, LogKeeper
from consortium.site.agent.loop import Agent
from consortium.site.agent.runner import MAX_UNLISTED
from consortium.site.agent.server import ServerLine
from consortium.site.legs import new_leg
from consortium.site.ray_jobs import RayCluster, RayJob, RayStatus
from tests.disk import no_room
from tests.site.world import World

NOW_MS = 1_750_000_000_000
RUNNING = RayJob(status=RayStatus.RUNNING, start_ms=NOW_MS - 1000)


class Scripted(RayCluster):
    """Answers from `known`, leaves `hidden` out of its list, has no log of `mute`, and counts the calls."""

    def __init__(self) -> None:
        self.known: dict[str, RayJob] = {}
        self.hidden: set[str] = set()
        self.mute: set[str] = set()
        self.calls: Counter[str] = Counter()

    def jobs(self) -> dict[str, RayJob]:
        self.calls["jobs"] += 1
        return {name: job for name, job in self.known.items() if name not in self.hidden}

    def job(self, submission_id: str) -> RayJob:
        self.calls["job"] += 1
        return self.known.get(submission_id, RayJob(status=RayStatus.UNKNOWN))

    def submit(self, submission_id: str, program: str, python: str, env: Mapping[str, str], **options: Any) -> None:
        self.calls["submit"] += 1
        self.known[submission_id] = RUNNING

    def stop(self, submission_id: str) -> None:
        self.calls["stop"] += 1
        self.known[submission_id] = replace(self.known[submission_id], status=RayStatus.STOPPED, end_ms=NOW_MS + 61_000)

    def log(self, submission_id: str) -> str:
        self.calls[submission_id] += 1
        if submission_id in self.mute:
            raise UnreachableError("the Ray head does not answer", where="here", fix="none")
        return ""

    def delete(self, submission_id: str) -> None:
        del self.known[submission_id]


def agent(world: World, number: int, state: LegState, **columns: Any) -> tuple[Agent, Scripted]:
    """An agent with `number` legs in `state`."""
    made, ray = Agent(world.settings()), Scripted()
    made.runner.cluster = ray
    made.runner.now_ms = lambda: NOW_MS
    made.runner.unhealthy = ""
    for index in range(number):
        leg = new_leg(world.offer(index, gpus=1))
        with made.db.write() as write:
            made.table.add(leg, NOW_MS + 60_000, write)
            made.table.change(leg, write, state=state.value, **columns)
        if columns.get("submitted"):
            ray.known[leg.key] = RUNNING
    return made, ray


@pytest.fixture
def running(world: World) -> tuple[Agent, Scripted]:
    return agent(world, 40, LegState.RUNNING, submitted=1, started_ms=NOW_MS - 1000, metered_ms=NOW_MS - 1000)


def test_one_look_at_many_legs_is_one_call(running: tuple[Agent, Scripted]) -> None:
    made, ray = running
    made.runner.step()
    assert ray.calls == {"jobs": 1}


def test_a_leg_that_the_list_leaves_out_is_lost_only_when_its_name_is_unknown_too(
    running: tuple[Agent, Scripted],
) -> None:
    made, ray = running
    slipped, gone = sorted(ray.known)[:2]
    ray.hidden = {slipped}
    del ray.known[gone]
    made.runner.step()
    assert ray.calls == {"jobs": 1, "job": 2}
    states = {leg.key: leg.state for leg in made.table.reported()}
    assert states.pop(gone) is LegState.FAILED
    assert set(states.values()) == {LegState.RUNNING}


def test_many_new_legs_are_submitted_a_few_at_a_time_and_never_twice(world: World) -> None:
    made, ray = agent(world, 2 * MAX_UNLISTED + 3, LegState.STARTING)
    for submitted in (MAX_UNLISTED, 2 * MAX_UNLISTED, 2 * MAX_UNLISTED + 3, 2 * MAX_UNLISTED + 3):
        made.runner.step()
        assert ray.calls["submit"] == submitted
    made.runner.step()
    assert {leg.state for leg in made.table.active()} == {LegState.RUNNING}


def test_on_a_full_disk_leases_end_in_ray_all_the_same_and_are_written_off_later(
    running: tuple[Agent, Scripted],
) -> None:
    made, ray = running
    first, *others = made.table.active()
    made.table.change(first, lease_until_ms=NOW_MS + 3_600_000)
    made.runner.now_ms = lambda: NOW_MS + 60_000
    with no_room():
        for _ in range(2):  # to look at the first leg is to write when it was seen: that must keep no other going
            with pytest.raises(sqlite3.OperationalError):
                made.runner.step()
    assert {key for key, job in ray.known.items() if job.status is RayStatus.STOPPED} == {leg.key for leg in others}
    assert ray.calls["stop"] == len(others)
    assert {leg.state for leg in made.table.active()} == {LegState.RUNNING}
    made.runner.now_ms = lambda: NOW_MS + 62_000
    made.runner.step()
    assert [leg.key for leg in made.table.active()] == [first.key]
    ended = [leg for leg in made.table.reported() if leg.key != first.key]
    assert {(leg.state, leg.fault, leg.metered_ms) for leg in ended} == {(LegState.LOST, Fault.SITE, NOW_MS + 61_000)}


def test_a_leg_that_was_told_to_stop_on_a_full_disk_is_stopped_as_told(running: tuple[Agent, Scripted]) -> None:
    made, ray = running
    told = made.table.active()[7]
    with no_room():
        made.runner.stop(told, LegState.STOPPED, "cancelled", keep_s=60)
    assert ray.calls["stop"] == 0
    made.runner.step()
    assert ray.known[told.key].status is RayStatus.STOPPED
    made.runner.step()
    (ended,) = (leg for leg in made.table.reported() if not leg.active)
    assert (ended.key, ended.state, ended.reason, ended.fault) == (told.key, LegState.STOPPED, "cancelled", None)


def test_logs_of_many_legs_are_read_in_turns(running: tuple[Agent, Scripted]) -> None:
    made, ray = running
    keeper = LogKeeper(made.table, ray, store=None, server=ServerLine(made.settings))  # type: ignore[arg-type]
    keeper.step()
    assert ray.calls.pop("jobs") == 1
    assert sum(ray.calls.values()) == MAX_READ
    keeper.step()
    assert ray.calls.pop("jobs") == 1
    assert len(ray.calls) == 40
    assert max(ray.calls.values()) <= 2


def test_a_leg_without_a_log_keeps_no_other_from_being_archived(world: World) -> None:
    made, ray = agent(world, 5, LegState.SUCCEEDED, submitted=1)
    keeper = LogKeeper(made.table, ray, store=None, server=ServerLine(made.settings))  # type: ignore[arg-type]
    names = [leg.key for leg in made.table.unarchived()]
    ray.mute = {names[0], names[3]}
    for _ in range(3):
        with pytest.raises(UnreachableError):
            keeper.step()
    assert set(ray.known) == ray.mute
    assert [leg.key for leg in made.table.unarchived()] == [names[0], names[3]]
    assert min(ray.calls[name] for name in ray.mute) >= 1
    ray.mute = set()
    keeper.step()
    assert not ray.known
    assert not made.table.unarchived()


def test_an_archived_leg_that_ray_lists_again_is_deleted_again(world: World) -> None:
    made, ray = agent(world, 3, LegState.SUCCEEDED, submitted=1)
    keeper = LogKeeper(made.table, ray, store=None, server=ServerLine(made.settings))  # type: ignore[arg-type]
    key = made.table.unarchived()[1].key
    foreign = {"raysubmit_abc": RUNNING, "a@b@c": RUNNING, f"{key.partition('@')[0]}@9.9": RUNNING}
    ray.known |= foreign
    keeper.step()
    assert ray.known == foreign
    ray.known[key] = RayJob(status=RayStatus.FAILED, message="Job supervisor actor died")
    keeper.step()
    assert ray.known == foreign
