"""What datasets may say of themselves, and what of it the server takes from people and from sites."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass, Dataset, Description, Shard
from consortium.domain.job import JobKind, Resources
from consortium.domain.records import RecordType
from consortium.errors import UsageError
from consortium.keys.canonical import canonical
from consortium.server.descriptions import check_description, check_output
from tests import builders
from tests.server.test_jobs import submitted

pytestmark = pytest.mark.integration
RAW = builders.dataset("laws-fr")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"parents": (RAW.id,)}, "no parents"),
        ({"manifest_digest": "sha256:" + "0" * 64}, "no manifest"),
        ({"held_out": True}, "not held out"),
        ({"categories": ("Personal",)}, "no category"),
        ({"categories": ("personal ",)}, "no category"),
        ({"licence": "CC0-1.0\n  laws-uy@3 at uy-1"}, "one line"),
        ({"licence": "x" * 501}, "one line"),
        ({"attributes": {"note": "x" * 501}}, "one line"),
        ({"attributes": {str(at): "x" * 400 for at in range(300)}}, "describes itself"),
        ({"shards": (Shard(key="k", digest="sha256:0", size_bytes=-5, documents=1),)}, "counts less"),
        ({"shards": (Shard(key="k", digest="sha256:0", size_bytes=1, documents=10**300),)}, "counts less"),
        ({"shards": (Shard(key="k" * 600, digest="sha256:0", size_bytes=1, documents=1),)}, "one line"),
    ],
)
def test_what_is_no_description_of_a_collection_is_not_registered(said: dict[str, Any], why: str) -> None:
    check_description(RAW)
    with pytest.raises(UsageError, match=why):
        check_description(replace(RAW, **said))


def test_the_route_says_so(fed: Any) -> None:
    told = fed.new_dataset("fr-1", "laws-odd", categories=("Personal",))
    body = {"dataset": to_json(told), "signature": fed.people["fr/amelie"].sign(canonical(told))}
    answer = fed.call("fr/amelie", "POST", "/v1/datasets", body)
    assert (answer.status_code, "no category" in answer.json()["detail"]) == (422, True)


def test_an_output_has_what_binds_its_parents() -> None:
    parents = [
        replace(RAW, categories=("personal",), about=Description(consent_until="2030-01-01")),
        replace(RAW, id=builders.new_id("ds", 7), about=Description(consent_until="2031-01-01")),
    ]
    good = replace(
        RAW, id=builders.new_id("ds", 8), parents=tuple(item.id for item in parents), categories=("personal",),
        about=Description(consent_until="2030-01-01"),
    )  # fmt: skip
    check_output(good, parents)
    for changes, why in (
        ({"parents": ()}, "did not read"),
        ({"parents": (builders.new_id("ds", 9),)}, "did not read"),
        ({"categories": ()}, "leaves out categories"),
        ({"about": Description()}, "consent"),
        ({"about": Description(consent_until="2031-01-01")}, "consent"),
    ):
        with pytest.raises(ValueError, match=why):
            check_output(replace(good, **changes), parents)


def test_a_leg_names_neither_anothers_inputs_nor_anothers_outputs_as_its_own(fed: Any) -> None:
    inputs = [fed.dataset("fr-1", "laws-own-fr"), fed.dataset("de-1", "laws-own-de")]
    job = submitted(fed, inputs, resources=Resources(gpus=1, walltime_s=600), min_sites=2, kind=JobKind.CLEAN)
    sites = [fed.site("fr-1"), fed.site("de-1")]
    offers = [site.hold(job["id"]) for site in sites]
    for site, offer in zip(sites, offers, strict=True):
        site.wait_start(offer)

    def made(parent: Dataset, **changes: Any) -> Dataset:
        clean = {"id": fed.new_id("ds"), "name": parent.name + "-clean", "artifact_class": ArtifactClass.CLEAN}
        return replace(parent, **({**clean, "parents": (parent.id,)} | changes))

    sites[0].succeed(offers[0], outputs=fed.to_json([made(inputs[0])]))
    sites[1].succeed(offers[1], outputs=fed.to_json([made(inputs[1], parents=(inputs[0].id,))]))
    fed.until(lambda: fed.job(job["id"])["state"] == "failed")
    assert "names parents that its leg did not read" in fed.job(job["id"])["reason"]["message"]


def test_who_has_no_part_in_a_job_writes_no_manifest_of_its_legs_and_none_shows(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-alone")
    site, stranger = fed.site("fr-1"), fed.site("uy-1")
    job = submitted(fed, [laws], resources=Resources(gpus=1, walltime_s=600))
    offer = site.hold(job["id"])
    site.wait_start(offer)
    site.succeed(offer)
    stranger.record(RecordType.MANIFEST, {"job": job["id"], "leg": offer.leg})
    assert stranger.push(*stranger.chain[-1:]).status_code == 422
    stranger.chain.pop()
    stranger.record(RecordType.MANIFEST, {"job": job["id"], "leg": "leg-that-nobody-knows"})
    assert stranger.push(*stranger.chain[-1:]).status_code == 200
    written = fed.get(f"/v1/datasets/{job['id']}/trace")["records"][job["id"]]
    assert not [one for one in written if one["record"].startswith("uy-1:")]


@pytest.mark.parametrize("version", ["²", "9" * 5000, ""])
def test_a_version_that_is_no_number_is_not_found(fed: Any, version: str) -> None:
    fed.dataset("fr-1", f"laws-versions-{len(version)}")
    assert fed.call("fr/amelie", "GET", f"/v1/datasets/laws-versions-{len(version)}@{version}").status_code == 404
