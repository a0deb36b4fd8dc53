"""kill -9 in mid-job, on a whole federation: no job is lost, no leg runs twice, nothing is billed twice."""

from __future__ import annotations

import itertools
import os
import signal

import pytest

from consortium.client.submission import make_spec
from consortium.data.sample import generate
from consortium.domain.codec import from_json
from consortium.domain.data import Dataset
from consortium.domain.job import Job, JobState
from consortium.domain.records import Record, RecordType, UsageRow
from consortium.keys.signing import SigningKey
from consortium.keys.trust import Trust
from consortium.ledger.origins import check_chain
from consortium.local.service import children
from consortium.local.steward import register_at_home
from consortium.site.db import SiteDb
from consortium.site.outbox import Outbox
from tests.conftest import Embedded
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
ENGINEER = "fr/amelie"


@pytest.fixture(scope="module")
def laws(embedded: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = generate("fr", 4_000).write(tmp_path_factory.mktemp("sample") / "fr.jsonl")
    with embedded.client(ENGINEER) as client:
        return register_at_home(
            client,
            embedded.key(ENGINEER),
            name="crash-laws",
            paths=[path],
            site="fr-1",
            languages=("fr",),
            directory=embedded.directory,
        )


def pid_of(embedded: Embedded, child: str) -> int:
    return int(children(embedded.directory)[child]["pid"])


def records(embedded: Embedded) -> list[Record]:
    """Every record in the ledger, once the server has drained what it holds."""
    with embedded.client("fr/claire") as client:
        found: list[Record] = []
        while page := client.entries(len(found), 500):
            found += [from_json(Record, entry["payload"], where="ledger") for entry in page]
        return found


def usage_rows(embedded: Embedded, job: str) -> list[UsageRow]:
    rows = [
        from_json(UsageRow, row, where="usage")
        for record in records(embedded)
        if record.type is RecordType.USAGE
        for row in record.body["rows"]
    ]
    return sorted((row for row in rows if row.job == job), key=lambda row: row.start_ms)


def run_and_kill(embedded: Embedded, laws: Dataset, victim: str) -> Job:
    """Run a clean job, kill `victim` once its leg runs, and return the job when it has ended."""
    with embedded.client(ENGINEER) as client:
        overrides = [f"inputs=[{laws.id}]", f"name=kill-{victim}", "gpus=2", "gpus_per_worker=2"]
        job = client.submit(make_spec(client, "clean", overrides, person=ENGINEER, key=embedded.key(ENGINEER)))
        until(lambda: client.job(job.id).state is JobState.RUNNING, f"{job.id} running")
        killed = pid_of(embedded, victim)
        os.kill(killed, signal.SIGKILL)
        until(lambda: pid_of(embedded, victim) not in (0, killed), f"{victim} started again")
        ended = client.wait(job.id, timeout_s=240)
        until(lambda: children(embedded.directory)[victim]["state"] == "ready", f"{victim} ready again")
        return ended


def check_books(embedded: Embedded, job: Job) -> None:
    """Nothing billed twice, no record lost: chains are gapless up to what each site has written."""
    outbox = Outbox(SiteDb(embedded.directory.site("fr-1")), "fr-1", site_key(embedded))
    until(lambda: sum(r.origin == "fr-1" for r in records(embedded)) >= outbox.next_seq, "fr-1's records in the ledger")
    rows = usage_rows(embedded, job.id)
    assert all(before.end_ms <= after.start_ms for before, after in itertools.pairwise(rows))
    assert len({(row.leg, row.epoch) for row in rows}) == sum(leg.tries for a in job.attempts for leg in a.legs)
    trust = Trust.load(embedded.directory.trust_file)
    for origin in ("server", "de-1", "fr-1", "uy-1"):
        check_chain([record for record in records(embedded) if record.origin == origin], trust.origin_key)
    with embedded.client(ENGINEER) as client:
        assert not [row for row in client.usage()["rows"] if row["conflict"]]


def site_key(embedded: Embedded) -> SigningKey:
    return SigningKey.load(embedded.directory.site("fr-1") / "signing.key")


@pytest.mark.parametrize("victim", ["server", "agent-fr-1", "gateway-fr-1"])
def test_a_killed_process_changes_nothing_for_a_running_leg(embedded: Embedded, laws: Dataset, victim: str) -> None:
    job = run_and_kill(embedded, laws, victim)
    assert job.state is JobState.SUCCEEDED, job.reason
    assert [leg.tries for attempt in job.attempts for leg in attempt.legs] == [1]
    check_books(embedded, job)
    manifests = [r for r in records(embedded) if r.type is RecordType.MANIFEST and r.body.get("job") == job.id]
    assert len({r.body.get("leg") for r in manifests}) == 1


def test_a_killed_ray_head_costs_a_second_epoch_and_no_job(embedded: Embedded, laws: Dataset) -> None:
    job = run_and_kill(embedded, laws, "ray-fr-1")
    assert job.state is JobState.SUCCEEDED, job.reason
    assert sum(leg.tries for attempt in job.attempts for leg in attempt.legs) == 2
    check_books(embedded, job)
