"""The gateway against a real consortium server, a real upstream in MLflow's place and real S3 stores."""

from __future__ import annotations

import gzip
import json
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from consortium import PROTOCOL_VERSION
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Artifact, ArtifactClass
from consortium.domain.job import LegState
from consortium.domain.protocol import MAX_REQUEST_BYTES, LegOffer, PollRequest
from consortium.domain.training import Commit, Round, RoundPhase, Ruling, Verdict
from consortium.errors import ConsortiumError, UnreachableError
from consortium.keys.canonical import digest
from consortium.keys.signing import SigningKey, sign_value, verify_value
from consortium.ledger.origins import check_chain
from consortium.site.gateway.app import create_app
from consortium.site.gateway.core import Gateway
from consortium.site.gateway.peers import LANES, PeerStore
from consortium.site.gateway.spent import EVERY_S, Spent
from consortium.site.gateway.traffic import Traffic
from consortium.site.legs import new_leg
from consortium.site.settings import StoreSettings
from consortium.storage import envelope
from consortium.storage.objects import ObjectStore
from consortium.train.rounds import certify
from tests import builders
from tests.disk import no_room
from tests.s3 import S3
from tests.site.http import App, Serving
from tests.site.world import CONFIGS, SITE_TOKEN, Script, World, consortium_server, now_ms, script_for

AGENT = {"Authorization": f"Bearer {SITE_TOKEN}"}


pytestmark = pytest.mark.integration


@dataclass
class Border:
    world: World
    script: Script
    gateway: Gateway
    mlflow: App
    server: App
    offer: LegOffer
    http: TestClient
    leg: dict[str, str]
    theirs: ObjectStore
    """The egress store of de-1, as de-1 sees it."""

    def records(self, kind: str) -> list[Any]:
        return [record.body for record in self.gateway.outbox.after(-1) if record.type.value == kind]

    def send(self, data: bytes, **query: Any) -> Any:
        fields = {"class": "statistic", "name": "counts", "recipients": "de-1"}
        return self.http.post("/leg/artifacts", params=fields | query, content=data, headers=self.leg)


@pytest.fixture
def border(world: World, s3: S3) -> Iterator[Border]:
    script, mlflow = script_for(world), App()
    mlflow.route("POST", r"/api/2.0/mlflow/.*")(lambda body, query: {})
    mlflow.route("GET", r"/api/2.0/mlflow/runs/get")(lambda body, query: {"run": {"info": query}})
    secret = world.root / "s3.secret"
    secret.write_text(s3.secret_key)
    stores = {
        name: StoreSettings(
            endpoint=s3.endpoint, bucket=s3.fresh().bucket, access_key=s3.access_key, secret_path=str(secret)
        )
        for name in ("egress", "de-1", "private")
    }
    server = consortium_server(script)
    tracking = Serving(mlflow)
    with server, tracking:
        gateway = Gateway(
            world.settings(
                server_url=server.url,
                mlflow_url=tracking.url,
                egress_store=stores["egress"],
                private_store=stores["private"],
                peer_egress={"de-1": stores["de-1"]},
            )
        )
        offer = world.offer(kind="tokenize", peers=("de-1", "fr-1"))
        with gateway.db.write() as write:
            gateway.table.add(replace(new_leg(offer), state=LegState.RUNNING), 0, write)
        token = gateway.db.leg_token(f"{offer.leg}@{offer.epoch}")
        http = TestClient(create_app(gateway), raise_server_exceptions=False)
        leg, theirs = {"Authorization": f"Bearer {token}"}, s3.store(stores["de-1"].bucket)
        yield Border(world, script, gateway, mlflow, server.app, offer, http, leg, theirs)
        gateway.close()


# -- who may call -----------------------------------------------------------------------------------------------------


def test_a_leg_gets_its_context_and_nobody_else_does(border: Border) -> None:
    answer = border.http.get("/leg/context", headers=border.leg)
    assert answer.json()["job"] == border.offer.job
    assert answer.json()["store"]["secret_key"]
    forged = {"Authorization": f"Bearer {border.offer.leg}@{border.offer.epoch}.{'0' * 64}"}
    for headers in ({}, AGENT, forged, {"Authorization": "Bearer x"}):
        refused = border.http.get("/leg/context", headers=headers)
        assert refused.status_code == 401
        assert refused.json()["type"] == "urn:consortium:unauthenticated"


def test_the_token_of_an_ended_leg_opens_nothing(border: Border) -> None:
    (leg,) = border.gateway.table.active()
    border.gateway.table.change(leg, state="stopping")
    for path in ("/leg/context", "/mlflow/api/2.0/mlflow/runs/get?run_id=run-1"):
        assert border.http.get(path, headers=border.leg).status_code == 401


def test_the_agents_calls_are_a_short_list(border: Border) -> None:
    poll = f"/v1/sites/{border.offer.site}/poll"
    assert border.http.post(poll, json={}, headers=border.leg).status_code == 401
    assert border.http.post(poll, json={"site": "fr-1"}, headers=AGENT).status_code == 422
    for method, path in (
        ("POST", "/v1/sites/de-1/poll"),
        ("POST", "/v1/jobs"),
        ("GET", "/v1/quota"),
        ("POST", "/v1/sites/fr-1/drain"),
        ("DELETE", "/v1/sites/fr-1/poll"),
    ):
        refused = border.http.request(method, path, json={}, headers=AGENT)
        assert refused.status_code == 403, path
    assert border.server.heard == []


def test_the_server_sees_the_sites_token_and_protocol_and_no_leg_token(border: Border) -> None:
    border.http.get("/leg/artifacts", headers=border.leg)
    (heard,) = border.server.heard
    assert heard.headers["Authorization"] == f"Bearer {SITE_TOKEN}"
    assert heard.headers["Consortium-Protocol"] == str(PROTOCOL_VERSION)


def test_an_absent_server_is_said_with_503(border: Border) -> None:
    border.script.away = True
    answer = border.http.get("/leg/artifacts", headers=border.leg)
    assert answer.status_code == 503


# -- artifacts --------------------------------------------------------------------------------------------------------


def test_a_release_is_sealed_stored_recorded_and_announced_once(border: Border) -> None:
    first, second = border.send(b"counts"), border.send(b"counts")
    artifact = from_json(Artifact, first.json())
    assert second.json() == first.json()
    verify_value(border.world.signing["fr-1"].public, artifact)
    sealed = border.gateway.egress.get(artifact.key)
    assert b"counts" not in sealed[200:] or sealed.count(b"counts") == 1  # the header names the artifact, not its bytes
    _, data = envelope.unpack(
        sealed, site="de-1", sealing=border.world.sealing["de-1"], sender_key=border.world.signing["fr-1"].public
    )
    assert data == b"counts"
    assert len(border.script.artifacts) == 1
    (body,) = border.records("crossing")
    (crossing,) = body["crossings"]
    assert (crossing["recipient"], crossing["size_bytes"]) == ("de-1", len(sealed))
    assert (crossing["side"], crossing["digest"]) == ("release", digest(b"counts"))


def test_what_an_earlier_attempt_of_the_job_released_is_announced_again_and_no_second_crossing(border: Border) -> None:
    first = border.send(b"counts")
    with border.gateway.db.write() as write:
        write.execute("UPDATE releases SET attempt = 'att-before'")
    assert border.send(b"counts").json() == first.json()
    assert len(border.records("crossing")) == 1


def test_a_release_the_policy_forbids_is_refused_with_its_clause_and_recorded_once(border: Border) -> None:
    for _ in range(2):
        answer = border.send(b"x", **{"class": "weights"})
        assert answer.status_code == 403
        assert answer.json()["type"] == "urn:consortium:denied-by-policy"
        assert "configs/policy/fr.yaml:" in answer.json()["where"]
    (refusal,) = border.records("refusal")
    assert refusal["reason"] == "weights to de-1"
    assert border.records("crossing") == []
    assert list(border.gateway.egress.list("")) == []


def test_envelopes_go_when_the_server_says_that_the_job_has_ended_and_no_leg_runs_here(border: Border) -> None:
    job, egress, script = border.offer.job, border.gateway.egress, border.script
    now_s = 0.0
    spent = Spent(border.gateway, now_s=lambda: now_s)

    def after_a_while() -> list[str]:
        nonlocal now_s
        now_s += EVERY_S
        spent.clear_if_due()
        return list(egress.list(""))

    border.send(b"counts")
    border.send(b"gradient", **{"class": "pseudo_gradient", "name": "pseudo-gradient-1", "round": 1})
    egress.put(f"jobs/{job}/statistic/never-recorded.env", b"left by a crash")
    egress.put("jobs/job-other/statistic/x.env", b"another job's")
    everything = list(egress.list(""))
    script.job = {"state": "succeeded"}
    assert after_a_while() == everything, "a leg is active here"
    (leg,) = border.gateway.table.active()
    border.gateway.table.change(leg, state="succeeded")
    spent.clear_if_due()
    assert list(egress.list("")) == everything, "not due yet"
    for unsaid in ({"state": "running"}, {"state": "pending"}, {"state": 7}, {}, None, []):
        script.job = unsaid
        assert after_a_while() == everything, unsaid
    script.job, script.away = {"state": "cancelled"}, True
    assert after_a_while() == everything
    script.away = False
    assert after_a_while() == ["jobs/job-other/statistic/x.env"]
    asked = len(border.server.heard)
    assert after_a_while() == ["jobs/job-other/statistic/x.env"]
    assert len(border.server.heard) == asked, "nobody is asked about a job that left nothing"
    assert len(border.records("crossing")) == 2


@pytest.mark.parametrize("text", ["raw", "clean"])
def test_text_never_crosses(border: Border, text: str) -> None:
    assert border.send(b"loi", **{"class": text}).status_code == 403
    assert list(border.gateway.egress.list("")) == []


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"recipients": "uy-1"}, 403),
        ({"recipients": "fr-1"}, 403),
        ({"class": "secrets"}, 422),
        ({"name": "born in Lyon"}, 422),
    ],
)
def test_strangers_and_unknown_classes_are_refused(border: Border, query: dict[str, str], status: int) -> None:
    assert border.send(b"x", **query).status_code == status


def test_a_release_while_the_server_is_away_is_announced_later_and_recorded_once(border: Border) -> None:
    from consortium.site.gateway.border import Border as Releases

    border.script.away = True
    assert border.send(b"counts").status_code == 200
    border.script.away = False
    Releases(border.gateway).announce()
    Releases(border.gateway).announce()
    assert len(border.script.artifacts) == 1
    assert len(border.records("crossing")) == 1


def receive_from_de(border: Border, data: bytes, *, changed: bool = False, round: int = 0) -> Artifact:
    world, job = border.world, border.offer.job
    header = envelope.EnvelopeHeader(
        job=job,
        artifact_class=ArtifactClass.STATISTIC,
        name="counts",
        round=round,
        sender="de-1",
        recipients=("fr-1",),
        digest=digest(data),
    )
    sealed = envelope.pack(header, data, {"fr-1": world.sealing["fr-1"].public}, world.signing["de-1"])
    if changed:
        sealed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    key, _ = border.theirs.put_addressed(f"jobs/{job}/statistic", sealed, ".env")
    artifact = sign_value(
        world.signing["de-1"],
        Artifact(
            job=job,
            artifact_class=header.artifact_class,
            name=header.name,
            round=round,
            sender="de-1",
            recipients=("fr-1",),
            digest=header.digest,
            key=key,
            size_bytes=len(sealed),
        ),
    )
    border.script.artifacts.append(to_json(artifact))
    return artifact


def test_a_receipt_is_verified_opened_and_recorded_once(border: Border) -> None:
    artifact = receive_from_de(border, b"from de")
    for _ in range(2):
        answer = border.http.get(f"/leg/artifacts/{artifact.digest}", params={"sender": "de-1"}, headers=border.leg)
        assert answer.content == b"from de"
    for asked, found in ((artifact.round, [artifact.digest]), (artifact.round + 1, [])):
        answer = border.http.get("/leg/artifacts", params={"round": asked}, headers=border.leg)
        assert [one["digest"] for one in answer.json()] == found
    (body,) = border.records("crossing")
    (crossing,) = body["crossings"]
    assert (crossing["side"], crossing["sender"], crossing["recipient"]) == ("receipt", "de-1", "fr-1")


def test_plaintexts_of_two_rounds_are_kept_and_a_receipt_is_recorded_once_all_the_same(border: Border) -> None:
    sent = [receive_from_de(border, f"round {number}".encode(), round=number) for number in range(4)]
    for artifact in (*sent, sent[1]):
        asked = {"sender": "de-1", "round": artifact.round}
        answer = border.http.get(f"/leg/artifacts/{artifact.digest}", params=asked, headers=border.leg)
        assert answer.content == f"round {artifact.round}".encode()
        if artifact is sent[3]:
            kept = sorted(path.name for path in (border.gateway.received / border.offer.job).iterdir() if path.is_dir())
            assert kept == ["2", "3"]
    crossings = [crossing for body in border.records("crossing") for crossing in body["crossings"]]
    assert len(crossings) == len({crossing["digest"] for crossing in crossings}) == 4


def test_a_changed_envelope_and_a_forged_announcement_are_refused(border: Border) -> None:
    artifact = receive_from_de(border, b"from de", changed=True)
    answer = border.http.get(f"/leg/artifacts/{artifact.digest}", headers=border.leg)
    assert answer.status_code == 409
    border.script.artifacts[0]["name"] = "other"
    answer = border.http.get(f"/leg/artifacts/{artifact.digest}", headers=border.leg)
    assert answer.json()["type"] == "urn:consortium:verification-failed"
    assert border.records("crossing") == []


def test_a_store_that_sends_more_than_was_announced_is_not_read_to_its_end(border: Border) -> None:
    artifact = receive_from_de(border, b"from de")
    border.theirs.put(artifact.key, border.theirs.get(artifact.key) + b"x" * 1000)
    answer = border.http.get(f"/leg/artifacts/{artifact.digest}", headers=border.leg)
    assert answer.status_code == 409
    assert f"more than {artifact.size_bytes} bytes" in answer.json()["detail"]


def test_a_receipt_that_a_crash_left_without_its_record_is_recorded(border: Border) -> None:
    artifact = receive_from_de(border, b"from de")
    path = f"/leg/artifacts/{artifact.digest}"
    assert border.http.get(path, params={"sender": "de-1"}, headers=border.leg).content == b"from de"
    with border.gateway.db.write() as write:  # as it was between the plaintext and the record
        write.execute("DELETE FROM receipts")
        write.execute("DELETE FROM outbox")
    for _ in range(2):
        assert border.http.get(path, params={"sender": "de-1"}, headers=border.leg).content == b"from de"
    assert len(border.records("crossing")) == 1


@pytest.mark.parametrize("left", [b"", b"from", None])
def test_what_was_kept_and_is_not_whole_any_more_is_fetched_anew(border: Border, left: bytes | None) -> None:
    artifact = receive_from_de(border, b"from de")
    path, asked = f"/leg/artifacts/{artifact.digest}", {"sender": "de-1"}
    assert border.http.get(path, params=asked, headers=border.leg).content == b"from de"
    (kept,) = [file for file in border.gateway.received.rglob("*") if file.is_file()]
    kept.unlink() if left is None else kept.write_bytes(left)
    for _ in range(2):
        assert border.http.get(path, params=asked, headers=border.leg).content == b"from de"
    assert kept.read_bytes() == b"from de"
    assert len(border.records("crossing")) == 1


def test_a_full_disk_is_waited_for_and_leaves_nothing_half_kept(border: Border) -> None:
    data = secrets.token_bytes(1 << 20)
    artifact = receive_from_de(border, data)
    path, asked = f"/leg/artifacts/{artifact.digest}", {"sender": "de-1"}
    with no_room(1 << 19):  # the database has room, the plaintext has none
        for _ in range(2):
            answer = border.http.get(path, params=asked, headers=border.leg)
            assert (answer.status_code, answer.json()["type"]) == (503, "urn:consortium:unreachable"), answer.text
    assert [file for file in border.gateway.received.rglob("*") if file.is_file()] == []
    assert border.records("crossing") == []
    with no_room():
        for call in (border.http.get(path, params=asked, headers=border.leg), border.send(b"mine")):
            assert (call.status_code, call.json()["type"]) == (503, "urn:consortium:unreachable"), call.text
    assert border.http.get(path, params=asked, headers=border.leg).content == data
    assert border.send(b"mine").status_code == 200


def test_a_legs_words_never_become_a_path(border: Border) -> None:
    secret = border.gateway.received / "site-secret"
    secret.write_text("secret")
    (border.gateway.received / border.offer.job).mkdir()
    for sender, wanted in (("../site", "secret"), ("de-1", "../../x"), ("", "secret")):
        answer = border.http.get(f"/leg/artifacts/{wanted}", params={"sender": sender}, headers=border.leg)
        assert answer.status_code in (404, 422), answer.text
        assert answer.content != b"secret"


# -- rounds -----------------------------------------------------------------------------------------------------------


def signed_round(border: Border, **changed: Any) -> dict[str, Any]:
    """A certified round of fr-1 and de-1 as the server relays it, with one part `changed` after it was signed."""
    world, job = border.world, border.offer.job
    commits = [
        sign_value(
            world.signing[site],
            Commit(
                job=job, round=1, site=site, tokens=10, steps=1, digest=f"sha256:{site}", norm="0x1p+0", loss="0x1p+0"
            ),
        )
        for site in ("de-1", "fr-1")
    ]
    verdicts = [
        sign_value(
            world.signing[judge], Verdict(job=job, round=1, judge=judge, site=c.site, digest=c.digest, accept=True)
        )
        for judge in ("de-1", "fr-1")
        for c in commits
    ]
    certificate = sign_value(world.server_key, certify(job, 1, "sha256:0", commits, verdicts))
    fields: dict[str, Any] = {"commits": tuple(commits), "verdicts": tuple(verdicts), "certificate": certificate}
    for name, change in changed.items():
        whole = fields[name]
        fields[name] = (change(whole[0]), *whole[1:]) if isinstance(whole, tuple) else change(whole)
    phase, expected = RoundPhase.CERTIFIED, ("de-1", "fr-1")
    answer: dict[str, Any] = to_json(Round(job=job, number=1, phase=phase, expected=expected, **fields))
    return answer


def test_a_round_reaches_a_leg_only_with_signatures_that_hold(border: Border) -> None:
    told: dict[str, Any] = {}
    border.server.route("GET", r"/v1/jobs/[^/]+/rounds/1")(lambda body, query: told["round"])
    told["round"] = signed_round(border)
    assert border.http.get("/leg/rounds/1", headers=border.leg).json() == told["round"]
    mallory = SigningKey.generate()
    forgeries: list[dict[str, Any]] = [
        {"commits": lambda it: replace(it, tokens=10_000)},
        {"commits": lambda it: sign_value(border.world.server_key, replace(it, site="server"))},
        {"verdicts": lambda it: replace(it, accept=False)},
        {"verdicts": lambda it: sign_value(mallory, it)},
        {"certificate": lambda it: replace(it, contributions=it.contributions[:1])},
        {"certificate": lambda it: sign_value(border.world.server_key, replace(it, round=2))},
    ]
    for forged in forgeries:
        told["round"] = signed_round(border, **forged)
        answer = border.http.get("/leg/rounds/1", headers=border.leg)
        assert answer.json()["type"] == "urn:consortium:verification-failed", answer.text


def test_a_ruling_that_reached_a_leg_once_does_so_after_who_ruled_has_left(border: Border) -> None:
    world, bruno, told = border.world, SigningKey.generate(), dict[str, Any]()
    border.server.route("GET", r"/v1/jobs/[^/]+/rounds/1")(lambda body, query: told["round"])
    people = f"{world.roster()}  - {{id: fr/bruno, name: Bruno, roles: [admin], signing_key: '{bruno.public}'}}\n"
    draft = Ruling(job=border.offer.job, round=1, site="de-1", action="reject", reason="broken disks", by="fr/bruno")
    told["round"] = signed_round(border) | {"rulings": to_json((sign_value(bruno, draft),))}
    for roster, status in ((world.roster(), 409), (people, 200), (world.roster(), 200)):
        world.sign("roster", "fr", roster, "roster-fr")
        assert border.http.get("/leg/rounds/1", headers=border.leg).status_code == status
    other = sign_value(bruno, replace(draft, reason="another"))
    told["round"]["rulings"].append(to_json(other))
    assert border.http.get("/leg/rounds/1", headers=border.leg).status_code == 409


def test_an_agreement_reaches_a_leg_only_if_its_site_signed_it(border: Border) -> None:
    statement = {"job": border.offer.job, "topic": "outer/1", "site": "de-1", "digest": "sha256:a"}
    signature = sign_value(border.world.signing["de-1"], statement)["signature"]
    told: dict[str, Any] = {"de-1": {"digest": "sha256:a", "signature": signature}}
    border.server.route("GET", r"/v1/jobs/[^/]+/agreements/outer/1")(lambda body, query: told)
    assert border.http.get("/leg/agreements/outer/1", headers=border.leg).json() == {"de-1": "sha256:a"}
    told["de-1"]["digest"] = "sha256:b"
    answer = border.http.get("/leg/agreements/outer/1", headers=border.leg)
    assert answer.json()["type"] == "urn:consortium:verification-failed"


# -- reports and logs -------------------------------------------------------------------------------------------------


def test_progress_result_and_failure_are_kept_for_the_agent(border: Border) -> None:
    said = {"round": 3, "loss": 2.718281828459045}
    assert border.http.post("/leg/progress", json=said, headers=border.leg).status_code == 204
    assert border.http.post("/leg/result", json={"metrics": {"loss": 1}}, headers=border.leg).status_code == 204
    failure = {"message": "no", "fault": "site"}
    assert border.http.post("/leg/failure", json=failure, headers=border.leg).status_code == 204
    (leg,) = border.gateway.table.active()
    assert leg.progress == {"round": 3, "loss": 2.71828}, "metrics have six digits"
    assert leg.result is not None
    assert leg.result["metrics"] == {"loss": 1}
    assert leg.failure == failure
    told = replace(leg, state=LegState.SUCCEEDED, result={"metrics": {}, "manifest": {"rows": [1]}}).report()
    assert told.result == {"metrics": {}}, "the manifest stays at home"
    for path, body in (
        ("progress", {"x": "y" * 500}),
        ("failure", {"message": "x" * 2001, "fault": "user"}),
        ("progress", {"x": [1]}),
        ("result", {"nonsense": 1}),
        ("result", {"manifest_digest": "x" * 101}),
        ("result", {"outputs": [to_json(builders.dataset())] * 1001}),
    ):
        assert border.http.post(f"/leg/{path}", json=body, headers=border.leg).status_code == 422


def test_a_result_of_50_000_shards_goes_all_the_way_and_its_manifest_stays(border: Border) -> None:
    shards = [
        {"key": f"jobs/j/clean/{at:064x}.parquet", "digest": f"sha256:{at:064x}", "size_bytes": at, "documents": 9}
        for at in range(50_000)
    ]
    output = to_json(replace(builders.dataset("laws-fr-clean"), shards=())) | {"shards": shards}
    manifest = {"shards": [{"in": shard, "out": shard, "index": shard["digest"]} for shard in shards]}
    body = {"outputs": [output], "manifest": manifest}
    assert len(json.dumps(body)) > 32 << 20
    assert border.http.post("/leg/result", json=body, headers=border.leg).status_code == 204
    (leg,) = border.gateway.table.active()
    report = replace(leg, state=LegState.SUCCEEDED).report()
    poll = PollRequest(
        site="fr-1",
        protocol=PROTOCOL_VERSION,
        healthy=True,
        unhealthy_reason="",
        code_digest="sha256:test",
        policy_digest="sha256:policy",
        highest_epoch=leg.offer.epoch,
        legs=(report,),
        next_seq=0,
    )
    answer = border.http.post("/v1/sites/fr-1/poll", json=to_json(poll), headers=AGENT)
    assert answer.status_code == 200, answer.text
    heard = border.script.report(leg.offer.leg)
    assert heard is not None
    assert (len(heard.result["outputs"][0]["shards"]), "manifest" in heard.result) == (50_000, False)


def test_a_result_that_no_poll_could_carry_is_refused_with_what_to_do(border: Border) -> None:
    shards = [
        {"key": f"jobs/j/{'c' * 100}/{at:064x}.parquet", "digest": f"sha256:{at:064x}", "size_bytes": 1, "documents": 9}
        for at in range(80_000)
    ]
    output = to_json(replace(builders.dataset("laws-fr-clean"), shards=())) | {"shards": shards}
    answer = border.http.post("/leg/result", json={"outputs": [output]}, headers=border.leg)
    assert answer.status_code == 422
    assert "the consortium takes 25,165,824" in answer.json()["detail"]
    assert answer.json()["fix"] == "give the leg fewer inputs, or write larger shards"
    poll = border.http.post("/v1/sites/fr-1/poll", content=b" " * (MAX_REQUEST_BYTES + 1), headers=AGENT)
    assert poll.status_code == 422


def test_metrics_stay_at_home_where_the_policy_has_come_to_say_so(border: Border) -> None:
    policy = (CONFIGS / "policy" / "fr.yaml").read_text()
    assert "[metric, control]" in policy
    border.world.sign("policy", "fr", policy.replace("[metric, control]", "[control]"), "policy-fr")
    border.gateway.documents.refresh(now_ms())
    body = {"metrics": {"loss": 1.25}, "manifest_digest": "sha256:" + "0" * 64}
    assert border.http.post("/leg/result", json=body, headers=border.leg).status_code == 204
    (leg,) = border.gateway.table.active()
    assert leg.result is not None
    assert (leg.result["metrics"], leg.result["manifest_digest"]) == ({}, "sha256:" + "0" * 64)


def test_a_log_leaves_only_where_the_policy_lets_it(border: Border) -> None:
    piece = {"leg": border.offer.leg, "site": "fr-1", "offset": 0, "text": "hello"}
    path = f"/v1/jobs/{border.offer.job}/logs"
    assert border.http.post(path, json=piece, headers=AGENT).status_code == 200
    text = (border.world.documents / "policy-fr.json").read_text()
    policy = json.loads(text)["text"].replace("- to: [consortium, de, uy]", "- to: []")
    border.world.sign("policy", "fr", policy, "policy-fr")
    refused = border.http.post(path, json=piece, headers=AGENT)
    assert refused.status_code == 403
    assert "fr/logs" in refused.json()["where"]
    assert len(border.script.logs) == 1
    failure = {"message": "ValueError: Madame Dupont, 3 rue", "fault": "user"}
    assert border.http.post("/leg/failure", json=failure, headers=border.leg).status_code == 204
    (leg,) = border.gateway.table.active()
    assert leg.failure is not None
    assert "Dupont" not in leg.failure["message"]
    assert "fr-1 keeps at home" in leg.failure["message"]


# -- tracking ---------------------------------------------------------------------------------------------------------


def track(border: Border, call: str, body: dict[str, Any], method: str = "POST") -> Any:
    return border.http.request(method, f"/mlflow/api/2.0/mlflow/{call}", json=body, headers=border.leg)


def test_metrics_are_rounded_and_only_known_fields_pass(border: Border) -> None:
    body = {
        "run_id": "run-1",
        "metrics": [{"key": "loss", "value": 3.14159265358979, "timestamp": 1, "step": 2, "secret": "x"}],
        "params": [{"key": "lr", "value": "0.1"}],
        "tags": [{"key": "consortium.phase", "value": "train"}],
        "attachment": "x" * 100,
    }
    assert track(border, "runs/log-batch", body).status_code == 200
    assert border.mlflow.heard[-1].body == {
        "run_id": "run-1",
        "metrics": [{"key": "loss", "value": 3.14159, "timestamp": 1, "step": 2}],
        "params": [{"key": "lr", "value": "0.1"}],
        "tags": [{"key": "consortium.phase", "value": "train"}],
    }
    assert "Authorization" not in border.mlflow.heard[-1].headers
    track(border, "runs/log-metric", {"run_id": "run-1", "key": "x", "value": "NaN"})
    assert border.mlflow.heard[-1].body["value"] == "NaN"


TEXT = "Madame X, born on 3 March, lives in Lyon. "
COMMIT = {"tokens": 1, "steps": 1, "digest": f"sha256:{'0' * 64}", "norm": (1.5).hex(), "loss": (2.0).hex()}
VERDICT = {"site": "de-1", "digest": f"sha256:{'0' * 64}", "accept": False, "reason": "norm", "norm": (1.5).hex()}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("rounds/1/commit", COMMIT | {name: TEXT}) for name in ("digest", "norm", "loss")),
        ("rounds/1/commit", COMMIT | {"norm": "0x1." + "0" * 60 + "p+0"}),
        ("rounds/1/commit", COMMIT | {"tokens": 10**400}),
        ("rounds/99999999999/commit", COMMIT),
        *(("rounds/1/verdicts", [VERDICT | {name: TEXT}]) for name in ("site", "digest", "norm", "reason")),
        ("rounds/1/verdicts", [VERDICT] * 3),
        ("agreements/outer/1", {"digest": TEXT}),
        ("agreements/" + TEXT, {"digest": COMMIT["digest"]}),
        ("agreements/..%2F..%2F..%2Fjobs%2Fjob-other%2Fcancel", {"digest": COMMIT["digest"]}),
        ("agreements/outer%3Fa=b", {"digest": COMMIT["digest"]}),
        ("progress", {TEXT: 1}),
        ("progress", {"phase": "two\nlines"}),
    ],
)
def test_what_rounds_say_is_digests_numbers_and_codes_and_no_text_or_path(border: Border, path: str, body: Any) -> None:
    assert border.http.post(f"/leg/{path}", json=body, headers=border.leg).status_code == 422
    assert border.server.heard == []


def test_commits_verdicts_and_agreements_reach_the_server_signed(border: Border) -> None:
    border.server.route("POST", r"/v1/jobs/[^/]+/(rounds/1/(commit|verdicts)|agreements/outer/1)")(lambda *_: {})
    said: dict[str, Any] = {"rounds/1/commit": COMMIT, "rounds/1/verdicts": [VERDICT, VERDICT | {"norm": ""}]}
    said["agreements/outer/1"] = {"digest": COMMIT["digest"]}
    for path, body in said.items():
        assert border.http.post(f"/leg/{path}", json=body, headers=border.leg).status_code == 200, path
    commit, verdicts, agreement = (heard.body for heard in border.server.heard)
    for signed in (commit, *verdicts, agreement):
        assert signed["signature"]


def test_progress_goes_without_measurements_where_metrics_stay_at_home(border: Border) -> None:
    policy = (CONFIGS / "policy" / "fr.yaml").read_text()
    border.world.sign("policy", "fr", policy.replace("[metric, control]", "[control]"), "policy-fr")
    said = {"phase": "train", "round": 3, "loss": 2.5}
    assert border.http.post("/leg/progress", json=said, headers=border.leg).status_code == 204
    (leg,) = border.gateway.table.active()
    assert leg.progress == {"phase": "train", "round": 3}


@pytest.mark.parametrize(
    ("call", "body"),
    [
        ("runs/set-tag", {"run_id": "run-1", "key": "consortium.ledger.index", "value": "x"}),
        ("runs/log-metric", {"run_id": "run-1", "key": "loss\n", "value": 1}),
        ("runs/log-batch", {"run_id": "run-2", "metrics": []}),
        ("runs/log-batch", {"metrics": []}),
        ("runs/log-parameter", {"run_id": "run-1", "key": "p", "value": "Traceback (most recent call last):\n  File"}),
        ("runs/log-parameter", {"run_id": "run-1", "key": "p", "value": "x" * 501}),
        ("runs/log-metric", {"run_id": "run-1", "key": "m", "value": "a word"}),
        ("runs/set-tag", {"run_id": "run-1", "key": "mlflow.note.content", "value": "x"}),
        ("runs/set-tag", {"run_id": "run-1", "key": "consortium.x", "value": "two\nlines"}),
        ("runs/log-batch", {"run_id": "run-1", "metrics": 7}),
        ("runs/log-batch", {"run_id": "run-1", "tags": ["x"]}),
        ("runs/update", {"run_id": "run-1", "end_time": "soon"}),
        ("runs/create", {"experiment_id": "0"}),
        ("runs/delete", {"run_id": "run-1"}),
        ("runs/search", {"experiment_ids": ["0"]}),
        ("experiments/create", {"name": "x"}),
        ("runs/../experiments/create", {"run_id": "run-1"}),
        ("logged-models", {"run_id": "run-1"}),
    ],
)
def test_other_runs_texts_and_other_calls_are_refused(border: Border, call: str, body: dict[str, Any]) -> None:
    refused = track(border, call, body)
    assert refused.status_code in (403, 404)
    assert border.mlflow.heard == []


def test_artifact_uploads_are_refused(border: Border) -> None:
    path = "/mlflow/api/2.0/mlflow-artifacts/artifacts/1/run-1/artifacts/model.bin"
    refused = border.http.put(path, content=b"\x80\x04weights", headers=border.leg)
    assert refused.status_code == 403
    assert refused.json()["error_code"] == "PERMISSION_DENIED"
    assert border.mlflow.heard == []


def test_calls_are_counted_in_batches(border: Border) -> None:
    for _ in range(3):
        track(border, "runs/log-metric", {"run_id": "run-1", "key": "x", "value": 1})
    border.http.get("/leg/artifacts", headers=border.leg)
    assert border.records("crossing") == []
    border.gateway.traffic.flush()
    border.gateway.traffic.flush()
    (body,) = border.records("crossing")
    counted = {(item["artifact_class"], item["side"]): item for item in body["crossings"]}
    assert counted["metric", "release"]["count"] == 3
    assert counted["metric", "release"]["recipient"] == "consortium"
    assert counted["metric", "release"]["size_bytes"] > 0
    assert counted["control", "receipt"]["job"] == border.offer.job
    check_chain(border.gateway.outbox.after(-1), lambda _: border.world.signing["fr-1"].public)


def test_counted_calls_are_recorded_every_ten_minutes_and_when_the_last_leg_has_ended(border: Border) -> None:
    gateway, now = border.gateway, [0]
    traffic = Traffic(gateway.db, gateway.outbox, "fr-1", lambda: 1_750_000_000_000 + now[0])
    recorded = []
    for minute in range(31):  # a call every minute; the leg ends in the 25th
        now[0] = minute * 60_000
        traffic.count(ArtifactClass.CONTROL, 100, 50)
        if minute == 25:
            (leg,) = gateway.table.active()
            gateway.table.change(leg, state=LegState.SUCCEEDED.value)
        traffic.flush_if_due()
        if len(border.records("crossing")) > len(recorded):
            recorded.append(minute)
    assert recorded == [10, 20, 25]
    assert border.records("crossing")[-1]["cumulative"] == {"count": 52, "size_bytes": 26 * 150}


def test_what_left_is_counted_where_no_answer_came(border: Border) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung_up:
        border.gateway.server.base_url = f"http://127.0.0.1:{hung_up.getsockname()[1]}"

        def listen_and_leave() -> None:
            caller, _ = hung_up.accept()
            heard = b""
            while b"x" * 5000 not in heard:
                heard += caller.recv(65536)
            caller.close()

        server = threading.Thread(target=listen_and_leave)
        server.start()
        with pytest.raises(UnreachableError):
            border.gateway.call("POST", "/v1/jobs/j/logs", {"text": "x" * 5000}, artifact_class=ArtifactClass.LOG)
        server.join()
    with pytest.raises(UnreachableError):  # nobody is there: nothing leaves
        border.gateway.call("POST", "/v1/jobs/j/logs", {"text": "x" * 5000}, artifact_class=ArtifactClass.LOG)
    border.gateway.traffic.flush()
    (body,) = border.records("crossing")
    (crossing,) = body["crossings"]
    assert (crossing["artifact_class"], crossing["side"], crossing["count"]) == ("log", "release", 1)
    assert crossing["size_bytes"] > 5000


@pytest.mark.parametrize("packed", [True, False])
def test_a_server_that_answers_without_end_is_not_read_to_it(border: Border, packed: bool) -> None:
    body = gzip.compress(b" " * (64 << 20)) if packed else b" " * (1 << 20)
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body) if packed else 1 << 40}\r\n"
    head += "Content-Encoding: gzip\r\n\r\n" if packed else "\r\n"
    with answering(head.encode(), body, again=not packed) as url:
        border.gateway.server.base_url = url
        with pytest.raises(UnreachableError, match="packed" if packed else "larger than"):
            border.gateway.call("GET", "/v1/jobs/j/rounds/1")


@pytest.mark.parametrize("status", [200, 403])
def test_a_peers_store_that_answers_without_end_is_not_read_to_it(border: Border, status: int) -> None:
    with answering(
        f"HTTP/1.1 {status} X\r\nContent-Length: {1 << 40}\r\n\r\n".encode(), b"x" * 65536, again=True
    ) as url:
        store = peer(border, url)
        with pytest.raises(ConsortiumError, match="more than 10 bytes" if status == 200 else "refused"):
            store.get("jobs/j/statistic/x.env", size=10)


def test_a_peers_store_that_drips_holds_up_a_few_calls_and_nobody_else(border: Border) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    with answering(head, b"x", again=True, pause_s=0.05) as url:
        store = peer(border, url, wait_s=0.1, least_s=0.5)
        faults: list[str] = []

        def ask() -> None:
            try:
                store.get("jobs/j/statistic/x.env", size=1000)
            except UnreachableError as fault:
                faults.append(fault.what)

        asking = [threading.Thread(target=ask) for _ in range(LANES + 2)]
        for one in asking:
            one.start()
        for one in asking:
            one.join(timeout=20)
    assert sum("already" in what for what in faults) == 2
    assert sum("of 1000 bytes in time" in what for what in faults) == LANES


@pytest.mark.parametrize("by_header", [True, False])
def test_a_peers_store_of_another_region_is_signed_for_as_it_says(border: Border, by_header: bool) -> None:
    refusal = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>fr-par</Region></Error>"
    regions: list[str] = []

    class Store(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            regions.append(self.headers["Authorization"].split("/")[2])
            right = regions[-1] == "fr-par"
            self.send_response(200 if right else 400)
            if by_header and not right:
                self.send_header("x-amz-bucket-region", "fr-par")
            content = b"sealed" if right else b"" if by_header else refusal
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        store = peer(border, f"http://127.0.0.1:{server.server_address[1]}")
        assert [store.get("jobs/j/x.env", size=6) for _ in range(2)] == [b"sealed"] * 2
        server.shutdown()
    assert regions == ["us-east-1", "fr-par", "fr-par"]


def peer(border: Border, url: str, **times: float) -> PeerStore:
    settings = border.gateway.settings.peer_egress["de-1"]
    return PeerStore(replace(settings, endpoint=url), **times)


@contextmanager
def answering(head: bytes, body: bytes, *, again: bool = False, pause_s: float = 0.0) -> Iterator[str]:
    """A server that answers anything with `head` and `body`, once or until its caller leaves."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                self.request.recv(65536)
                self.request.sendall(head + body)
                while again:
                    time.sleep(pause_s)
                    self.request.sendall(body)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_taken_port_is_a_clear_error(world: World, tmp_path: Path) -> None:
    from consortium.errors import ConflictError
    from consortium.site.gateway.app import listen

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {port}"):
            listen(port)
