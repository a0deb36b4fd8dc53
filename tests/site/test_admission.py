from __future__ import annotations

from dataclasses import replace

import pytest

from consortium.domain.job import Epoch
from consortium.domain.partner import Cotenancy
from consortium.domain.protocol import LegCommand, LegOffer
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
