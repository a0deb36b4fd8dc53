"""How much a site may bring of one job: what an honest one has, and no more."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select

from consortium.domain.data import Artifact, ArtifactClass
from consortium.domain.job import LegState
from consortium.domain.partner import Role
from consortium.keys.signing import sign_value
from consortium.server import amounts, logs
from consortium.server.app import make_app
from consortium.server.core import Core
from consortium.state import data, jobs
from consortium.state import tables as t
from tests.server.fed import Fed
from tests.server.placed import at_work

Parts = tuple[Core, Fed]


def leg_of(core: Core, fed: Fed) -> Any:
    job = at_work(core, fed)
    assert job.attempt is not None
    return job.attempt.legs[0]


def post(core: Core, fed: Fed, path: str, body: Any) -> Any:
    client = TestClient(make_app(core), raise_server_exceptions=False)
    token = fed.token("fr-1", (Role.SITE,))
    return client.post(path, json=fed.to_json(body), headers={"Authorization": f"Bearer {token}"})


def send_log(core: Core, fed: Fed, leg: Any, offset: int, text: str) -> None:
    body = {"leg": leg.id, "site": "fr-1", "offset": offset, "text": text}
    answer = post(core, fed, f"/v1/jobs/{leg.job}/logs", body)
    assert (answer.status_code, answer.json()) == (200, {"offset": offset + len(text)})


def kept(core: Core) -> int:
    with core.db.read() as connection:
        return int(connection.execute(select(func.sum(func.length(t.logs.c.text)))).scalar() or 0)


def test_of_a_log_no_more_is_kept_than_a_site_sends(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    core, fed = parts
    leg = leg_of(core, fed)
    monkeypatch.setattr(logs, "MAX_LOG_CHARS", 100)
    send_log(core, fed, leg, 0, "a" * 60)
    send_log(core, fed, leg, 0, "a" * 60)
    assert kept(core) == 60, "what is sent again counts once"
    send_log(core, fed, leg, 60, "b" * 60)
    assert kept(core) == 100
    send_log(core, fed, leg, 1_000_000, "far away")
    send_log(core, fed, leg, 0, "c" * 60)
    assert kept(core) == 100
    core.log_amounts = logs.LogAmounts()  # as after a restart
    send_log(core, fed, leg, 10, "d" * 60)
    assert kept(core) == 100
    with core.db.write() as connection:
        jobs.new_epoch(connection, leg, core.next_epoch(connection), 1)
    send_log(core, fed, leg, 0, "d" * 60)
    assert kept(core) == 160, "the next epoch has a log of its own"


def test_a_log_that_comes_long_after_its_legs_end_is_not_kept(parts: Parts) -> None:
    core, fed = parts
    for ended_ago_ms in (logs.LATE_MS - 60_000, logs.LATE_MS + 60_000):
        leg = leg_of(core, fed)
        with core.db.write() as connection:
            jobs.set_leg(connection, leg, LegState.LOST, core.clock.now_ms() - ended_ago_ms)
        send_log(core, fed, leg, 0, "late")
        assert kept(core) == 4, "the first one's"


@pytest.mark.parametrize(("rounds", "number", "status"), [(0, 0, 200), (0, 1, 422), (3, 3, 200), (3, 4, 422)])
def test_an_artifact_is_of_one_of_the_jobs_rounds(
    parts: Parts, rounds: int, number: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, fed = parts
    leg = leg_of(core, fed)
    monkeypatch.setattr("consortium.server.legs.outer_number", lambda *_: rounds)
    draft = Artifact(job=leg.job, artifact_class=ArtifactClass.STATISTIC, name="counts", round=number, sender="fr-1",
                     recipients=("de-1",), digest="sha256:x", key=f"k{number}", size_bytes=5)  # fmt: skip
    answer = post(core, fed, f"/v1/jobs/{leg.job}/artifacts", sign_value(fed.site_keys["fr-1"], draft))
    assert answer.status_code == status, answer.text
    if status == 422:
        has = "the job has rounds 1 to 3" if rounds else "the job has none"
        assert answer.json()["detail"] == f"there is no round {number}: {has}"


def test_a_site_agrees_on_as_many_topics_as_a_job_has(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    core, fed = parts
    leg = leg_of(core, fed)
    monkeypatch.setattr(amounts, "TOPICS", 2)
    answers = []
    for topic in ("tokenizer", "across", "one-too-many", "across"):
        said = {"job": leg.job, "topic": topic, "site": "fr-1", "digest": "sha256:x"}
        signed = sign_value(fed.site_keys["fr-1"], said)
        body = {name: signed[name] for name in ("site", "digest", "signature")}
        answers.append(post(core, fed, f"/v1/jobs/{leg.job}/agreements/{topic}", body).status_code)
    assert answers == [200, 200, 422, 200]
    with core.db.read() as connection:
        assert data.count_topics(connection, leg.job, "fr-1") == 2
