"""Budgets hold over retries, resumed attempts and what a silent site has yet to report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from consortium.accounting.budgets import Standing
from consortium.accounting.periods import bounds, period_of
from consortium.domain.codec import from_json
from consortium.domain.data import ArtifactClass
from consortium.domain.decision import Reason
from consortium.domain.job import Fault, Job, JobKind, LegState, Priority, Resources
from consortium.domain.records import RecordType, UsageRow
from consortium.domain.units import MS_PER_HOUR
from consortium.keys.documents import SignedDocument, save_document
from consortium.keys.signing import sign_value
from consortium.scheduler import PendingJob
from consortium.server import faults, loop, snapshots, waits
from consortium.server.clock import Clock
from consortium.server.core import Core
from consortium.state import jobs, records
from consortium.state import tables as t
from consortium.state.sites import update_site
from tests.server.placed import at_work

MINUTE = 60_000


class MidMonth(Clock):
    """Stands still in the middle of a month, so that none of what the tests do leaves it."""

    def __init__(self, now_ms: int) -> None:
        super().__init__()
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms


@pytest.fixture
def core_fed(parts: Any) -> tuple[Core, Any]:
    """A server of whose partner France may use 10 reference GPU-hours in this month."""
    core, fed = parts
    start_ms, end_ms = bounds(period_of(core.clock.now_ms()))
    core.clock = MidMonth((start_ms + end_ms) // 2)
    path = Path(fed.settings["documents_dir"]) / "quota-consortium.json"
    document = from_json(SignedDocument, json.loads(path.read_text()), where="quota")
    quota = yaml.safe_load(document.text)
    month = period_of(core.clock.now_ms())
    quota["budgets"] = [{"account": "fr", "period": month, "reference_gpu_hours": 10}]
    save_document(sign_value(fed.server_key, replace(document, text=yaml.safe_dump(quota), version=2)), path)
    loop._refresh_documents(core)
    assert core.files.fault is None
    return core, fed


def started(core: Core, fed: Any, walltime_s: int, ago_ms: int, *sites: str) -> Job:
    """A job of France on one GPU of each site, whose legs run since so long."""
    job = at_work(
        core, fed, *(sites or ("fr-1",)), cls=ArtifactClass.CLEAN, kind=JobKind.TOKENIZE,
        params=fed.params("tokenize"), account="fr", resources=Resources(gpus=1, walltime_s=walltime_s),
    )  # fmt: skip
    now_ms = core.clock.now_ms()
    with core.db.write() as connection:
        jobs.start_attempt(connection, job.attempt.id, now_ms - ago_ms)
        connection.execute(t.epochs.update().values(offered_ms=now_ms - ago_ms))
        for leg in job.attempt.legs:
            for state in (LegState.HELD, LegState.STARTING, LegState.RUNNING):
                jobs.set_leg(connection, leg, state, now_ms - ago_ms)
            core.contacts.heard_site(leg.site, now_ms)
            update_site(connection, leg.site, healthy=True)
    return job


def metered(core: Core, hours: int) -> None:
    """What France used elsewhere in this month."""
    start_ms, _ = bounds(period_of(core.clock.now_ms()))
    row = {"leg": "leg-x", "epoch": "1.1", "job": "job-x", "account": "fr", "site": "fr-1", "flavor": "h100-sxm",
           "start_ms": start_ms, "end_ms": start_ms + MS_PER_HOUR, "gpus": hours}  # fmt: skip
    with core.db.write() as connection:
        connection.execute(t.usage.insert().values(**row, origin="fr-1", seq=1, conflict=""))


def failed(core: Core, job: Job) -> None:
    """The job's first leg failed by its site's fault, and its backoff is over."""
    with core.db.write() as connection:
        faults.not_its_own(
            core, connection, job.attempt.legs[0], LegState.FAILED, Fault.SITE, "the Ray head died",
            core.clock.now_ms() - 10 * MINUTE,
        )  # fmt: skip
    loop._offer_again(core)


def standing(core: Core) -> Standing:
    with core.db.read() as connection:
        held = snapshots.held_legs(connection)
        return waits.budget_standings(connection, core.federation, held, core.clock.now_ms())["fr"]


@pytest.mark.parametrize(("used_hours", "tried_again"), [(0, True), (5, True), (7, False)])
def test_a_leg_is_tried_again_where_its_budget_carries_another_walltime(
    core_fed: Any, used_hours: int, tried_again: bool
) -> None:
    core, fed = core_fed
    job = started(core, fed, 4 * 3600, 20 * MINUTE)
    metered(core, used_hours)
    failed(core, job)
    with core.db.read() as connection:
        found = jobs.find_job(connection, job.id)
        again = jobs.open_attempt(connection, job.id) is not None
    assert again is tried_again
    assert standing(core).used + standing(core).promised <= 10 * MS_PER_HOUR
    if not tried_again:
        assert isinstance(found.reason, Reason)
        assert (found.state.value, found.reason.code.value) == ("pending", "budget")
        assert found.reason.numbers["needed_reference_gpu_ms"] == 4 * MS_PER_HOUR


def test_a_federated_jobs_leg_that_its_budget_does_not_carry_waits_while_the_others_go_on(core_fed: Any) -> None:
    core, fed = core_fed
    job = started(core, fed, 4 * 3600, 20 * MINUTE, "fr-1", "de-1")
    metered(core, 5)
    failed(core, job)
    with core.db.read() as connection:
        first, other = jobs.find_job(connection, job.id).attempt.legs
        assert jobs.leg_row(connection, first.id).retry_at_ms > core.clock.now_ms()
    assert (first.epoch, other.state) == (job.attempt.legs[0].epoch, LegState.RUNNING)


def test_a_job_that_goes_on_from_what_it_kept_may_take_its_whole_walltime_again(core_fed: Any) -> None:
    core, _ = core_fed
    metered(core, 9)
    job = PendingJob(
        id="job-a", account="fr", priority=Priority.NORMAL, created_ms=1, gpus=1, gpus_per_worker=1, flavors=(),
        walltime_s=2 * 3600, done_ms=90 * MINUTE, sites=("fr-1",),
    )  # fmt: skip
    now_ms = core.clock.now_ms()
    (found,) = waits.within_budget([job], {"fr": standing(core)}, core.federation, now_ms)
    assert found.waits_for is not None
    assert found.waits_for.numbers["needed_reference_gpu_ms"] == 2 * MS_PER_HOUR


def test_what_a_lost_site_used_counts_until_it_has_reported(core_fed: Any) -> None:
    core, fed = core_fed
    job = started(core, fed, 3600, 30 * MINUTE)
    (leg,) = job.attempt.legs
    now_ms = core.clock.now_ms()
    site = fed.scripted("fr-1")

    def report(start_ms: int, end_ms: int, at_ms: int) -> None:
        row = UsageRow(leg=leg.id, epoch=str(leg.epoch), job=job.id, account="fr", site="fr-1", flavor="h100-sxm",
                       gpus=1, start_ms=start_ms, end_ms=end_ms)  # fmt: skip
        site.usage(row)
        take(at_ms)

    def take(at_ms: int) -> None:
        last = site.chain.pop()
        site.chain.append(sign_value(site.key, replace(last, at_ms=at_ms, signature="")))
        with core.db.write() as connection:
            records.take_site_records(connection, "fr-1", site.key.public, site.chain[-1:], now_ms)

    begun = now_ms - 30 * MINUTE
    report(begun, begun + 20 * MINUTE, begun + 20 * MINUTE)
    with core.db.write() as connection:
        jobs.set_leg(connection, leg, LegState.LOST, now_ms)
        jobs.end_attempt(connection, job.attempt.id, now_ms)
    assert (standing(core).used, standing(core).promised) == (20 * MINUTE, 10 * MINUTE)
    report(begun + 20 * MINUTE, begun + 29 * MINUTE, now_ms - MINUTE)
    assert (standing(core).used, standing(core).promised) == (29 * MINUTE, MINUTE)
    site.record(RecordType.DOWNTIME, {})
    take(now_ms + 1)
    assert (standing(core).used, standing(core).promised) == (29 * MINUTE, 0), "it went on, and there is no more"
