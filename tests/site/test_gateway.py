"""The gateway's callers, and what a leg leaves with it: against a real consortium server and real S3 stores."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from consortium import PROTOCOL_VERSION
from consortium.domain.codec import to_json
from consortium.domain.job import LegState
from consortium.domain.protocol import MAX_REQUEST_BYTES, PollRequest
from tests import builders
from tests.site.border import AGENT, Border
from tests.site.world import SITE_TOKEN, World

pytestmark = pytest.mark.integration


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


def test_a_taken_port_is_a_clear_error(world: World, tmp_path: Path) -> None:
    from consortium.errors import ConflictError
    from consortium.site.gateway.app import listen

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {port}"):
            listen(port)
