"""Jobs that wait for others, run times, history, metered use and consents, in both databases."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consortium.domain.job import ArrayMember, Job, JobState
from consortium.scheduler import RunTimes, observe
from consortium.scheduler.types import History
from consortium.state import Database, approvals, jobs, shares, waits
from consortium.state import tables as t
from consortium.state.approvals import Approval
from tests import builders
from tests.builders import NOW_MS, new_id

pytestmark = pytest.mark.integration
ARRAY = new_id("arr", 1)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    folder: Path = tmp_path_factory.mktemp(request.param)
    server = None
    if request.param == "postgresql":
        pgserver = pytest.importorskip("pgserver", reason="the wheel pgserver is not installed")
        server = pgserver.get_server(folder, cleanup_mode="stop")
    database = Database(server.get_uri() if server else f"sqlite:///{folder}/state.db")
    yield database
    database.close()
    if server:
        server.cleanup()


@pytest.fixture
def connection(db: Database) -> Iterator[Any]:
    """A transaction that leaves nothing behind."""
    with db.engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


def stored(connection: Any, number: int, state: JobState = JobState.PENDING, **changes: Any) -> str:
    spec = builders.spec(nonce=str(number), name=f"job-{number}", **changes)
    job = Job(id=new_id("job", number), spec=spec, signature="s", state=state, created_ms=NOW_MS + number,
              updated_ms=NOW_MS + number, version=1)  # fmt: skip
    jobs.insert_job(connection, job)
    return job.id


def test_what_a_pending_job_waits_for_and_what_it_waits_for_in_vain(connection: Any) -> None:
    done, failed = stored(connection, 1, JobState.SUCCEEDED), stored(connection, 2, JobState.FAILED)
    runs = stored(connection, 3, JobState.RUNNING)
    stored(connection, 4, after=(done,))
    waiting = stored(connection, 5, after=(done, runs))
    orphan = stored(connection, 6, after=(runs, failed))
    stored(connection, 7, JobState.CANCELLED, after=(failed,))
    found = [(item.job, item.after, item.state) for item in waits.unmet(connection)]
    assert found == [(waiting, runs, "running"), *sorted([(orphan, failed, "failed"), (orphan, runs, "running")])]
    (vain,) = waits.unmet(connection, hopeless=True)
    assert (vain.job, vain.after, vain.name, vain.state) == (orphan, failed, "job-2", JobState.FAILED)


def test_the_members_of_an_array_that_have_not_ended_come_in_order(connection: Any) -> None:
    member = ArrayMember(id=ARRAY, index=0, size=4, limit=2)
    ids = [
        stored(connection, 9 - index, state, array=replace(member, index=index))
        for index, state in enumerate([JobState.RUNNING, JobState.SUCCEEDED, JobState.PENDING, JobState.PENDING])
    ]
    alone = replace(member, id=new_id("arr", 2), size=1, limit=0)
    stored(connection, 20, JobState.RUNNING, array=alone)
    assert waits.members_at_large(connection) == {ARRAY: [ids[0], ids[2], ids[3]]}
    assert waits.array_members(connection, ARRAY) == ids
    assert [job.id for job in jobs.list_jobs(connection, array=ARRAY)] == ids[::-1], "oldest first"


def test_jobs_that_cannot_be_done_by_their_deadline_any_more(connection: Any) -> None:
    late = stored(connection, 1, deadline_ms=NOW_MS + 3_600_000, walltime_s=3600)
    stored(connection, 2, deadline_ms=NOW_MS + 3_600_001, walltime_s=3600)
    stored(connection, 3)
    stored(connection, 4, JobState.RUNNING, deadline_ms=NOW_MS, walltime_s=60)
    assert [row.id for row in waits.past_start(connection, NOW_MS)] == []
    assert [row.id for row in waits.past_start(connection, NOW_MS + 1)] == [late]


def test_a_jobs_run_time_is_counted_once(connection: Any) -> None:
    ended = [stored(connection, n, s) for n, s in enumerate((JobState.FAILED, JobState.CANCELLED, JobState.SUCCEEDED))]
    stored(connection, 8, JobState.DENIED)
    stored(connection, 9)
    assert waits.unobserved(connection, limit=9) == ended
    waits.set_observed(connection, ended[0])
    assert waits.unobserved(connection, limit=1) == [ended[1]]


def test_history_and_run_times_come_back_as_they_were_kept(connection: Any) -> None:
    assert shares.load_history(connection) == ((), 0)
    assert shares.load_run_times(connection) == RunTimes()
    history = (History(account="de", borrowed=2**52, lent=0), History(account="fr/lab", borrowed=0, lent=5))
    shares.save_history(connection, history, NOW_MS)
    shares.save_history(connection, history[:1], NOW_MS + 1)
    assert shares.load_history(connection) == (history[:1], NOW_MS + 1)
    seen = observe(observe(RunTimes(), "fr/lab", 3600, 60), "de", 3600, 3600)
    shares.save_run_times(connection, seen)
    assert shares.load_run_times(connection) == seen


def test_metered_use_counts_in_its_period_and_not_where_it_is_in_conflict(connection: Any) -> None:
    def row(leg: str, start_ms: int, hours: int, conflict: str = "") -> None:
        values = {"leg": leg, "epoch": "1.1", "start_ms": start_ms, "end_ms": start_ms + hours * 3_600_000,
                  "job": "j", "account": "fr/lab", "site": "fr-1", "flavor": "h100-sxm", "gpus": 2,
                  "origin": "fr-1", "seq": 0, "conflict": conflict}  # fmt: skip
        connection.execute(t.usage.insert().values(**values))

    row("leg-1", NOW_MS, 3)
    row("leg-1", NOW_MS + 3 * 3_600_000, 1)
    row("leg-2", NOW_MS, 5, conflict="fr-1:3")
    row("leg-3", NOW_MS - 9 * 3_600_000, 4)
    found = shares.metered(connection, NOW_MS, NOW_MS + 24 * 3_600_000)
    assert found == {("fr/lab", "fr-1"): 2 * 4 * 3_600_000}
    assert shares.metered_until(connection, {"leg-1": "fr-1", "leg-2": "fr-1", "leg-3": "de-1"}) == {
        "leg-1": NOW_MS + 4 * 3_600_000
    }


def test_a_partner_consents_to_a_text_once(connection: Any) -> None:
    first = Approval(change="sha256:a", replaces="sha256:old", partner="fr", person="fr/bruno", signature="s",
                     text="accounts: {}", at_ms=NOW_MS)  # fmt: skip
    assert approvals.approve(connection, first)
    assert not approvals.approve(connection, replace(first, person="fr/other"))
    assert approvals.approve(connection, replace(first, partner="de", person="de/bernd"))
    assert approvals.approve(connection, replace(first, replaces="sha256:new"))
    found = approvals.approvals(connection, change="sha256:a", replaces="sha256:old")
    assert [item.person for item in found] == ["de/bernd", "fr/bruno"]
    assert found[1] == first
    assert approvals.approvals(connection, replaces="sha256:new")[0].partner == "fr"
