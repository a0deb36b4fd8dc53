"""What a site may bring in by its polls, on the server's own parts in this process: nothing that stops the others."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from consortium.domain.codec import to_json
from consortium.domain.job import Epoch, JobState, LegState
from consortium.domain.partner import Role
from consortium.domain.protocol import LegReport, PollRequest
from consortium.server import folding, loop, polls, rounds
from consortium.server.app import make_app
from consortium.server.core import Core
from consortium.state import inbox, jobs
from consortium.state import tables as t
from tests.server.fed import Fed
from tests.server.placed import at_work

Parts = tuple[Core, Fed]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop runs beside the test: a poll waits for none."""
    monkeypatch.setattr(polls, "FOLD_WAIT_S", 0)


def told(site: str, *reports: LegReport) -> PollRequest:
    return PollRequest(site=site, protocol=2, healthy=True, unhealthy_reason="", code_digest="", policy_digest="",
                       highest_epoch=Epoch(incarnation=0, counter=0), legs=reports)  # fmt: skip


def report(leg: Any, state: LegState = LegState.HELD, **more: Any) -> LegReport:
    return LegReport(leg=leg.id, epoch=leg.epoch, state=state, **more)


def waiting(core: Core) -> int:
    with core.db.read() as connection:
        return int(connection.execute(select(func.count()).select_from(t.inbox)).scalar_one())


def leg_of(core: Core, fed: Fed) -> Any:
    job = at_work(core, fed)
    assert job.attempt is not None
    return job.attempt.legs[0]


def post(core: Core, fed: Fed, site: str, body: Any) -> Any:
    client = TestClient(make_app(core), raise_server_exceptions=False)
    token = fed.token(site, (Role.SITE,))
    return client.post(f"/v1/sites/{site}/poll", json=body, headers={"Authorization": f"Bearer {token}"})


@pytest.mark.parametrize("fault", [OverflowError("too large"), TypeError("no such thing"), RuntimeError("a bug")])
def test_an_item_that_cannot_be_folded_in_is_dropped_and_said_and_the_next_one_is_folded(
    parts: Parts, fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core, fed = parts
    leg = leg_of(core, fed)

    def fold_report(*_: Any) -> None:
        raise fault

    monkeypatch.setattr(folding, "fold_report", fold_report)
    with core.db.write() as connection:
        inbox.put(connection, "report", {"site": "fr-1", "report": to_json(report(leg))}, 1)
        inbox.put(connection, "cancel", {"job": leg.job, "by": "fr/amelie"}, 1)
    with caplog.at_level(logging.ERROR):
        loop._fold_inbox(core)
    assert waiting(core) == 0
    with core.db.read() as connection:
        assert jobs.find_job(connection, leg.job).state is JobState.CANCELLED
    assert f"a report of fr-1, is dropped: {type(fault).__name__}: {fault}" in caplog.text


def test_an_item_waits_while_the_database_is_away(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    core, fed = parts
    leg = leg_of(core, fed)

    def away(*_: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("the server closed the connection"))

    with core.db.write() as connection:
        inbox.put(connection, "report", {"site": "fr-1", "report": to_json(report(leg))}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(folding, "fold_report", away)
        with pytest.raises(OperationalError):
            loop._fold_inbox(core)
    assert waiting(core) == 1
    loop._fold_inbox(core)
    with core.db.read() as connection:
        found = jobs.find_leg(connection, leg.id)
    assert found is not None
    assert found.state is LegState.STARTING


def test_an_epoch_that_no_database_keeps_is_refused_and_one_stored_before_is_dropped(parts: Parts) -> None:
    core, fed = parts
    leg = leg_of(core, fed)
    body = to_json(told("fr-1", report(leg)))
    body["legs"][0]["epoch"]["incarnation"] = str(2**63)
    answer = post(core, fed, "fr-1", body)
    assert answer.status_code == 422
    assert "an epoch's incarnation must be 0 to 9,223,372,036,854,775,807" in answer.json()["detail"]
    with core.db.write() as connection:
        inbox.put(connection, "report", {"site": "fr-1", "report": body["legs"][0]}, 1)
    loop._fold_inbox(core)
    assert waiting(core) == 0


def test_characters_that_a_database_does_not_take_are_replaced_in_what_a_site_tells(parts: Parts) -> None:
    core, fed = parts
    leg = leg_of(core, fed)
    refused = report(leg, LegState.REFUSED, reason="no room\0 here", reason_code="capacity")
    assert post(core, fed, "fr-1", to_json(told("fr-1", refused))).status_code == 200
    loop._fold_inbox(core)
    with core.db.read() as connection:
        found = jobs.find_leg(connection, leg.id)
    assert found is not None
    assert (found.state, found.reason) == (LegState.REFUSED, "no room\N{REPLACEMENT CHARACTER} here")


def test_reports_of_legs_that_are_not_the_sites_are_answered_and_kept_nowhere(parts: Parts) -> None:
    core, fed = parts
    leg = leg_of(core, fed)
    before = Epoch(incarnation=leg.epoch.incarnation - 1, counter=1)
    unknown = [LegReport(leg=f"leg-{n}", epoch=leg.epoch, state=LegState.RUNNING) for n in range(50)]
    ended = LegReport(leg="leg-x", epoch=leg.epoch, state=LegState.STOPPED)
    earlier = LegReport(leg=leg.id, epoch=before, state=LegState.STOPPED)
    answer = polls.poll(core, "de-1", told("de-1", *unknown, ended, report(leg, LegState.STOPPED)))
    assert len(answer.stops) == 50
    assert [item.leg for item in answer.acknowledged] == ["leg-x", leg.id]
    assert [item.epoch for item in polls.poll(core, "fr-1", told("fr-1", earlier)).acknowledged] == [before]
    assert waiting(core) == 0
    assert (core.contacts._reports, core.contacts._stops) == ({}, set())
    polls.poll(core, "fr-1", told("fr-1", report(leg), report(leg)))
    assert waiting(core) == 1, "its own leg, once"


def test_a_report_of_an_epoch_that_has_ended_comes_to_the_inbox_once(parts: Parts) -> None:
    core, fed = parts
    leg = leg_of(core, fed)
    for expected in (1, 0, 0):
        answer = polls.poll(core, "fr-1", told("fr-1", report(leg, LegState.STOPPED)))
        assert [item.leg for item in answer.acknowledged] == [leg.id]
        assert waiting(core) == expected
        loop._fold_inbox(core)


def test_a_poll_of_more_legs_than_a_site_can_have_is_refused(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    core, fed = parts
    monkeypatch.setattr(polls, "MORE_LEGS", 0)
    most = polls.most_legs(core, "fr-1")
    assert most == 4 * sum(node.gpus for node in core.federation.site("fr-1").nodes)
    one = LegReport(leg="leg-x", epoch=Epoch(incarnation=1, counter=1), state=LegState.STOPPED)
    assert post(core, fed, "fr-1", to_json(told("fr-1", *[one] * most))).status_code == 200
    answer = post(core, fed, "fr-1", to_json(told("fr-1", *[one] * (most + 1))))
    assert answer.status_code == 422
    assert f"can have {most} at most" in answer.json()["detail"]


def test_a_full_inbox_does_not_keep_a_cycle_from_going_on(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    core, _ = parts
    counted: list[int] = []
    monkeypatch.setattr(loop, "_place", lambda _: counted.append(waiting(core)))
    with core.db.write() as connection:
        for _ in range(450):
            inbox.put(connection, "gone", {"leg": "leg-x", "epoch": "1.1"}, 1)
    loop.cycle(core)
    assert counted == [50]
    assert core.bell.is_set(), "the next cycle begins at once"


def test_a_poll_is_answered_while_others_keep_all_their_threads_busy(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, fed = parts
    at_work(core, fed)
    busy, go_on = threading.Semaphore(0), threading.Event()

    def slow(*_: Any) -> list[Any]:
        busy.release()
        go_on.wait(30)
        return []

    monkeypatch.setattr("consortium.state.data.list_datasets", slow)

    async def call() -> int:
        transport = httpx.ASGITransport(app=make_app(core))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=20) as client:
            person = {"Authorization": f"Bearer {fed.token('fr/amelie', (Role.ENGINEER,))}"}
            site = {"Authorization": f"Bearer {fed.token('fr-1', (Role.SITE,))}"}
            others = [asyncio.create_task(client.get("/v1/datasets", headers=person)) for _ in range(45)]
            for _ in range(40):
                assert await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, busy.acquire), 20)
            body = to_json(told("fr-1"))
            poll = asyncio.create_task(client.post("/v1/sites/fr-1/poll", json=body, headers=site))
            done, _ = await asyncio.wait([poll], timeout=10)
            go_on.set()
            await asyncio.gather(*others)
            return (await poll).status_code if done else 0

    assert asyncio.run(call()) == 200


def test_a_topic_with_a_number_that_no_round_has_is_a_topic_like_any_other(parts: Parts) -> None:
    core, fed = parts
    job = at_work(core, fed)
    with core.db.read() as connection:
        rounds.check_agreement(connection, job.id, "outer/" + "9" * 90, "sha256:x")
