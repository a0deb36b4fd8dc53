"""The loop's steps: an admin acts in between, a leg stops no other, the database is away at the start."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, event
from sqlalchemy.exc import OperationalError

from consortium.domain.data import ArtifactClass
from consortium.domain.job import Fault, Job, JobKind, LegState, Resources, SignedSpec
from consortium.domain.partner import Role, SiteState
from consortium.errors import UnreachableError
from consortium.keys.canonical import canonical
from consortium.keys.tokens import Claims
from consortium.server import evictions, faults, loop, snapshots, submit
from consortium.server.app import make_app
from consortium.server.core import Core
from consortium.server.routes import upkeep
from consortium.server.settings import ServerSettings
from consortium.state import data, database, jobs, nodes
from consortium.state.database import Database
from consortium.state.sites import SiteStatus, all_sites, update_site
from tests.server.fed import Fed
from tests.server.placed import ME, at_work

ADMIN = Claims(subject="fr/bruno", partner="fr", roles=(Role.ADMIN,), expires_ms=1 << 47)
Parts = tuple[Core, Fed]


def site(core: Core, name: str = "fr-1") -> SiteStatus:
    with core.db.read() as connection:
        return all_sites(connection)[name]


def meanwhile(monkeypatch: pytest.MonkeyPatch, room: Any, act: Callable[[], Any]) -> None:
    """Let somebody act between the first time that a step reads the sites and what it makes of them."""

    def read_then_act(connection: Connection) -> dict[str, SiteStatus]:
        found = all_sites(connection)
        monkeypatch.setattr(room, "all_sites", all_sites)
        act()
        return found

    monkeypatch.setattr(room, "all_sites", read_then_act)


def failed(core: Core, fed: Fed, *sites: str) -> Job:
    """A training at work at these sites, all of whose legs failed by their site's fault and are due again."""
    job = at_work(core, fed, *sites, cls=ArtifactClass.TOKENS, kind=JobKind.PRETRAIN, params=fed.params("pretrain"),
                  account="fr", resources=Resources(gpus=1, walltime_s=600))  # fmt: skip
    now_ms = core.clock.now_ms()
    assert job.attempt is not None
    with core.db.write() as connection:
        jobs.start_attempt(connection, job.attempt.id, now_ms)
        for leg in job.attempt.legs:
            update_site(connection, leg.site, healthy=True, last_contact_ms=now_ms)
            jobs.set_leg(connection, leg, LegState.FAILED, now_ms, fault=Fault.SITE, retry_at_ms=now_ms)
            core.contacts.heard_site(leg.site, now_ms)
    return job


def states(core: Core, job: Job) -> dict[str, LegState]:
    with core.db.read() as connection:
        attempt = jobs.find_job(connection, job.id).attempt
        return {leg.site: leg.state for leg in (attempt.legs if attempt else ())}


def test_a_site_that_is_resumed_while_it_would_count_as_drained_stays_active(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, _ = parts
    upkeep.drain("fr-1", core, ADMIN)
    meanwhile(monkeypatch, loop, lambda: upkeep.resume("fr-1", core, ADMIN))
    loop._count_out(core)
    assert site(core).state is SiteState.ACTIVE
    upkeep.drain("fr-1", core, ADMIN)
    loop._count_out(core)
    assert site(core).state is SiteState.DRAINED


def test_a_recall_that_is_called_off_at_the_last_moment_withdraws_nothing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, fed = parts
    job = at_work(core, fed)
    upkeep.withdraw("fr-1", upkeep.Notice(notice_s=0), core, ADMIN)
    meanwhile(monkeypatch, evictions, lambda: upkeep.resume("fr-1", core, ADMIN))
    evictions.clear_sites(core)
    assert (site(core).state, site(core).withdraw_ms) == (SiteState.ACTIVE, 0)
    assert states(core, job) == {"fr-1": LegState.OFFERED}
    upkeep.withdraw("fr-1", upkeep.Notice(notice_s=0), core, ADMIN)
    evictions.clear_sites(core)
    assert site(core).state is SiteState.WITHDRAWN
    assert states(core, job) == {"fr-1": LegState.STOPPING}


def test_a_draining_site_has_drained_once_no_leg_is_to_run_there_again(parts: Parts) -> None:
    core, fed = parts
    job = failed(core, fed, "fr-1")
    upkeep.drain("fr-1", core, ADMIN)
    loop._count_out(core)
    assert site(core).state is SiteState.DRAINING, "a leg waits there for its next epoch"
    loop._offer_again(core)
    assert states(core, job) == {"fr-1": LegState.OFFERED}
    loop._count_out(core)
    assert site(core).state is SiteState.DRAINING


def test_a_leg_that_would_come_back_much_later_keeps_no_site_from_draining_and_finds_it_gone(parts: Parts) -> None:
    core, fed = parts
    job = failed(core, fed, "fr-1", "de-1")
    assert job.attempt is not None
    later = next(leg for leg in job.attempt.legs if leg.site == "fr-1")
    with core.db.write() as connection:
        jobs.set_retry(connection, later.id, core.clock.now_ms() + faults.RECHECK_MS)
    upkeep.drain("fr-1", core, ADMIN)
    loop._count_out(core)
    assert site(core).state is SiteState.DRAINED
    loop._offer_again(core)
    with core.db.write() as connection:
        jobs.set_retry(connection, later.id, core.clock.now_ms())
    loop._offer_again(core)
    assert states(core, job) == {"de-1": LegState.OFFERED, "fr-1": LegState.FAILED}


def test_no_leg_is_offered_again_once_its_attempt_has_ended_with_another(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, fed = parts
    job = failed(core, fed, "de-1", "fr-1")
    for name in ("de-1", "fr-1"):
        core.contacts.heard_site(name, core.clock.now_ms() - 3_600_000)
    without_site = faults.without_site

    def then_both_call(*given: Any) -> None:
        without_site(*given)
        for name in ("de-1", "fr-1"):
            core.contacts.heard_site(name, core.clock.now_ms())

    monkeypatch.setattr(faults, "without_site", then_both_call)
    loop._offer_again(core)
    assert set(states(core, job).values()) == {LegState.FAILED}
    with core.db.read() as connection:
        assert jobs.open_attempt(connection, job.id) is None


def test_a_leg_that_cannot_be_offered_again_keeps_no_other_from_it(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    core, fed = parts
    first, second = failed(core, fed, "fr-1"), failed(core, fed, "fr-1")
    real = faults.offer_again

    def only_the_second(core_: Core, connection: Connection, leg: Any) -> None:
        if leg.job == first.id:
            raise RuntimeError("nobody thought of this")
        real(core_, connection, leg)

    monkeypatch.setattr(faults, "offer_again", only_the_second)
    loop._offer_again(core)
    assert states(core, second) == {"fr-1": LegState.OFFERED}
    assert "nobody thought of this" in caplog.text


def test_a_leg_whose_site_left_the_federation_waits_for_it_no_longer(parts: Parts) -> None:
    core, fed = parts
    job = failed(core, fed, "fr-1")
    with core.db.write() as connection:
        nodes.cordon(connection, "fr-1", "n0", by="x", reason="", now_ms=core.clock.now_ms())
    left = {name: item for name, item in core.federation.sites.items() if name != "fr-1"}
    core.files.current = replace(core.federation, sites=left)
    loop._offer_again(core)
    with core.db.read() as connection:
        assert jobs.open_attempt(connection, job.id) is None


def test_a_database_that_is_away_at_the_start_does_not_end_the_loop_and_health_tells_of_cycles(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, _ = parts
    write, refused = Database.write, []

    @contextmanager
    def away_at_first(self: Database) -> Iterator[Connection]:
        if not refused:
            refused.append(1)
            raise OperationalError("BEGIN", {}, Exception("the server closed the connection unexpectedly"))
        with write(self) as connection:
            yield connection

    monkeypatch.setattr(Database, "write", away_at_first)
    http = TestClient(make_app(core))
    assert http.get("/v1/health").json()["last_cycle_ms"] == 0
    running = loop.Loop(core)
    running.start()
    try:
        until = time.monotonic() + 20
        while not http.get("/v1/health").json()["last_cycle_ms"] and time.monotonic() < until:
            time.sleep(0.02)
        assert running.is_alive()
        assert refused
        assert http.get("/v1/health").json()["last_cycle_ms"] > 0
    finally:
        running.stop()


def test_a_lease_runs_out_when_it_should_though_the_clock_was_set_back_by_an_hour(parts: Parts) -> None:
    core, fed = parts
    job = at_work(core, fed)
    assert job.attempt is not None
    leg = job.attempt.legs[0]
    with core.db.write() as connection:
        jobs.set_leg(connection, leg, LegState.RUNNING, core.clock.now_ms() + 3_600_000)
    core.close()
    again = Core.open(ServerSettings.load(fed.config))
    try:
        again.clock._wall_ms += again.settings.lease_ms + again.settings.max_skew_ms + 60_000
        loop._count_out(again)
        assert states(again, job) == {"fr-1": LegState.LOST}
    finally:
        again.close()


def test_a_server_that_starts_while_another_program_holds_its_state_says_so(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, fed = parts
    core.close()
    monkeypatch.setattr(database, "PATIENCE_S", 0.05)
    with closing(sqlite3.connect(str(core.db.engine.url.database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnreachableError, match="locked"):
            Core.open(ServerSettings.load(fed.config))
    Core.open(ServerSettings.load(fed.config)).close()


@contextmanager
def counted(core: Core) -> Iterator[list[str]]:
    """What the server asks of its database meanwhile."""
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(statement)

    event.listen(core.db.engine, "before_cursor_execute", note)
    yield asked
    event.remove(core.db.engine, "before_cursor_execute", note)


def test_neither_a_submission_nor_a_snapshot_asks_more_of_the_database_the_more_jobs_like_it_wait(parts: Parts) -> None:
    core, fed = parts
    laws = fed.new_dataset("fr-1", "laws-fr")
    with core.db.write() as connection:
        data.insert_dataset(connection, laws, now_ms=1, signer="fr/amelie", signature="x")
    found: list[tuple[int, int]] = []
    for _ in range(5):
        spec = fed.spec([laws], resources=Resources(gpus=1, walltime_s=600))
        with counted(core) as submitting:
            submit.submit(core, ME, SignedSpec(spec=spec, signature=fed.people["fr/amelie"].sign(canonical(spec))), "")
        with counted(core) as taking, core.db.read() as connection:
            snapshots.take(core, connection)
        found.append((len(submitting), len(taking)))
    assert found[-1] == found[0]
