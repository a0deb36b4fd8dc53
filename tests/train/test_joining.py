"""A fourth site joins three in mid-training: it begins with what they hold, and counts from then on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from consortium.domain.pretraining import PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Commit, Round, RoundPhase, Ruling
from consortium.train import joining
from consortium.train.book import RoundBook
from consortium.train.joining import MOST_GIVEN, Joining
from consortium.train.keep import Keep, OuterState
from consortium.train.peers import Peers
from consortium.train.replay import kept_params, replay
from tests.train.conftest import PARAMS
from tests.train.hub import JOB, Hub, Line
from tests.train.test_disputes import damage_momentum
from tests.train.test_leg import SITES, CrashError, Site, digests, federation, replace_site, together

pytestmark = pytest.mark.integration
FOUR = ("at-1", *SITES)
"""The site that is added comes first in order: nobody may take it for the one that draws the parameters."""
GUARDED = {"clip": 2.0, "clip_window": 9, "quarantine": 3}
OUTER = {**PARAMS["outer"], "rounds": 4, "keep_received": -1, "screen": GUARDED}


def trained(leg: Any, rounds: int = 2, **more: int) -> list[Site]:
    """Return the three sites after their first rounds, with peers as they were."""
    hub = Hub(SITES, screen=ScreenRule(**GUARDED), fragments=more.get("fragments", 1))
    sites = [Site(hub, *leg(site, SITES, params={**PARAMS, "outer": OUTER | more})) for site in SITES]
    short = [replace_site(site, rounds) for site in sites]
    for site in short:
        site.context = replace(site.context, params={**PARAMS, "outer": OUTER | more | {"rounds": rounds}})
    together(short)
    assert len(digests(short)) == 1
    return sites


def joined(leg: Any, sites: list[Site], **more: int) -> list[Site]:
    """Return a new attempt of them with a fourth site."""
    hub = sites[0].hub
    hub.sites = FOUR
    new = Site(hub, *leg("at-1", FOUR, params={**PARAMS, "outer": OUTER | more}))
    return [new, *(Site(hub, replace(site.context, peers=FOUR), site.store) for site in sites)]


def test_a_site_that_joins_holds_what_the_others_hold_and_counts_from_the_next_round_on(leg):
    sites = joined(leg, trained(leg))
    together(sites)
    assert len(digests(sites)) == 1
    hub, new = sites[0].hub, sites[0]
    assert [hub.rounds[k].phase for k in (1, 2, 3, 4)] == [RoundPhase.CLOSED] * 4
    counted = {k: [part.site for part in hub.rounds[k].certificate.contributions] for k in (1, 2, 3, 4)}
    assert counted == {1: list(SITES), 2: list(SITES), 3: list(FOUR), 4: list(FOUR)}
    assert hub.agreed["outer/4"].keys() == set(FOUR)
    assert hub.agreed["outer/2"]["at-1"] == hub.agreed["outer/2"]["de-1"], "it says with what it began"
    tokens = sum(part.tokens for k in (3, 4) for part in hub.rounds[k].certificate.contributions if part.site == "at-1")
    assert new.final.tokens == tokens == 2 * 4 * 4 * 16
    size = len(new.final.outer)
    assert (Keep(new.store, JOB).outer(4, size).momentum == Keep(sites[1].store, JOB).outer(4, size).momentum).all()
    sent = {(one.name, one.sender, one.recipients) for one, _ in hub.artifacts if one.round == 2 and "-2" in one.name}
    given = {one for one in sent if "at-1" in one[2]}
    assert given == {("outer-2", "de-1", ("at-1",)), ("momentum-2", "de-1", ("at-1",))}
    here, there = (replay(site.store, JOB, kept_params(site.store, JOB)) for site in sites[:2])
    assert [one.result for one in here] == ["cannot", "cannot", "verified", "verified"]
    assert all(
        "the contribution of" in what or "the outer state after" in what for one in here[:2] for what in one.what
    )
    assert [one.result for one in there] == ["verified"] * 4


def test_what_was_committed_before_it_came_is_sent_to_the_site_that_joins(leg):
    sites = trained(leg)
    ahead = Site(sites[0].hub, sites[0].context, sites[0].store)
    with pytest.raises(CrashError):
        ahead._run(("commit", 3, "after"))
    sites = joined(leg, sites)
    hub = sites[0].hub
    hub.rounds[3] = replace(hub.rounds[3], expected=FOUR)
    together(sites)
    assert len(digests(sites)) == 1
    assert all(verdict.accept for verdict in hub.rounds[3].verdicts)
    assert [part.site for part in hub.rounds[3].certificate.contributions] == list(FOUR)
    sent = [one.recipients for one, _ in hub.artifacts if (one.sender, one.name) == ("de-1", "pseudo-gradient-3")]
    assert sent == [("at-1", "fr-1", "uy-1")], "once the commits are fixed, and to whom joined meanwhile as well"


def test_it_takes_the_momentum_that_most_signed_whoever_sends_first(leg, monkeypatch):
    monkeypatch.setattr(joining, "PASS_ON_S", 0.2)
    sites = trained(leg)
    damage_momentum(sites[0], 2)
    sites = joined(leg, sites)
    together(sites)
    assert len(digests(sites)) == 1
    hub = sites[0].hub
    assert len(set(hub.agreed["momentum/2"].values())) == 2
    assert hub.rounds[3].settlement is not None
    assert hub.rounds[3].settlement.differ == ("de-1",), "the joining site began with what holds"


def test_it_waits_for_no_word_of_sites_that_were_withdrawn_when_it_came(leg):
    new, *others = joined(leg, trained(leg))
    hub, pair = new.hub, ("at-1", "fr-1")
    gone = [Ruling(job=JOB, round=3, site=site, action="withdraw", reason="", by="") for site in ("de-1", "uy-1")]
    hub.sites = pair
    hub.rounds[3] = Round(
        job=JOB, number=3, phase=RoundPhase.OPEN, expected=pair, rulings=tuple(gone), outer_digests={}
    )
    left = [Site(hub, replace(one.context, peers=pair), one.store) for one in (new, others[1])]
    together(left)
    assert [part.site for part in hub.rounds[4].certificate.contributions] == list(pair)
    assert len(digests(left)) == 1


def test_it_joins_where_fragments_are_applied_late(leg):
    late = {"fragments": 2, "delay": 2}
    sites = trained(leg, **late)
    sites = joined(leg, sites, **late)
    together(sites)
    assert len(digests(sites)) == 1
    assert [len(sites[0].hub.rounds[k].certificate.contributions) for k in (1, 2, 3, 4)] == [3, 3, 4, 4]


def test_it_goes_on_from_the_others_optimiser_where_that_is_shared(leg):
    sites = joined(leg, trained(leg, share="optimizer"), share="optimizer")
    together(sites)
    assert len(digests(sites)) == 1
    assert [len(sites[0].hub.rounds[k].certificate.contributions) for k in (1, 2, 3, 4)] == [3, 3, 4, 4]
    states = [Keep(site.store, JOB).outer(4, len(site.final.outer)).moments for site in sites]
    for name, vector in states[0].vectors.items():
        assert all((one.vectors[name] == vector).all() for one in states)


def test_it_joins_after_a_crash_wherever_that_was(leg):
    for crash in (("joining/1", 0, "after"), ("outer/1", 0, "before")):
        sites = joined(leg, trained(leg, rounds=1))
        sites[0].crash = crash
        together(sites)
        assert len(digests(sites)) == 1
        assert [len(sites[0].hub.rounds[k].commits) for k in (1, 2, 3, 4)] == [3, 4, 4, 4]


def test_a_site_that_joins_believes_no_certificate_that_does_not_follow(leg):
    sites = trained(leg)
    hub = sites[0].hub
    certificate = hub.rounds[1].certificate
    hub.rounds[1] = replace(
        hub.rounds[1], certificate=replace(certificate, contributions=certificate.contributions[1:])
    )
    new = joined(leg, sites)[0]
    together([new])
    assert "does not follow from the verdicts" in str(new.fault)
    assert not Keep(new.store, JOB).rounds()


def test_a_site_that_asks_after_every_round_is_given_few_states_and_none_once_it_committed(leg):
    (site,) = federation(leg, ("fr-1",))
    hub, line = site.hub, Line(site.hub, *leg("fr-1", ("at-1", "fr-1")))
    line.agree("outer/0", "sha256:begun")
    book, params = RoundBook(line.store(), JOB), PretrainConfig.of(PARAMS)

    def given(commits: int) -> list[int]:
        hub.artifacts.clear()
        giver = Joining(line, Peers(line, 4), book, params, 4)
        for number in range(1, 9):
            state = OuterState(
                round=number, digest=f"sha256:{number}", outer=np.ones(4, np.float32), momentum=np.ones(4, np.float32),
                position=0, tokens=0, moments=None,
            )  # fmt: skip
            made = Commit(
                job=JOB, round=number, site="at-1", tokens=1, steps=1, digest=f"sha256:a{number}", norm="0x1p+0",
                loss="0x1p+0",
            )  # fmt: skip
            made_here = (made,) if number == commits else ()
            book.save(Round(job=JOB, number=number, phase=RoundPhase.CLOSED, expected=(), commits=made_here))
            hub.agree("at-1", f"joining/{number}", state.digest)
            giver.welcome(state)
            giver.welcome(state)
        return [one.round for one, _ in hub.artifacts if one.name.startswith("outer-")]

    assert given(commits=0) == [1, 2, 3] == list(range(1, MOST_GIVEN + 1))
    assert given(commits=2) == [1]


def test_what_sites_that_came_later_say_of_the_beginning_keeps_nobody_from_joining(leg):
    sites = trained(leg)
    sites[0].hub.agree("aa-1", "outer/0", "sha256:" + "0" * 64)
    sites = joined(leg, sites)
    together(sites)
    assert len(digests(sites)) == 1


def test_a_site_that_took_part_and_keeps_nothing_does_not_join(leg):
    sites = joined(leg, trained(leg))
    together(sites)
    lost = Site(sites[0].hub, *leg("at-1", FOUR, params=sites[0].context.params))
    together([lost])
    assert "at-1 committed to round 3, but keeps no state" in str(lost.fault)
