"""Lineage both ways, by a real server and scripted sites: shards, datasets, models, and the ledger's records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from consortium.domain.codec import from_json
from consortium.domain.data import ArtifactClass, Dataset, Description, Shard
from consortium.domain.job import JobKind, LegState, Resources
from consortium.keys.canonical import digest
from consortium.ledger.log import Entry
from consortium.ledger.proofs import verify_inclusion
from tests.server.test_jobs import submitted

pytestmark = pytest.mark.integration


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """French and German laws, cleaned and tokenized in one job each, and a model of them all."""

    raw: dict[str, Dataset]
    clean: dict[str, Dataset]
    tokens: dict[str, Dataset]
    model: str


def derived(fed: Any, parent: Dataset, kind: ArtifactClass) -> Dataset:
    name = f"{parent.name}-{kind.value}"
    shard = Shard(key=name, digest=digest(name.encode()), size_bytes=10, documents=10, tokens=900)
    return replace(parent, id=fed.new_id("ds"), name=name, artifact_class=kind, parents=(parent.id,), shards=(shard,))


def run(fed: Any, inputs: list[Dataset], outputs: dict[str, Dataset], **changes: Any) -> str:
    """Run a job at the homes of its inputs; each leaves its output."""
    sites = [fed.site(item.site) for item in inputs]
    changes = {"resources": Resources(gpus=1, walltime_s=600), "min_sites": len(sites)} | changes
    job = submitted(fed, inputs, **changes)
    offers = [site.hold(job["id"]) for site in sites]
    for site, offer in zip(sites, offers, strict=True):
        site.wait_start(offer)
        made = [outputs[site.name]] if site.name in outputs else []
        metrics = {"outer_digest": "sha256:outer"} if changes["kind"] is JobKind.PRETRAIN else {}
        site.succeed(offer, outputs=fed.to_json(made), metrics=metrics)
    assert fed.job(job["id"])["state"] == "succeeded"
    return str(job["id"])


@pytest.fixture(scope="module")
def made(fed: Any) -> Made:
    raw = {site: fed.dataset(site, f"laws-{site[:2]}") for site in ("fr-1", "de-1")}
    clean = {site: derived(fed, item, ArtifactClass.CLEAN) for site, item in raw.items()}
    tokens = {site: derived(fed, item, ArtifactClass.TOKENS) for site, item in clean.items()}
    for kind, sources, results in ((JobKind.CLEAN, raw, clean), (JobKind.TOKENIZE, clean, tokens)):
        run(fed, list(sources.values()), results, kind=kind, params=fed.params(kind.value))
    model = run(fed, list(tokens.values()), {}, kind=JobKind.PRETRAIN, params=fed.params("pretrain"), name="babel")
    return Made(raw=raw, clean=clean, tokens=tokens, model=model)


def test_a_shard_is_found_by_how_it_begins_and_leads_back_and_on(fed: Any, made: Made) -> None:
    fr = made.tokens["fr-1"]
    traced = fed.get(f"/v1/datasets/{fr.shards[0].digest[:20]}/trace")
    assert traced["root"] == traced["shard"]["digest"] == fr.shards[0].digest
    assert traced["shard"]["in"] == [
        {"dataset": fr.id, "number": 0, "of": 1, "documents": 10, "tokens": 900, "size_bytes": 10}
    ]
    assert traced["collections"] == [made.raw["fr-1"].id], "not Germany's, which one job tokenized as well"
    assert {item["id"] for item in traced["datasets"]} == {of["fr-1"].id for of in (made.raw, made.clean, made.tokens)}
    assert traced["models"] == [made.model]
    [model] = [item for item in traced["jobs"] if item["id"] == made.model]
    assert (model["name"], model["outer_digest"]) == ("babel", "sha256:outer")


def test_a_collection_leads_on_to_its_models_and_a_model_back_to_all_collections(fed: Any, made: Made) -> None:
    forward = fed.get(f"/v1/datasets/{made.raw['de-1'].id}/trace")
    assert forward["models"] == [made.model]
    steps = [made.raw["de-1"].id, made.clean["de-1"].id, made.tokens["de-1"].id, made.model]
    assert all(list(step) in forward["edges"] for step in pairwise(steps))
    assert not {made.clean["fr-1"].id, made.tokens["fr-1"].id} & {item["id"] for item in forward["datasets"]}
    back = fed.get(f"/v1/datasets/{made.model}/trace")
    assert back["collections"] == sorted(item.id for item in made.raw.values())
    assert back["models"] == [made.model]
    assert back["licences"] == ["CC0-1.0"]


def test_every_record_named_is_a_leaf_whose_proof_holds(fed: Any, made: Made) -> None:
    traced = fed.get(f"/v1/datasets/{made.model}/trace")
    assert {record["type"] for record in traced["records"][made.raw["fr-1"].id]} == {"dataset"}
    assert {"job", "manifest"} <= {record["type"] for record in traced["records"][made.model]}

    def all_in_ledger() -> bool:
        found = fed.get(f"/v1/datasets/{made.model}/trace")["records"]
        return all(record["leaf"] is not None for records in found.values() for record in records)

    fed.until(all_in_ledger)
    entries = fed.entries()
    for records in fed.get(f"/v1/datasets/{made.model}/trace")["records"].values():
        for record in records:
            entry = entries[record["leaf"]]
            origin, _, number = record["record"].rpartition(":")
            assert (entry["payload"]["origin"], entry["payload"]["seq"]) == (origin, int(number))
            assert entry["payload"]["type"] == record["type"]
            proof = fed.get(f"/v1/log/proof?index={record['leaf']}", who="fr/claire")
            leaf = from_json(Entry, entry).data
            verify_inclusion(bytes.fromhex(leaf), record["leaf"], proof["size"], proof["inclusion"], proof["root"])


def test_legal_bases_of_the_collections_are_shown(fed: Any) -> None:
    about = Description(legal_basis=("Code du patrimoine L213-1",), consent_until="2099-12-31")
    archive = fed.dataset("fr-1", "archive-fr", about=about)
    traced = fed.get(f"/v1/datasets/{archive.id}/trace")
    assert traced["legal_bases"] == ["Code du patrimoine L213-1"]
    assert traced["datasets"][0]["about"]["consent_until"] == "2099-12-31"
    assert traced["models"] == []


@pytest.mark.parametrize(
    ("root", "status", "words"),
    [("sha256:0123456789a", 422, "first 12 or more"), ("sha256:XYZ", 422, "not a shard"),
     ("sha256:012345678901", 404, "no dataset has a shard"), ("laws-none", 404, "no dataset")],
)  # fmt: skip
def test_what_is_no_root_is_said(fed: Any, root: str, status: int, words: str) -> None:
    answer = fed.call("fr/claire", "GET", f"/v1/datasets/{root}/trace")
    assert answer.status_code == status
    assert words in answer.text


def test_digits_that_begin_two_shards_are_not_guessed(fed: Any) -> None:
    digests = tuple("sha256:" + "ab" * 31 + last for last in ("00", "01"))
    shards = tuple(Shard(key=f"raw/{d}", digest=d, size_bytes=1, documents=1) for d in digests)
    fed.dataset("fr-1", "twins", shards=shards)
    refused = fed.call("fr/claire", "GET", "/v1/datasets/sha256:abababababab/trace")
    assert refused.status_code == 422
    assert all(words in refused.text for words in ("2 shards begin with", *digests))
    assert fed.get(f"/v1/datasets/{digests[1]}/trace")["shard"]["in"][0]["number"] == 1


def onward(fed: Any, made: Made, inputs: list[Dataset], model: str = "", **changes: Any) -> Any:
    """Submit a training that goes on from a model."""
    wanted = fed.params("pretrain") | {"start": {"job": model or made.model, "round": -1, "weights": "", "digest": ""}}
    given = {"kind": JobKind.PRETRAIN, "params": wanted, "name": "babel-2", "min_sites": len(inputs)}
    return fed.submit(fed.spec(inputs, **(given | changes)))


def test_a_training_that_goes_on_from_a_model_asks_the_partners_behind_it(fed: Any, made: Made) -> None:
    mine = [made.tokens["fr-1"]]
    denied = onward(fed, made, mine, purpose="health-research").json()
    assert denied["state"] == "denied", "France alone would allow it; Germany's data are in the model"
    assert {denial["clause"] for denial in denied["denials"]} == {"de/purposes/1"}
    assert "configs/policy/de.yaml" in denied["denials"][0]["file"]
    running = onward(fed, made, mine).json()
    assert running["state"] == "pending", running
    offer = fed.site("fr-1").offer(running["id"])
    assert offer.model_peers == ("de-1", "fr-1"), "its partner's agent asks its own rules about the model, too"
    early = onward(fed, made, mine, model=running["id"])
    assert (early.status_code, "its last yet" in early.text) == (409, True)
    fed.call("fr/amelie", "POST", f"/v1/jobs/{running['id']}/cancel")
    fed.site("fr-1").say(offer.leg, offer.epoch, LegState.STOPPED)
    assert "no outer state to go on from" in onward(fed, made, mine, model=running["id"]).text
    assert onward(fed, made, mine, model=fed.new_id("job")).status_code == 404
    no_part = onward(fed, made, [fed.dataset("uy-1", "tokens-es", ArtifactClass.TOKENS)])
    assert (no_part.status_code, "uy-1, the job's first site" in no_part.text) == (422, True)
    lineage = fed.get(f"/v1/datasets/{running['id']}/trace")
    assert [made.model, running["id"]] in lineage["edges"]
    assert lineage["collections"] == sorted(item.id for item in made.raw.values()), (
        "Germany's laws, by way of the model"
    )
    assert fed.get(f"/v1/datasets/{made.raw['de-1'].id}/trace")["models"] == sorted(
        [made.model, running["id"], denied["id"]]
    )
