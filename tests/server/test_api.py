"""Who may call what, and what a bad request is told."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import httpx
import pytest

from consortium import PROTOCOL_VERSION
from consortium.domain.data import ArtifactClass
from consortium.domain.job import JobKind, Resources
from consortium.domain.partner import Role
from consortium.errors import UsageError
from consortium.keys.canonical import canonical
from consortium.server.inputs import check_workers
from tests.builders import shard, site

pytestmark = pytest.mark.integration


def problem(answer: httpx.Response, status: int, slug: str) -> Any:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["type"] == f"urn:consortium:{slug}"
    assert document["status"] == status
    assert document["detail"]
    assert "Traceback" not in answer.text
    return document


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_health_needs_no_token_and_everything_else_does(fed: Any) -> None:
    health = httpx.get(fed.url + "/v1/health")
    assert health.json()["status"] == "ok"
    assert health.headers["Consortium-Protocol"] == str(PROTOCOL_VERSION)
    paths = httpx.get(fed.url + "/v1/openapi.json").json()["paths"]
    assert "/v1/jobs/{job}/explain" in paths
    for path, methods in paths.items():
        for method in methods:
            if path != "/v1/health":
                answer = httpx.request(method, fed.url + path.replace("{", "").replace("}", ""))
                assert answer.status_code in (401, 422), f"{method} {path}: {answer.status_code}"


def test_an_expired_token_is_told_when_it_expired(fed: Any) -> None:
    token = fed.token("fr/amelie", (Role.ENGINEER,), expires_ms=1_700_000_000_000)
    document = problem(httpx.get(fed.url + "/v1/jobs", headers=bearer(token)), 401, "unauthenticated")
    assert "2023-11-14" in document["detail"]
    assert document["fix"]


def test_a_forged_or_malformed_token_is_refused(fed: Any) -> None:
    token = fed.token("fr/amelie", (Role.ENGINEER,))
    forged = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
    problem(httpx.get(fed.url + "/v1/jobs", headers=bearer(forged)), 401, "unauthenticated")
    problem(httpx.get(fed.url + "/v1/jobs", headers=bearer("nonsense")), 401, "unauthenticated")


def test_a_site_is_no_person_and_a_person_no_site(fed: Any) -> None:
    problem(fed.call("fr-1", "GET", "/v1/jobs"), 403, "forbidden")
    problem(fed.call("fr/amelie", "POST", "/v1/sites/fr-1/poll", {}), 403, "forbidden")
    problem(fed.call("de-1", "POST", "/v1/sites/fr-1/poll", {}), 403, "forbidden")


def test_unknown_things_are_named_with_what_there_is(fed: Any) -> None:
    problem(fed.call("fr/amelie", "GET", "/v1/jobs/job-nope"), 404, "not-found")
    problem(fed.call("fr/amelie", "GET", "/v1/nowhere"), 404, "not-found")
    problem(fed.call("fr/amelie", "GET", "/v1/datasets/laws-xx"), 404, "not-found")
    document = problem(fed.call("fr/bruno", "POST", "/v1/sites/fr-9/drain"), 404, "not-found")
    assert "fr-1" in document["fix"]
    problem(fed.call("fr/claire", "GET", "/v1/reports/xx?period=2026-11"), 404, "not-found")
    problem(fed.call("fr/claire", "GET", "/v1/reports/fr?period=november"), 422, "bad-request")
    problem(fed.call("fr/claire", "GET", "/v1/reports/fr"), 422, "bad-request")
    ahead = problem(fed.call("fr/claire", "GET", "/v1/reports/fr?period=2999-01"), 422, "bad-request")
    assert ahead["detail"] == "2999-01 has not begun"
    problem(fed.call("fr/amelie", "GET", "/v1/jobs?state=sleeping"), 422, "bad-request")
    problem(fed.call("fr/amelie", "DELETE", "/v1/jobs"), 405, "bad-request")
    problem(fed.call("fr/amelie", "GET", "/v1/log/proof?index=999999"), 422, "bad-request")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"account": "fr/nope"}, "fr/nope"),
        ({"inputs": ("ds-nope",)}, "ds-nope"),
        ({"sites": ("fr-7",)}, "fr-7"),
        ({"min_sites": 3}, "min_sites"),
        ({"resources": Resources(gpus=1, walltime_s=5, flavors=("tpu",))}, "tpu"),
        ({"params": {"nonsense": 1}}, "nonsense"),
        ({"nonce": ""}, "nonce"),
        ({"inputs": ()}, "inputs"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_by_name(fed: Any, change: dict[str, Any], words: str) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    answer = fed.submit(replace(fed.spec([laws]), **change))
    assert answer.status_code in (404, 409, 422), answer.text
    assert words in answer.text


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("pretrain", "raw", "is raw, and a job of kind pretrain reads tokens"),
        ("evaluate", "clean", "is clean, and a job of kind evaluate reads tokens"),
        ("evaluate", "tokens", "is not held out"),
        ("tokenize", "raw", "is raw, and a job of kind tokenize reads clean"),
        ("clean", "tokens", "is tokens, and a job of kind clean reads raw or clean"),
    ],
)
def test_inputs_that_no_leg_could_read_are_refused_at_once(fed: Any, kind: str, given: str, words: str) -> None:
    made = fed.dataset("fr-1", f"{given}-{secrets.token_hex(3)}", ArtifactClass(given))
    for more in ({}, {"dry_run": True}):
        answer = fed.submit(fed.spec([made], kind=JobKind(kind), params=fed.params(kind)), **more)
        assert words in problem(answer, 422, "bad-request")["detail"]


@pytest.mark.parametrize(
    ("kind", "example"),
    [("clean", "laws-fr"), ("tokenize", "laws-fr-clean"), ("pretrain", "laws-fr-tokens"),
     ("evaluate", "laws-fr-tokens-heldout")],
)  # fmt: skip
def test_a_job_without_inputs_is_told_what_its_kind_reads(fed: Any, kind: str, example: str) -> None:
    answer = fed.submit(fed.spec([], kind=JobKind(kind), params=fed.params(kind)))
    assert f"such as inputs=[{example}];" in problem(answer, 422, "bad-request")["fix"]


def test_a_site_without_an_input_of_its_own_is_refused_before_it_holds_gpus(fed: Any) -> None:
    made = fed.dataset("fr-1", f"laws-{secrets.token_hex(3)}")
    document = problem(fed.submit(fed.spec([made], sites=("de-1", "fr-1"))), 422, "bad-request")
    assert document["detail"].startswith("no input lives at de-1")
    assert "leave de-1 out" in document["fix"]
    assert fed.submit(fed.spec([made], sites=("fr-1",))).status_code == 201


def test_tokens_of_two_tokenizers_are_refused_before_sites_hold_gpus(fed: Any) -> None:
    name = secrets.token_hex(3)

    def tokens(site: str, tokenizer: str) -> Any:
        made_by = {"tokenizer_digest": f"sha256:{tokenizer}", "vocab_size": "512"}
        return fed.dataset(site, f"{name}-{site}", ArtifactClass.TOKENS, attributes=made_by)

    one, other, third = tokens("fr-1", "a"), tokens("de-1", "b"), tokens("uy-1", "a")
    spec = fed.spec([one, other], kind=JobKind.PRETRAIN, params=fed.params("pretrain"))
    for more in ({}, {"dry_run": True}):
        document = problem(fed.submit(spec, **more), 422, "bad-request")
        assert document["detail"] == f"{name}-fr-1 and {name}-de-1 were made with different tokenizers"
    assert fed.submit(replace(spec, inputs=(one.id, third.id), nonce="other")).status_code == 201


@pytest.mark.parametrize(
    ("mixture", "tokens", "words", "where"),
    [
        (["fr:1"], 0, "the mixture says nothing of", "data.mixture at de-1"),
        (["fr:1", "de:0"], 0, "the mixture leaves out every dataset", "data.mixture"),
        (["fr:1", "de:1"], 128, "there is not one whole sequence", "de-1/de"),
        ([], 128, "there is not one whole sequence", "de-1"),
        ([], 129, "", ""),
    ],
)
def test_tokens_that_no_leg_could_train_on_are_refused_before_sites_hold_gpus(
    fed: Any, mixture: list[str], tokens: int, words: str, where: str
) -> None:
    def made(site: str, language: str) -> Any:
        name, shards = f"tokens-{secrets.token_hex(3)}", (shard(1, tokens=tokens),)
        return fed.dataset(site, name, ArtifactClass.TOKENS, languages=(language,), shards=shards)

    params = fed.params("pretrain")
    assert params["model"]["context"] == 128
    params["data"]["mixture"] = mixture
    spec = fed.spec([made("fr-1", "fr"), made("de-1", "de")], kind=JobKind.PRETRAIN, params=params)
    if not words:
        assert fed.submit(spec).status_code == 201
        return
    for more in ({}, {"dry_run": True}):
        document = problem(fed.submit(spec, **more), 422, "bad-request")
        assert document["detail"].startswith(words)
        assert document["where"] == where


def test_a_training_worker_of_several_real_gpus_is_refused_before_it_holds_them(fed: Any) -> None:
    tokens = fed.dataset("fr-1", f"tokens-{secrets.token_hex(3)}", ArtifactClass.TOKENS)
    two = Resources(gpus=2, gpus_per_worker=2, walltime_s=600)
    spec = fed.spec([tokens], kind=JobKind.PRETRAIN, params=fed.params("pretrain"), resources=two)
    assert fed.submit(spec).status_code == 201, "its GPUs are simulated"
    real = replace(site("fr-1"), gpu_resource="GPU")
    with pytest.raises(UsageError, match="drives one GPU, not 2, as it was to at fr-1"):
        check_workers(spec, (real,))
    check_workers(replace(spec, resources=replace(two, gpus_per_worker=1)), (real,))
    check_workers(replace(spec, kind=JobKind.TOKENIZE), (real,))


def test_raw_nonsense_is_a_bad_request(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    good = fed.to_json(fed.spec([laws]))
    cases: list[Any] = [
        {"spec": {**good, "kind": "mine-bitcoin"}, "signature": "x"},
        {"spec": {**good, "resources": {"gpus": -5, "walltime_s": 1}}, "signature": "x"},
        {"spec": {**good, "surprise": 1}, "signature": "x"},
        {"spec": good, "signature": "x", "extra": 1},
        {"signature": "x"},
        [],
        "text",
    ]
    for body in cases:
        problem(fed.call("fr/amelie", "POST", "/v1/jobs", body), 422, "bad-request")
    broken = httpx.post(
        fed.url + "/v1/jobs", content=b"{not json", headers=bearer(fed.token("fr/amelie", (Role.ENGINEER,)))
    )
    problem(broken, 422, "bad-request")
    problem(fed.call("fr-1", "POST", "/v1/sites/fr-1/poll", {"site": "fr-1"}), 422, "bad-request")


def test_a_spec_changed_after_signing_or_signed_by_another_does_not_verify(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    spec = fed.spec([laws])
    signature = fed.people["fr/amelie"].sign(canonical(spec))
    changed = fed.to_json(replace(spec, purpose="something-else"))
    problem(
        fed.call("fr/amelie", "POST", "/v1/jobs", {"spec": changed, "signature": signature}), 409, "verification-failed"
    )
    stranger = fed.people["de/anna"].sign(canonical(spec))
    problem(
        fed.call("fr/amelie", "POST", "/v1/jobs", {"spec": fed.to_json(spec), "signature": stranger}),
        409,
        "verification-failed",
    )
    body = {"spec": fed.to_json(spec), "signature": signature}
    problem(fed.call("de/anna", "POST", "/v1/jobs", body), 403, "forbidden")
    problem(fed.call("fr/claire", "POST", "/v1/jobs", body), 403, "forbidden")
    abroad = fed.submit(fed.spec([laws], account="de"))
    problem(abroad, 409, "verification-failed")


def test_an_unknown_protocol_is_refused(fed: Any) -> None:
    answer = httpx.get(fed.url + "/v1/health", headers={"Consortium-Protocol": "9"})
    document = problem(answer, 422, "bad-request")
    assert "protocol" in document["detail"]
    behind = str(PROTOCOL_VERSION - 1)
    assert httpx.get(fed.url + "/v1/health", headers={"Consortium-Protocol": behind}).status_code == 200


def test_a_dataset_is_registered_by_its_own_people_under_the_next_version(fed: Any) -> None:
    first = fed.dataset("de-1", "laws-de")
    again = replace(first, id=fed.new_id("ds"))
    body = {"dataset": fed.to_json(again), "signature": fed.people["de/anna"].sign(canonical(again))}
    problem(fed.call("de/anna", "POST", "/v1/datasets", body), 409, "conflict")
    problem(fed.call("fr/amelie", "POST", "/v1/datasets", body), 403, "forbidden")
    bad = {**body, "dataset": {**body["dataset"], "territory": "fr"}}
    problem(fed.call("de/anna", "POST", "/v1/datasets", bad), 422, "bad-request")
    assert fed.dataset("de-1", "laws-de").version == first.version + 1


def test_a_dataset_name_stays_with_its_partner(fed: Any) -> None:
    fed.dataset("de-1", "laws-de")
    taken = fed.new_dataset("fr-1", "laws-de")
    disguised = fed.new_dataset("fr-1", fed.new_id("ds"))
    for dataset, status, slug in ((taken, 409, "conflict"), (disguised, 422, "bad-request")):
        body = {"dataset": fed.to_json(dataset), "signature": fed.people["fr/amelie"].sign(canonical(dataset))}
        problem(fed.call("fr/amelie", "POST", "/v1/datasets", body), status, slug)
    assert fed.get("/v1/datasets/laws-de")["site"] == "de-1"


def test_a_token_gives_no_role_that_the_roster_does_not(fed: Any) -> None:
    drain = fed.url + "/v1/sites/fr-1/drain"
    for subject, role in (("fr/amelie", Role.ADMIN), ("fr/nobody", Role.ADMIN)):
        answer = httpx.post(drain, headers=bearer(fed.token(subject, (role,))))
        problem(answer, 403, "forbidden")
    whoami = httpx.get(fed.url + "/v1/whoami", headers=bearer(fed.token("fr/bruno", (Role.ADMIN, Role.AUDITOR))))
    assert whoami.json()["roles"] == ["admin"]


def test_a_body_without_a_stated_length_is_bounded_too(fed: Any) -> None:
    pieces = (b"x" * 1_000_000 for _ in range(40))
    answer = httpx.post(fed.url + "/v1/jobs", content=pieces, headers=bearer(fed.token("fr/amelie", (Role.ENGINEER,))))
    document = problem(answer, 413, "bad-request")
    assert "32 MiB" in document["detail"]


def test_a_report_is_for_its_partners_auditor(fed: Any) -> None:
    fed.dataset("fr-1", "laws-fr")
    problem(fed.call("fr/amelie", "GET", "/v1/reports/fr?period=2026-11"), 403, "forbidden")
    problem(fed.call("fr/claire", "GET", "/v1/reports/de?period=2026-11"), 403, "forbidden")
    answer = fed.call("fr/claire", "GET", "/v1/reports/fr?period=2026-11")
    assert answer.status_code == 200, answer.text
    assert answer.json()["partner"] == "fr"
