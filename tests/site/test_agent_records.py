"""What the agent makes of the server's log and word: histories that change, records that are lost or refused."""

from __future__ import annotations

import pytest

from consortium.domain.job import LegState
from consortium.domain.records import Record, RecordType
from consortium.errors import UsageError
from consortium.keys.signing import SigningKey
from consortium.ledger.log import Ledger
from consortium.ledger.origins import check_chain
from consortium.site.agent.loop import RECORDS
from tests.site.stage import Stage


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
