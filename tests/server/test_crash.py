"""kill -9, restarts, lost sites, old backups: nothing runs twice, nothing is billed twice, no record is lost."""

from __future__ import annotations

import shutil
import signal
import time
from typing import Any

import pytest

from consortium.domain.data import ArtifactClass
from consortium.domain.job import JobKind, LegState, Resources
from consortium.domain.records import UsageRow
from consortium.keys.signing import verify_value
from consortium.ledger.origins import check_chain
from consortium.ledger.proofs import parse_checkpoint, verify_consistency

pytestmark = pytest.mark.integration


@pytest.fixture
def fed(quiet_fed: Any) -> Any:
    """A federation of the test's own, its server up."""
    quiet_fed.start()
    return quiet_fed


def usage(site: Any, offer: Any, start_ms: int, end_ms: int) -> None:
    row = UsageRow(leg=offer.leg, epoch=str(offer.epoch), job=offer.job, account="fr", site=site.name,
                   flavor="h100-sxm", gpus=2, start_ms=start_ms, end_ms=end_ms)  # fmt: skip
    site.usage(row)


def all_legs(fed: Any, job: str) -> list[Any]:
    return [leg for attempt in fed.job(job)["attempts"] for leg in attempt["legs"]]


def test_killed_between_accept_and_start_the_server_goes_on_with_the_same_leg(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = fed.submit(fed.spec([laws])).json()
    offer = site.offer(job["id"])
    before = fed.get("/v1/health")["incarnation"]
    fed.kill(signal.SIGKILL)
    fed.start()
    assert fed.get("/v1/health")["incarnation"] > before
    site.say(offer.leg, offer.epoch, LegState.HELD)
    fed.kill(signal.SIGKILL)
    fed.start()
    site.wait_start(offer)
    assert site.starts == [(offer.leg, offer.epoch)], "the old epoch stays valid"
    site.say(offer.leg, offer.epoch, LegState.RUNNING)
    fed.kill(signal.SIGKILL)
    fed.start()
    now_ms = time.time_ns() // 1_000_000
    usage(site, offer, now_ms - 10_000, now_ms)
    assert site.push().json() == {"acked_seq": 0}
    assert site.push().json() == {"acked_seq": 0}
    site.succeed(offer)
    fed.kill(signal.SIGKILL)
    fed.start()
    assert fed.job(job["id"])["state"] == "succeeded"
    assert len(all_legs(fed, job["id"])) == 1
    assert fed.get("/v1/usage")["partners"]["fr"] == {"delivered_gpu_ms": 20_000, "consumed_gpu_ms": 20_000}
    records = fed.until(lambda: (r := fed.typed("server")) and r)
    check_chain(records, fed.trust.origin_key)
    kinds = [record.type.value for record in records]
    for kind in ("job", "lease", "manifest"):
        assert kinds.count(kind) == 1, kinds
    assert len(fed.typed("fr-1")) == 1


def test_a_lost_site_gets_its_leg_again_only_after_the_lease(quiet_fed: Any) -> None:
    fed = quiet_fed
    fed.settings |= {"lease_ms": 1000, "max_skew_ms": 300, "site_lost_ms": 1500}
    fed.start()
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    job = fed.submit(fed.spec([laws])).json()
    offer = site.run(job["id"])
    fed.until(lambda: fed.job(job["id"])["state"] == "pending")
    fed.until(lambda: next(s for s in fed.get("/v1/sites") if s["id"] == "fr-1")["state"] == "lost")
    lost = all_legs(fed, job["id"])[0]
    assert lost["state"] == "lost"
    answer = site.poll()
    assert [(stop.leg, stop.epoch) for stop in answer.stops] == [(offer.leg, offer.epoch)]
    assert not answer.renewed
    site.say(offer.leg, offer.epoch, LegState.STOPPED)
    again = site.run(job["id"])
    assert again.attempt_number == 2
    site.succeed(again)
    assert fed.job(job["id"])["state"] == "succeeded"


def test_a_federated_job_goes_on_without_a_lost_site_and_takes_it_back(quiet_fed: Any) -> None:
    fed = quiet_fed
    fed.settings |= {"lease_ms": 2500, "max_skew_ms": 300, "site_lost_ms": 3000}
    fed.start()
    sites = [fed.site(name) for name in ("de-1", "fr-1", "uy-1")]
    inputs = [fed.dataset(site.name, f"clean-{site.name}", ArtifactClass.CLEAN) for site in sites]
    spec = fed.spec(inputs, kind=JobKind.TOKENIZE, params=fed.params("tokenize"), min_sites=2,
                    resources=Resources(gpus=1, walltime_s=600))  # fmt: skip
    job = fed.submit(spec).json()
    offers = [site.hold(job["id"]) for site in sites]
    for site, offer in zip(sites, offers, strict=True):
        site.wait_start(offer)
        site.say(offer.leg, offer.epoch, LegState.RUNNING)
    de, fr, uy = sites

    def lost() -> bool:
        de.poll()
        fr.poll()
        return any(leg["state"] == "lost" for leg in all_legs(fed, job["id"]))

    fed.until(lost)
    assert fed.job(job["id"])["state"] == "running"
    uy.legs.clear()
    again = uy.run(job["id"])
    assert (again.leg, again.attempt) == (offers[2].leg, offers[2].attempt)
    assert again.epoch > offers[2].epoch
    for site, offer in ((de, offers[0]), (fr, offers[1]), (uy, again)):
        site.succeed(offer)
    assert fed.job(job["id"])["state"] == "succeeded"


def test_a_restored_backup_gives_a_higher_incarnation_and_a_shorter_log_shows(fed: Any) -> None:
    site = fed.site("fr-1")
    fed.kill(signal.SIGTERM)
    shutil.copytree(fed.home / "server", fed.home / "backup")
    fed.start()
    laws = fed.dataset("fr-1", "laws-fr")
    job = fed.submit(fed.spec([laws])).json()
    offer = site.run(job["id"])
    newest = fed.get("/v1/health")["incarnation"]
    pinned = site.pinned
    fed.kill(signal.SIGKILL)
    shutil.rmtree(fed.home / "server")
    shutil.copytree(fed.home / "backup", fed.home / "server")
    fed.start()
    assert fed.get("/v1/health")["incarnation"] > newest
    answer = site.poll()
    restored = parse_checkpoint(answer.checkpoint, fed.trust.log_name, fed.trust.log_key)
    assert restored.size < pinned.size
    assert answer.consistency == ()
    assert [(stop.leg, stop.epoch) for stop in answer.stops] == [(offer.leg, offer.epoch)]


def test_the_log_only_grows_and_polls_prove_it(fed: Any) -> None:
    site = fed.site("fr-1")
    old = site.pinned
    fed.dataset("fr-1", "laws-fr")
    fed.until(lambda: fed.get("/v1/health")["log_size"] > old.size)
    site.pinned = old
    answer = site.poll()
    new = parse_checkpoint(answer.checkpoint, fed.trust.log_name, fed.trust.log_key)
    verify_consistency(old.size, old.root, new.size, new.root, answer.consistency)


def test_the_ledger_restored_from_a_backup_gets_its_records_again(fed: Any) -> None:
    fed.site("fr-1")
    fed.kill(signal.SIGTERM)
    shutil.copytree(fed.home / "server" / "ledger", fed.home / "backup")
    fed.start()
    fed.dataset("fr-1", "laws-fr")
    size = fed.until(lambda: (n := fed.get("/v1/health")["log_size"]) > 8 and n)
    fed.kill(signal.SIGTERM)
    shutil.rmtree(fed.home / "server" / "ledger")
    shutil.copytree(fed.home / "backup", fed.home / "server" / "ledger")
    fed.start()
    fed.until(lambda: fed.get("/v1/health")["log_size"] == size)
    check_chain(fed.typed("server"), fed.trust.origin_key)
    for record in fed.typed("server"):
        verify_value(fed.trust.server_key, record)


def test_a_state_older_than_its_ledger_is_refused_at_start(quiet_fed: Any) -> None:
    fed = quiet_fed
    fed.start()
    fed.kill(signal.SIGTERM)
    state = fed.home / "server" / "state.db"
    shutil.copy(state, fed.home / "old.db")
    fed.start()
    size = fed.get("/v1/health")["log_size"]
    fed.dataset("fr-1", "laws-fr")
    fed.until(lambda: fed.get("/v1/health")["log_size"] > size)
    fed.kill(signal.SIGTERM)
    shutil.copy(fed.home / "old.db", state)
    refused = fed.start(expect=2)
    assert "the state is older than the ledger" in refused.stderr.decode()
    assert "Traceback" not in refused.stderr.decode()
