"""The SDK against a real server: every call of the three users."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from consortium.client import Client, sign_spec
from consortium.domain.data import Shard
from consortium.domain.job import JobState
from consortium.domain.partner import Role
from consortium.errors import AuthError, ConflictError, ForbiddenError, NotFoundError
from consortium.keys.canonical import canonical, digest

pytestmark = pytest.mark.integration


@pytest.fixture
def amelie(fed: Any) -> Iterator[Client]:
    with Client(fed.url, fed.token("fr/amelie", (Role.ENGINEER,))) as client:
        yield client


def test_an_engineers_day(fed: Any, amelie: Client) -> None:
    site = fed.site("fr-1")
    assert amelie.whoami()["subject"] == "fr/amelie"
    assert amelie.federation()["partners"] == ["de", "fr", "uy"]
    laws = fed.dataset("fr-1", "laws-fr")
    assert amelie.dataset("laws-fr") == laws
    assert amelie.next_version("laws-fr") == 2
    signed = sign_spec(fed.spec([laws]), fed.people["fr/amelie"])
    assert amelie.dry_run(signed)["funnel"]
    job = amelie.submit(signed, idempotency_key="once")
    assert amelie.submit(signed, idempotency_key="once").id == job.id
    assert [item.id for item in amelie.jobs(account="fr")] == [job.id]
    assert amelie.explain(job.id)["job"] == job.id
    offer = site.run(job.id)
    text = {"leg": offer.leg, "site": "fr-1", "offset": 0, "text": "hello\n"}
    assert site.post(f"/v1/jobs/{job.id}/logs", text).status_code == 200
    logs = amelie.logs(job.id)
    assert [chunk["text"] for chunk in logs["chunks"]] == ["hello\n"]
    assert amelie.logs(job.id, after=logs["next"])["chunks"] == []
    assert amelie.rounds(job.id) == ()
    assert amelie.shares()
    assert amelie.quota()["accounts"]
    site.succeed(offer)
    assert amelie.wait(job.id, timeout_s=60).state is JobState.SUCCEEDED
    with pytest.raises(ConflictError, match="cannot be cancelled"):
        amelie.cancel(job.id)
    with pytest.raises(NotFoundError):
        amelie.job("job-none")
    assert amelie.trace(laws.id)["collections"] == [laws.id]
    assert {site["id"] for site in amelie.sites()} == {"de-1", "fr-1", "uy-1"}


def test_a_withheld_log_names_the_site(fed: Any) -> None:
    site = fed.site("uy-1")
    laws = fed.dataset("uy-1", "laws-es")
    job = fed.submit(fed.spec([laws], account="uy", submitter="uy/alma")).json()
    offer = site.run(job["id"])
    text = {"leg": offer.leg, "site": "uy-1", "offset": 0, "text": "secret\n"}
    refused = site.post(f"/v1/jobs/{job['id']}/logs", text)
    assert refused.status_code == 403
    assert refused.json()["type"] == "urn:consortium:denied-by-policy"
    with Client(fed.url, fed.token("uy/alma", (Role.ENGINEER,))) as alma:
        assert alma.logs(job["id"])["withheld"] == ["uy-1"]
    site.succeed(offer)


def test_an_auditors_and_an_admins_day(fed: Any, amelie: Client) -> None:
    fed.site("fr-1")
    with Client(fed.url, fed.token("fr/claire", (Role.AUDITOR,))) as claire:
        report = claire.report("fr", "2026-11")
        assert report["partner"] == "fr"
        assert claire.usage()["partners"]["fr"]
        assert claire.crossings() == []
        checkpoint = claire.checkpoint()
        assert checkpoint.startswith("consortium.test/log\n")
        entries = claire.entries(0, 3)
        assert [entry["index"] for entry in entries] == [0, 1, 2]
        assert claire.inclusion(1)["inclusion"]
        assert claire.consistency(1)["root"]
    with pytest.raises(ForbiddenError):
        amelie.report("fr", "2026-11")
    with Client(fed.url, fed.token("fr/bruno", (Role.ADMIN,))) as bruno:
        assert bruno.drain("fr-1")["state"] in ("draining", "drained")
        assert bruno.resume("fr-1")["state"] == "active"
    with pytest.raises(ForbiddenError):
        amelie.drain("fr-1")
    with Client(fed.url, "nonsense") as stranger, pytest.raises(AuthError):
        stranger.jobs()


def test_a_dataset_is_registered_with_the_persons_signature(fed: Any, amelie: Client) -> None:
    shard = Shard(key="raw/x", digest=digest(b"x"), size_bytes=1, documents=1)
    dataset = fed.new_dataset("fr-1", "mine", shards=(shard,))
    signature = fed.people["fr/amelie"].sign(canonical(dataset))
    assert amelie.register_dataset(dataset, signature=signature, person="fr/amelie") == dataset
    assert amelie.register_dataset(dataset, signature=signature) == dataset
    assert amelie.datasets("mine") == (dataset,)
    with pytest.raises(ForbiddenError):
        amelie.register_dataset(dataset, signature=signature, person="fr/bruno")
