"""What is taken back for a job is kept for it, whoever else waits, over restarts of the server."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from consortium.domain.codec import from_json
from consortium.domain.job import LegState, Priority, Resources
from consortium.scheduler import Snapshot, schedule

pytestmark = pytest.mark.integration


@pytest.fixture
def fed(quiet_fed: Any) -> Any:
    """A federation whose server takes GPUs back at once."""
    quiet_fed.settings["scheduler"] = {"min_run_s": 0, "stop_s": 40}
    quiet_fed.start()
    return quiet_fed


def submitted(fed: Any, laws: Any, account: str, gpus: int, **changes: Any) -> str:
    given = {"resources": Resources(gpus=gpus, walltime_s=6000), "account": account}
    answer = fed.submit(fed.spec([laws], **(given | changes)))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def taken(fed: Any) -> Snapshot:
    return from_json(Snapshot, fed.get("/v1/snapshot", "fr/bruno")["snapshot"])


def test_what_a_victim_leaves_goes_to_the_job_it_stopped_for(fed: Any) -> None:
    laws, site = fed.dataset("fr-1", "laws-fr"), fed.site("fr-1")
    borrower = submitted(fed, laws, "de", 8, submitter="de/anna")
    offer = site.run(borrower)
    owner = submitted(fed, laws, "fr", 6)
    fed.until(lambda: [stop for stop in site.poll().stops if stop.leg == offer.leg])
    rival = submitted(fed, laws, "fr/health", 4, priority=Priority.HIGH)
    assert {job.id: job.nominated for job in taken(fed).pending} == {owner: True, rival: False}

    fed.kill(signal.SIGKILL)
    fed.start()
    site.healthy = False  # so that what becomes free can be looked at before it is given away
    site.say(offer.leg, offer.epoch, LegState.STOPPED)
    fed.until(lambda: not taken(fed).held)
    snapshot = taken(fed)
    waiting = {job.id: (job.nominated, job.priority) for job in snapshot.pending}
    assert waiting == {
        borrower: (False, Priority.NORMAL), owner: (True, Priority.NORMAL), rival: (False, Priority.HIGH)
    }  # fmt: skip
    assert schedule(snapshot).placements == (), "its site is not well"

    site.healthy = True
    run = site.run(owner)
    assert fed.job(rival)["state"] == "pending"
    assert [job.nominated for job in taken(fed).pending] == [False, False]
    for _ in range(10):
        assert site.poll().stops == ()
    told = [r["body"]["job"] for r in fed.records("server") if r["type"] == "decision" and r["body"].get("evicted")]
    assert told == [borrower], "nobody else was evicted"
    site.succeed(run)
    site.succeed(site.run(rival))
