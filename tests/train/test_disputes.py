"""Outer states that differ between sites: recomputed, settled, named, repaired; and where nobody can tell, the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.training import Round, RoundPhase, Ruling
from consortium.errors import VerificationError
from consortium.train.keep import Keep
from consortium.train.replay import kept_params, replay
from tests.train.conftest import PARAMS
from tests.train.hub import JOB, Hub
from tests.train.test_leg import SITES, Site, digests, federation, replace_site, together

pytestmark = pytest.mark.integration
WRONG = "sha256:" + "0" * 64


class Misprinting(Hub):
    """What uy-1 publishes after round 2 is not what it holds."""

    def agree(self, site: str, topic: str, value: str) -> None:
        super().agree(site, topic, WRONG if (site, topic) == ("uy-1", "outer/2") else value)


@pytest.fixture(scope="module")
def calm() -> dict[str, str]:
    """The final digest of an undisturbed run, once there is one."""
    return {}


def undisturbed(leg: Any, calm: dict[str, str]) -> str:
    if not calm:
        sites = federation(leg)
        together(sites)
        calm["digest"] = digests(sites).pop()
    return calm["digest"]


def damage_momentum(site: Site, number: int) -> None:
    """Leave a state in the store that reads back whole and is wrong."""
    keep = Keep(site.store, JOB)
    origin, outer = keep.measured(number)
    state = keep.outer(number, len(outer))
    keep.save_outer(replace(state, momentum=-state.momentum), origin)


def test_a_site_that_published_what_it_does_not_hold_is_named_and_finds_so_itself(leg, calm, capfd):
    sites = federation(leg, params={**PARAMS, "outer": {**PARAMS["outer"], "keep_received": -1}})
    hub = Misprinting(SITES)
    for site in sites:
        site.hub = hub
    together(sites)
    assert digests(sites) == {undisturbed(leg, calm)}
    settled = hub.rounds[2].settlement
    assert settled is not None
    assert (settled.differ, settled.agree) == (("uy-1",), SITES)
    assert hub.rounds[3].phase is RoundPhase.CLOSED
    assert f"but uy-1 {WRONG}" in capfd.readouterr().err
    assert not [one for one, _ in hub.artifacts if one.name == "outer-2"], "nobody had to be sent the state"
    found = replay(sites[0].store, JOB, kept_params(sites[0].store, JOB))
    assert [one.result for one in found] == ["verified"] * 3
    assert f"uy-1 published {WRONG}" in found[1].what[0], "who was wrong stays on record"


def test_a_site_whose_store_was_damaged_is_named_and_takes_the_state_that_holds_from_a_peer(leg):
    sites = federation(leg)
    together([replace_site(site, rounds=1) for site in sites])
    damage_momentum(sites[1], 1)
    together(sites)
    assert len(digests(sites)) == 1
    settled = sites[0].hub.rounds[2].settlement
    assert settled is not None
    assert (settled.differ, settled.agree) == (("fr-1",), ("de-1", "uy-1"))
    sent = [one for one, _ in sites[0].hub.artifacts if one.artifact_class == "outer_state" and one.round == 2]
    assert {(one.name, one.sender, one.recipients) for one in sent} == {
        ("outer-2", "de-1", ("fr-1",)),
        ("momentum-2", "de-1", ("fr-1",)),
    }
    assert len(sites[0].hub.rounds[3].certificate.contributions) == 3, "it takes part again at once"
    holds = Keep(sites[0].store, JOB).outer(3, len(sites[0].final.outer))
    assert (Keep(sites[1].store, JOB).outer(3, len(holds.outer)).momentum == holds.momentum).all()


def test_of_two_sites_that_differ_nobody_can_tell(leg):
    sites = federation(leg, ("de-1", "fr-1"))
    together([replace_site(site, rounds=1) for site in sites])
    damage_momentum(sites[1], 1)
    together(sites)
    assert sites[0].hub.rounds[2].phase is RoundPhase.DISPUTED
    for site in sites:
        assert isinstance(site.fault, VerificationError)


class Withdrawing(Hub):
    """uy-1 was withdrawn from round 2 on."""

    def round(self, number: int) -> Round:
        ruling = Ruling(job=JOB, round=2, site="uy-1", action="withdraw", reason="why", by="fr/bruno")
        return replace(super().round(number), rulings=(ruling,) if number > 1 else ())


def test_a_site_that_was_withdrawn_is_sent_nothing_more_and_keeps_what_it_gave(leg):
    sites = federation(leg)
    hub = Withdrawing(SITES)
    for site in sites:
        site.hub = hub
    together([replace_site(site, rounds=1) for site in sites])
    hub.lose("uy-1")
    hub.rounds[2] = Round(job=JOB, number=2, phase=RoundPhase.OPEN, expected=SITES[:2])
    together(sites[:2])
    assert len(digests(sites[:2])) == 1
    sent = {(one.sender, one.round): one.recipients for one, _ in hub.artifacts if one.artifact_class != "outer_state"}
    assert sent["de-1", 1] == ("fr-1", "uy-1")
    assert sent["de-1", 2] == ("fr-1",)
    assert sent["fr-1", 2] == ("de-1",)
    assert [part.site for part in hub.rounds[1].certificate.contributions] == list(SITES)
    assert [part.site for part in hub.rounds[2].certificate.contributions] == ["de-1", "fr-1"]


def test_a_site_that_takes_no_part_in_a_round_disputes_nothing(leg, calm):
    sites = federation(leg)
    sites[0].hub.agreed["outer/1"] = {"zz-1": WRONG}
    together(sites)
    assert digests(sites) == {undisturbed(leg, calm)}
    assert sites[0].hub.rounds[1].settlement is None
