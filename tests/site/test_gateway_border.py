"""What crosses the border by the gateway: released, sealed, announced, received; refused, and recorded once."""

from __future__ import annotations

import secrets

import pytest

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Artifact, ArtifactClass
from consortium.keys.canonical import digest
from consortium.keys.signing import sign_value, verify_value
from consortium.site.gateway.spent import EVERY_S, Spent
from consortium.storage import envelope
from tests.disk import no_room
from tests.site.border import Border

pytestmark = pytest.mark.integration


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
