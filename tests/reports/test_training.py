"""Who brought what to which model, in a report: FLOPs, bytes, loss, lineage, and who did the work again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consortium.config import compose_job
from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass, Crossing, CrossingSide
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.records import RecordType, ReExecution
from consortium.domain.screening import ScreenRule
from consortium.errors import VerificationError
from consortium.keys.documents import DocumentKind, sign_document
from consortium.keys.signing import SigningKey, sign_value
from consortium.reports.build import build_report
from consortium.reports.training import read_redone
from consortium.reports.verify import verify_report
from consortium.train.rounds import first_standing
from consortium.train.sizes import flops_per_token
from tests import builders
from tests.reports import builders as b

FIRST, JOB, MEASURED = (builders.new_id("job", number) for number in (1, 2, 3))
PARAMS = compose_job("pretrain", ["model=tiny"]).params
CARLA = SigningKey.generate()


def job(world: Any, name: str, kind: str = "pretrain", **changes: Any) -> None:
    words = builders.dataset("words", artifact_class=ArtifactClass.TOKENS, attributes={"vocab_size": "1024"})
    world.add("server", RecordType.DATASET, {"dataset": words, "job": "", "leg": ""}, b.START - b.HOUR)
    spec = builders.spec(kind, inputs=(words.id,), **({"params": PARAMS} | changes))
    world.add("server", RecordType.JOB, {"job": name, "spec": spec, "signature": "", "sites": []}, b.START - b.HOUR)


def trained() -> Any:
    """Two rounds of a training that goes on from another, whose one round lies in the month before."""
    world = b.World()
    job(world, FIRST)
    world.round(FIRST, 1, {"de-1": 500}, b.START - 1)
    job(world, JOB, params=PARAMS | {"start": {"job": FIRST}})
    for number in (1, 2):
        world.round(JOB, number, {"de-1": 3000, "fr-1": 1000})
    world.passage("fr-1", "de-1", "sha256:fr-1", 1001, JOB)
    job(world, MEASURED, "evaluate", params={"batches": 1, "batch_size": 1}, model=JOB)
    losses = {"by_round": {"de": {"0": 5.0, "2": 4.0}, "fr": {"0": 6.0, "2": 4.0}}}
    world.add("server", RecordType.MANIFEST, {"job": MEASURED, "site": "de-1", "metrics": losses})
    return world


def report(world: Any, folder: Path) -> Any:
    with world.log(folder) as log:
        made = build_report(partner="fr", period=b.PERIOD, log=log, sites=world.sites, trust=world.trust,
                            key=world.keys["server"], made_ms=1_777_000_000_123)  # fmt: skip
    verify_report(made, world.trust)
    return made


def test_a_partners_part_in_a_model_and_what_the_model_took(tmp_path: Path) -> None:
    figures = report(trained(), tmp_path)["figures"]
    a_token = flops_per_token(PretrainConfig.of(PARAMS).model, 1024)
    rows = figures["rounds"]
    assert [(row["round"], row["flops"], row["bytes_sent"]) for row in rows] == [
        (1, 1000 * a_token, 1001), (2, 1000 * a_token, 1001)  # the same bytes in both rounds of this example
    ]  # fmt: skip
    assert [row["loss_share_nats"] for row in rows] == ["0.187500"] * 2, "a quarter of half of 1.5 nats"
    assert {row["work_evidence"] for row in rows} == {"declared"}
    (training,) = figures["training"]
    assert (training["job"], training["rounds"], training["tokens"], training["weight"]) == (JOB, 2, 2000, "0.500000")
    assert (training["bytes_sent"], training["bytes_received"]) == (1001, None), "what crossed, each artifact once"
    assert training["model_flops"] == 8000 * a_token, "of all partners"
    assert (training["lineage"], training["lineage_flops"]) == ([FIRST], 8500 * a_token)
    assert (training["general_purpose"], training["systemic_risk"]) == (False, False)


def test_flops_that_nobody_knows_are_null_and_never_zero(tmp_path: Path) -> None:
    world = b.World()
    own = PARAMS | {"model": PARAMS["model"] | {"plugin": "our-own"}}
    job(world, JOB, params=own)
    world.round(JOB, 1, {"fr-1": 1000})
    (training,) = report(world, tmp_path / "a")["figures"]["training"]
    unknown = {"flops", "model_flops", "lineage_flops", "general_purpose", "systemic_risk", "loss_share_nats"}
    assert {name for name, value in training.items() if value is None} == unknown | {"bytes_sent", "bytes_received"}
    world = b.World()
    weights = {"weights": "some/file", "digest": "sha256:" + "0" * 64}
    job(world, JOB, params=PARAMS | {"start": weights})
    world.round(JOB, 2, {"fr-1": 1000})
    (training,) = report(world, tmp_path / "b")["figures"]["training"]
    assert training["flops"] > 0
    assert (training["model_flops"], training["lineage"]) == (None, ["unknown"]), "round 1 is not in the log"


@pytest.mark.parametrize(
    "told",
    [{"en": {"x": 1.0}}, {"en": {"1": "high"}}, {"en": [1, 2]}, {"en": {"0": "NaN", "2": 1}}, {"en": {"0": 1e300}}],
)
def test_a_measurement_that_is_none_is_unknown_and_stops_nobodys_report(tmp_path: Path, told: Any) -> None:
    world = trained()
    world.add("server", RecordType.MANIFEST, {"job": MEASURED, "site": "uy-1", "metrics": {"by_round": told}})
    rows = report(world, tmp_path)["figures"]["rounds"]
    assert [row["loss_share_nats"] for row in rows] == ["0.187500"] * 2


@pytest.mark.parametrize("size", ["9" * 5000, "0", "-1", "many", "\u0663"])
def test_a_vocabulary_of_no_size_is_unknown(tmp_path: Path, size: str) -> None:
    world = trained()
    words = builders.dataset("words", artifact_class=ArtifactClass.TOKENS, attributes={"vocab_size": size})
    world.add("server", RecordType.DATASET, {"dataset": words, "job": "", "leg": ""}, b.START)
    (training,) = report(world, tmp_path)["figures"]["training"]
    assert training["flops"] is not None, "the record before says it"


def test_two_records_that_say_different_things_of_a_job_do_not_verify(tmp_path: Path) -> None:
    world = trained()
    job(world, JOB, params=PARAMS | {"start": {"job": FIRST}})
    report(world, tmp_path / "same")
    job(world, JOB, params=PARAMS | {"seed": 7})
    with pytest.raises(VerificationError, match="says otherwise"):
        report(world, tmp_path / "other")


def test_traffic_with_the_consortium_is_of_one_partner_alone(tmp_path: Path) -> None:
    world = b.World()
    call = Crossing(
        sender="fr-1", recipient="consortium", side=CrossingSide.RELEASE, artifact_class=ArtifactClass.CONTROL,
        size_bytes=444, count=5, digest="", job=JOB, at_ms=b.START,
    )  # fmt: skip
    world.crossing("fr-1", call)
    colombia = replace(world.sites[0], id="co-1", partner="co", territory="co")
    trust = world.trust
    trust = replace(trust, sites={**trust.sites, "co-1": trust.sites["fr-1"]}, partners={**trust.partners, "co": "k"})
    with world.log(tmp_path) as log:
        made = build_report(partner="co", period=b.PERIOD, log=log, sites=[*world.sites, colombia], trust=trust,
                            key=world.keys["server"], made_ms=1_777_000_000_123)  # fmt: skip
    assert made["figures"]["crossings"] == []


def redone(number: int, by: str = "", distance: float = 1e-6) -> ReExecution:
    return ReExecution(
        job=JOB, round=number, site="fr-1", digest="sha256:fr-1", same_bits=False, distance=distance.hex(),
        cosine=(1.0).hex(), tolerance=(0.2).hex(), drawn=(1, 2), by=by,
    )  # fmt: skip


def again(world: Any, number: int, *, by: str = "", distance: float = 1e-6, key: SigningKey = CARLA) -> None:
    said = redone(number, by, distance)
    world.add("fr-1", RecordType.RE_EXECUTION, sign_value(key, said) if by else said)


def roster(world: Any, partner: str, key: SigningKey | None, version: int = 1, expires_ms: int = 1 << 45) -> None:
    person = f"{{id: {partner}/carla, name: C, roles: [auditor], signing_key: '{key.public}'}}" if key else ""
    text = f"partner: {partner}\npeople: [{person}]\n"
    document = sign_document(
        world.keys[f"{partner}-1"], kind=DocumentKind.ROSTER, partner=partner, version=version, issued_ms=1,
        expires_ms=expires_ms, file=f"roster/{partner}.yaml", text=text,
    )  # fmt: skip
    world.add("server", RecordType.ROSTER, {"partner": partner, "digest": "", "document": document})


def grades(world: Any, folder: Path) -> list[tuple[str, list[str]]]:
    rows = report(world, folder)["figures"]["rounds"]
    return [(row["work_evidence"], row["re_executed_by"] + row["re_execution_differed"]) for row in rows]


def test_work_done_again_counts_only_under_the_eyes_of_another_partners_auditor(tmp_path: Path) -> None:
    world = trained()
    for partner in ("fr", "uy"):
        roster(world, partner, CARLA)
    again(world, 1)
    assert grades(world, tmp_path / "self") == [("declared", ["fr-1"]), ("declared", [])]
    again(world, 1, by="fr/carla")
    again(world, 2, by="uy/carla", key=SigningKey.generate())
    assert {grade for grade, _ in grades(world, tmp_path / "own")} == {"declared"}, "its own, and one she did not sign"
    again(world, 2, by="uy/carla")
    found = grades(world, tmp_path / "uy")
    assert found[0][0] == "declared"
    assert found[1] == ("re-executed", ["fr-1", "uy/carla at fr-1"])
    again(world, 2, distance=0.9)
    assert grades(world, tmp_path / "differs")[1] == ("declared", ["fr-1", "uy/carla at fr-1", "fr-1"])


def test_an_auditor_counts_while_the_newest_roster_names_her_and_no_longer(tmp_path: Path) -> None:
    world = trained()
    again(world, 1, by="uy/carla")
    roster(world, "uy", CARLA)
    again(world, 2, by="uy/carla")
    assert [grade for grade, _ in grades(world, tmp_path / "before")] == ["declared", "re-executed"], "named after 1"
    roster(world, "uy", None, version=2)
    assert [grade for grade, _ in grades(world, tmp_path / "kept")] == ["declared", "re-executed"], "as it was then"
    again(world, 1, by="uy/carla")
    roster(world, "uy", CARLA, version=1)
    again(world, 1, by="uy/carla")
    assert [grade for grade, _ in grades(world, tmp_path / "left")] == ["declared", "re-executed"]
    roster(world, "uy", CARLA, version=3, expires_ms=b.START)
    again(world, 1, by="uy/carla")
    assert [grade for grade, _ in grades(world, tmp_path / "expired")] == ["declared", "re-executed"]
    roster(world, "uy", CARLA, version=4, expires_ms=b.START + 1)
    again(world, 1, by="uy/carla")
    assert [grade for grade, _ in grades(world, tmp_path / "again")] == ["re-executed", "re-executed"]


def test_a_roster_that_is_none_vouches_for_nobody_and_stops_nobodys_report(tmp_path: Path) -> None:
    world = trained()
    roster(world, "uy", CARLA)
    broken = sign_document(
        world.keys["uy-1"], kind=DocumentKind.ROSTER, partner="uy", version=2, issued_ms=1, expires_ms=1 << 45,
        file="roster/uy.yaml", text="people: 2024-13-45\n",
    )  # fmt: skip
    world.add("server", RecordType.ROSTER, {"partner": "uy", "digest": "", "document": broken})
    again(world, 2, by="uy/carla")
    assert [grade for grade, _ in grades(world, tmp_path)] == ["declared", "declared"]


def test_a_roster_that_its_partner_did_not_sign_and_a_strangers_word_are_found(tmp_path: Path) -> None:
    world = trained()
    world.add("de-1", RecordType.RE_EXECUTION, redone(1))
    assert [grade for grade, _ in grades(world, tmp_path / "stranger")] == ["declared", "declared"]
    with pytest.raises(VerificationError, match="fr-1's to record"):
        read_redone(world.records)
    world = trained()
    world.keys["uy-1"], real = SigningKey.generate(), world.keys["uy-1"]
    roster(world, "uy", CARLA)
    world.keys["uy-1"] = real
    again(world, 1, by="uy/carla")
    with pytest.raises(VerificationError, match="roster of uy"):
        report(world, tmp_path / "roster")


def test_a_round_whose_dispute_was_settled_shows_the_state_that_holds_and_stays_declared(tmp_path: Path) -> None:
    world = trained()
    body = world.records.pop(next(i for i, one in enumerate(world.records) if one.type is RecordType.ROUND)).body
    world = b.World(keys=world.keys)
    published = {"de-1": "sha256:one", "fr-1": "sha256:other"}
    settled = {"parties": ["de-1", "fr-1"], "outer": "sha256:one", "agree": ["de-1"], "differ": ["fr-1"]}
    world.add(
        "server", RecordType.ROUND, {"round": body["round"] | {"outer_digests": published, "settlement": settled}}
    )
    with world.log(tmp_path) as log:
        made = build_report(partner="de", period=b.PERIOD, log=log, sites=world.sites, trust=world.trust,
                            key=world.keys["server"], made_ms=1_777_000_000_123)  # fmt: skip
    (row,) = made["figures"]["rounds"]
    assert (row["outer_digest"], row["evidence"]) == ("sha256:one", "declared")


def test_the_stated_tolerance_is_the_most_a_record_can_grant_itself() -> None:
    said = replace(redone(1, distance=0.5), tolerance=(0.9).hex())
    assert not said.holds
    assert replace(said, distance=(0.1).hex()).holds
    assert not replace(said, distance="nan").holds
    with pytest.raises(ValueError, match="none of those"):
        replace(said, drawn=(2,))


def test_what_a_certificate_says_of_the_rounds_before_is_what_they_left(tmp_path: Path) -> None:
    rule = ScreenRule(quarantine=2)
    guarded = PARAMS | {"outer": PARAMS["outer"] | {"screen": to_json(rule)}}
    first = first_standing(rule, 1)
    assert first is not None
    left = replace(first, norms=((1.5).hex(),) * 2)
    for standings, why in (
        ((first, left), ""),
        ((first, replace(left, refused=(("fr-1", 2),))), "the round before left"),
        ((replace(first, refused=(("fr-1", 2),)),), "the round before left"),
        ((None,), "the round before left"),
    ):
        world = b.World()
        job(world, JOB, params=guarded)
        for number, standing in enumerate(standings, start=1):
            world.round(JOB, number, {"de-1": 3000, "fr-1": 1000}, standing=standing)
        if not why:
            assert len(report(world, tmp_path / "held")["figures"]["rounds"]) == 2
            continue
        with pytest.raises(VerificationError, match=why):
            report(world, tmp_path / f"{len(standings)}{standings[-1] is None}")
