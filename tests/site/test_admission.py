from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass, Dataset, Description
from consortium.domain.job import Epoch
from consortium.domain.partner import Cotenancy
from consortium.domain.protocol import LegCommand, LegOffer, Voucher
from consortium.keys.canonical import canonical
from consortium.keys.signing import SigningKey
from consortium.keys.trust import Trust
from consortium.site.agent.admission import Admission, Refusal, capacity
from consortium.site.db import SiteDb
from consortium.site.documents import Documents
from consortium.site.legs import LegTable, new_leg
from tests import builders
from tests.site.world import World, now_ms


@pytest.fixture
def admission(world: World) -> Admission:
    settings = world.settings()
    return Admission(
        site=settings.site,
        code_digest=world.code,
        jobs_dir=world.jobs_dir,
        documents=Documents(world.documents, "fr", Trust.load(settings.trust_path)),
        table=LegTable(SiteDb(settings.home)),
    )


def judge(admission: Admission, offer: LegOffer) -> Refusal | None:
    return admission.judge(offer, now_ms(), "")


def person(name: str, role: str, key: SigningKey, header: str = "partner: {}\npeople:\n") -> str:
    return header.format(name[:2]) + f"  - {{id: {name}, name: X, roles: [{role}], signing_key: '{key.public}'}}\n"


def hold(admission: Admission, offer: LegOffer) -> None:
    with admission.table.db.write() as write:
        admission.table.add(new_leg(offer), now_ms() + 15_000, write)


def test_a_good_offer_is_accepted(world: World, admission: Admission) -> None:
    assert judge(admission, world.offer()) is None
    assert judge(admission, world.offer(kind="pretrain", peers=("de-1", "fr-1"), min_sites=2)) is None


@pytest.mark.parametrize("epoch", [Epoch(incarnation=2, counter=5), Epoch(incarnation=2, counter=4)])
def test_an_epoch_of_a_leg_is_never_taken_again_nor_an_older_one(
    world: World, admission: Admission, epoch: Epoch
) -> None:
    hold(admission, world.offer(epoch=Epoch(incarnation=2, counter=5)))
    refusal = judge(admission, world.offer(epoch=epoch))
    assert refusal is not None
    assert refusal.code == "epoch"
    assert judge(admission, world.offer(epoch=Epoch(incarnation=2, counter=6))) is None


def test_an_offer_of_an_older_server_incarnation_is_refused_for_any_leg(world: World, admission: Admission) -> None:
    hold(admission, world.offer(1, epoch=Epoch(incarnation=3, counter=1)))
    refusal = judge(admission, world.offer(2, epoch=Epoch(incarnation=2, counter=99)))
    assert refusal is not None
    assert refusal.code == "epoch"
    assert admission.table.highest() == Epoch(incarnation=3, counter=1)


def test_an_epoch_stopped_before_it_arrived_is_refused_when_it_does(world: World, admission: Admission) -> None:
    offer = world.offer()
    admission.table.fence(LegCommand(leg=offer.leg, epoch=offer.epoch))
    (report,) = admission.table.fenced()
    assert report.state.value == "stopped"
    refusal = judge(admission, offer)
    assert refusal is not None
    assert refusal.code == "epoch"
    admission.table.acknowledge([LegCommand(leg=offer.leg, epoch=offer.epoch)])
    assert admission.table.fenced() == []


def test_a_changed_spec_is_refused(world: World, admission: Admission) -> None:
    offer = world.offer()
    forged = replace(offer.spec, spec=replace(offer.spec.spec, purpose="public-service"))
    refusal = judge(admission, replace(offer, spec=forged))
    assert refusal is not None
    assert refusal.code == "signature"


@pytest.mark.parametrize(
    "wish",
    [{"preemptible": False}, {"deadline_ms": 1}, {"checkpoint_every_s": 60}, {"after": (builders.new_id("job", 7),)}],
)
def test_wishes_are_signed_like_the_rest_of_a_spec(world: World, admission: Admission, wish: dict[str, Any]) -> None:
    assert judge(admission, world.offer(1, **wish)) is None
    plain = world.offer(2)
    refusal = judge(admission, replace(plain, spec=replace(plain.spec, spec=replace(plain.spec.spec, **wish))))
    assert refusal is not None
    assert refusal.code == "signature"


def test_a_draft_as_a_dry_run_sends_it_is_taken_by_no_site(world: World, admission: Admission) -> None:
    offer = world.offer()
    draft = replace(offer.spec, spec=replace(offer.spec.spec, nonce=""), signature="")
    refusal = judge(admission, replace(offer, spec=draft))
    assert refusal is not None
    assert refusal.code == "signature"


def test_somebody_in_no_roster_is_refused(world: World, admission: Admission) -> None:
    refusal = judge(admission, world.offer(submitter="fr/mallory"))
    assert refusal is not None
    assert refusal.code == "roster"
    assert "fr/mallory" in refusal.reason


def test_a_job_cannot_come_again_with_another_signed_spec(world: World, admission: Admission) -> None:
    first = world.offer(1)
    hold(admission, first)
    later = replace(world.offer(2), job=first.job)
    refusal = judge(admission, later)
    assert refusal is not None
    assert refusal.code == "signature"
    assert "another signed spec" in refusal.reason


def test_a_training_comes_again_with_sites_added_and_not_with_fewer(world: World, admission: Admission) -> None:
    def offer(number: int, peers: tuple[str, ...], nonce: str = "0" * 32) -> LegOffer:
        made = world.offer(number, kind="pretrain", peers=peers, sites=peers, nonce=nonce)
        return replace(made, job=world.offer(1).job)

    both = ("de-1", "fr-1")
    hold(admission, offer(1, ("fr-1",)))
    assert judge(admission, offer(2, both)) is None
    hold(admission, offer(2, both))
    for other in (offer(3, ("fr-1",)), offer(3, both, nonce="1" * 32)):
        refusal = judge(admission, other)
        assert refusal is not None
        assert "another signed spec" in refusal.reason


@pytest.mark.parametrize("field", ["job", "leg", "attempt"])
@pytest.mark.parametrize("value", ["../../../etc", "job-1/../x", "", "leg-1@2"])
def test_an_id_that_is_none_never_becomes_a_path(world: World, admission: Admission, field: str, value: str) -> None:
    refusal = judge(admission, replace(world.offer(), **{field: value}))
    assert refusal is not None
    assert refusal.code == "signature"


def test_a_peer_the_submitter_did_not_sign_for_is_refused(world: World, admission: Admission) -> None:
    refusal = judge(admission, world.offer(kind="pretrain", peers=("de-1", "fr-1"), sites=("fr-1",)))
    assert refusal is not None
    assert refusal.code == "signature"
    assert "de-1" in refusal.reason


def test_a_signed_spec_cannot_come_as_a_second_job(world: World, admission: Admission) -> None:
    offer = world.offer(1)
    hold(admission, offer)
    other = world.offer(2)
    refusal = judge(admission, replace(other, spec=offer.spec))
    assert refusal is not None
    assert refusal.code == "signature"
    assert offer.job in refusal.reason


def test_code_the_partner_did_not_install_is_refused(world: World, admission: Admission) -> None:
    refusal = judge(admission, world.offer(code_digest="sha256:" + "1" * 64))
    assert refusal is not None
    assert refusal.code == "code"


def test_a_purpose_the_own_policy_does_not_allow_is_refused_with_clause_file_and_line(
    world: World, admission: Admission
) -> None:
    refusal = judge(admission, world.offer(purpose="border-control"))
    assert refusal is not None
    assert refusal.code == "policy"
    assert refusal.denial["clause"].startswith("fr/purposes/")
    assert refusal.denial["file"] == "configs/policy/fr.yaml"
    assert refusal.denial["line"] > 0


def test_a_model_this_site_took_part_in_is_judged_by_its_own_rules_whatever_the_server_says(
    world: World, admission: Admission
) -> None:
    sick = builders.dataset("sick-fr", categories=("health-records",))
    first = world.offer(1, kind="pretrain", inputs=(sick,), purpose="health-research")
    hold(admission, first)
    params = {"start": {"job": first.job}}
    onward = world.offer(2, kind="pretrain", params=params, peers=("de-1", "fr-1"), min_sites=2)
    refusal = judge(admission, onward)
    assert refusal is not None
    assert refusal.denial["clause"] == "fr/categories/1", "the server named nobody behind the model"
    hold(admission, onward)
    refusal = judge(admission, world.offer(3, kind="pretrain", params={"start": {"job": onward.job}}))
    assert refusal is not None
    assert refusal.denial["clause"] == "fr/categories/1", "nor what that one goes back to"
    elsewhere = {"start": {"job": builders.new_id("job", 99)}}
    assert judge(admission, world.offer(4, kind="pretrain", params=elsewhere)) is None
    forbidden = world.offer(5, kind="pretrain", params=elsewhere, purpose="surveillance")
    assert "surveillance" in getattr(judge(admission, replace(forbidden, model_peers=("fr-1",))), "reason", "")


def test_an_expired_policy_stops_everything_and_a_new_one_is_read_without_a_restart(
    world: World, admission: Admission
) -> None:
    path = world.documents / "policy-fr.json"
    good = path.read_bytes()
    world.sign("policy", "fr", "partner: fr", "policy-fr", expires_ms=now_ms() - 1)
    refusal = judge(admission, world.offer())
    assert refusal is not None
    assert refusal.code == "expired"
    assert "policy of fr" in refusal.reason
    path.write_bytes(good)
    assert judge(admission, world.offer()) is None


def test_a_half_written_policy_file_stops_everything(world: World, admission: Admission) -> None:
    path = world.documents / "policy-fr.json"
    path.write_text(path.read_text()[:50])
    refusal = judge(admission, world.offer())
    assert refusal is not None
    assert refusal.code == "expired"


def test_inputs_that_are_not_in_the_signed_spec_are_refused(world: World, admission: Admission) -> None:
    stranger = builders.dataset()
    refusal = judge(admission, replace(world.offer(), inputs=(stranger,)))
    assert refusal is not None
    assert stranger.id in refusal.reason


LAWS = builders.dataset(categories=("law",))
CHANGES: dict[str, Any] = {
    "id": builders.new_id("ds", 9),
    "name": "laws-of-fr",
    "version": 2,
    "site": "fr-2",
    "territory": "de",
    "artifact_class": ArtifactClass.TOKENS,
    "languages": ("de",),
    "licence": "CC0-1.0",
    "source": "elsewhere",
    "shards": (builders.shard(7),),
    "categories": (),
    "parents": (builders.new_id("ds", 8),),
    "manifest_digest": "sha256:" + "f" * 64,
    "held_out": True,
    "attributes": {"text_bytes": "1"},
    "about": Description(consent_until="2099-01-01"),
}
"""What a lying server could say of LAWS instead."""


def offered_instead(world: World, item: Dataset, change: str) -> LegOffer:
    """An offer of `item`, as its partner described it but for one field."""
    changed = replace(item, **{change: CHANGES[change]})
    offer = world.offer(2, inputs=(item,))
    if changed.id != item.id:  # of another input that the submitter signed for, too
        offer = replace(world.offer(2, inputs=(item, changed)), vouchers=offer.vouchers)
        offer.vouchers[changed.id] = offer.vouchers[item.id]
    return replace(offer, inputs=(changed,))


def wrote(world: World, admission: Admission, *outputs: Dataset, state: str = "succeeded") -> Voucher:
    """Let a leg here end with these outputs; return what the server says of them later."""
    offer = world.offer(1, inputs=(LAWS,))
    hold(admission, offer)
    (leg,) = admission.table.active()
    admission.table.change(leg, state=state, result=to_json({"outputs": outputs, "manifest": {"counts": 1}}))
    return Voucher(leg=offer.leg)


def clean_laws(**changes: Any) -> Dataset:
    given = {"number": 3, "parents": (LAWS.id,), "categories": ("law",), "manifest_digest": "sha256:" + "a" * 64}
    return builders.dataset("laws-fr-clean", artifact_class="clean", **(given | changes))


def test_a_registered_input_is_taken_as_its_registrar_signed_it(world: World, admission: Admission) -> None:
    assert judge(admission, world.offer(inputs=(LAWS, builders.dataset("more", number=4)))) is None


def test_every_field_of_a_dataset_has_its_lie() -> None:
    assert set(CHANGES) == {item.name for item in fields(Dataset)}
    assert all(getattr(LAWS, name) != value for name, value in CHANGES.items())


@pytest.mark.parametrize("change", CHANGES)
def test_a_registered_input_that_the_server_describes_otherwise_is_refused(
    world: World, admission: Admission, change: str
) -> None:
    refusal = judge(admission, offered_instead(world, LAWS, change))
    assert refusal is not None
    assert refusal.code == ("signature" if change == "site" else "inputs")


def test_leaving_out_a_category_opens_nothing(world: World, admission: Admission) -> None:
    records = replace(LAWS, categories=("health-records",))
    honest = judge(admission, world.offer(inputs=(records,)))
    assert honest is not None
    assert honest.denial["clause"].startswith("fr/categories/")
    lying = judge(admission, replace(world.offer(inputs=(records,)), inputs=(replace(records, categories=()),)))
    assert lying is not None
    assert lying.code == "inputs"
    assert "does not hold" in lying.reason


def test_only_a_person_of_the_datasets_partner_registers_it(world: World, admission: Admission) -> None:
    anna, claire = SigningKey.generate(), SigningKey.generate()
    world.sign("roster", "de", person("de/anna", "engineer", anna), "roster-de")
    world.sign("roster", "fr", world.roster() + person("fr/claire", "auditor", claire, header=""), "roster-fr")
    offer = world.offer(inputs=(LAWS,))
    cases = {
        "de/anna": (anna, "which is fr's"),
        "fr/claire": (claire, "neither engineer nor admin"),
        "fr/mallory": (SigningKey.generate(), "in no partner's roster"),
        "fr/amelie": (SigningKey.generate(), "does not hold"),
    }
    for name, (key, words) in cases.items():
        voucher = Voucher(person=name, signature=key.sign(canonical(LAWS)))
        refusal = judge(admission, replace(offer, vouchers={LAWS.id: voucher}))
        assert refusal is not None, name
        assert refusal.code == "inputs"
        assert words in refusal.reason


def test_an_input_is_taken_to_the_end_of_the_last_day_of_its_consent(world: World, admission: Admission) -> None:
    laws = replace(LAWS, about=Description(consent_until="2026-03-31"))
    offer, day_ms = world.offer(inputs=(laws,)), 86_400_000
    end_ms = 1_774_915_200_000 + day_ms  # 2026-04-01T00:00Z
    assert admission._inputs(offer, end_ms - 1) is None
    refusal = admission._inputs(offer, end_ms)
    assert refusal is not None
    assert (refusal.code, refusal.reason) == ("consent", "the consent to use laws-fr@1 ended on 2026-03-31")


def test_an_input_for_which_nobody_vouches_is_refused(world: World, admission: Admission) -> None:
    offer = world.offer(inputs=(LAWS,))
    for vouchers in ({}, {LAWS.id: Voucher()}, {LAWS.id: Voucher(person="fr/amelie")}):
        refusal = judge(admission, replace(offer, vouchers=vouchers))
        assert refusal is not None
        assert refusal.code == "inputs"


def test_an_input_that_a_leg_here_wrote_is_taken_as_it_was_reported(world: World, admission: Admission) -> None:
    voucher = wrote(world, admission, clean_laws(), clean_laws(number=5))
    for item in (clean_laws(), clean_laws(version=4), clean_laws(number=5)):  # versions are the server's to give
        assert judge(admission, replace(world.offer(2, inputs=(item,)), vouchers={item.id: voucher})) is None


@pytest.mark.parametrize("change", sorted({*CHANGES} - {"version"}))
def test_an_input_that_a_leg_here_wrote_otherwise_is_refused(world: World, admission: Admission, change: str) -> None:
    voucher = wrote(world, admission, clean_laws())
    offer = offered_instead(world, clean_laws(), change)
    refusal = judge(admission, replace(offer, vouchers={item.id: voucher for item in offer.inputs}))
    assert refusal is not None
    assert refusal.code == ("signature" if change == "site" else "inputs")
    assert change in refusal.reason or change in ("id", "site")


def test_an_input_is_the_work_of_the_leg_that_is_named_and_that_succeeded(world: World, admission: Admission) -> None:
    item = clean_laws()
    voucher = wrote(world, admission, item, state="failed")
    for named in (voucher, Voucher(leg=builders.new_id("leg", 77))):
        refusal = judge(admission, replace(world.offer(2, inputs=(item,)), vouchers={item.id: named}))
        assert refusal is not None
        assert refusal.code == "inputs"
        assert "no record of writing it" in refusal.reason


def test_an_input_comes_once(world: World, admission: Admission) -> None:
    refusal = judge(admission, replace(world.offer(inputs=(LAWS,)), inputs=(LAWS, LAWS)))
    assert refusal is not None
    assert "twice" in refusal.reason


def test_gpus_are_counted_node_by_node(world: World, admission: Admission) -> None:
    hold(admission, world.offer(1, gpus=6))
    refusal = judge(admission, world.offer(2, gpus=3))
    assert refusal is not None
    assert refusal.code == "capacity"
    assert "2 of 8" in refusal.reason
    assert judge(admission, world.offer(2, gpus=2)) is None
    refusal = judge(admission, world.offer(2, gpus=2, nodes={"n9": 2}))
    assert refusal is not None
    assert "n9" in refusal.reason


def test_an_ended_leg_frees_its_gpus(world: World, admission: Admission) -> None:
    hold(admission, world.offer(1, gpus=8))
    (held,) = admission.table.active()
    admission.table.change(held, state="stopped")
    assert judge(admission, world.offer(2, gpus=8)) is None


def test_cotenancy_keeps_jobs_apart(world: World) -> None:
    mine, theirs = new_leg(world.offer(1)), world.offer(2, account="de")
    assert capacity(world.site(), [mine], theirs) is not None
    assert capacity(world.site(), [mine], world.offer(2)) is None
    assert capacity(replace(world.site(), cotenancy=Cotenancy.OPEN), [mine], theirs) is None
    assert capacity(replace(world.site(), cotenancy=Cotenancy.EXCLUSIVE), [mine], world.offer(2)) is not None


def test_an_unfit_site_refuses_everything(world: World, admission: Admission) -> None:
    refusal = admission.judge(world.offer(), now_ms(), "log rolled back: …")
    assert refusal is not None
    assert refusal.reason == "log rolled back: …"
