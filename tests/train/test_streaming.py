"""Legs that exchange parts of the model in turn and go on training meanwhile: one outer state, whatever happens."""

from __future__ import annotations

import gc
import json
import time
import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest

from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.errors import UsageError, VerificationError
from consortium.train import beside
from consortium.train.again import re_execute
from consortium.train.codes import Code
from consortium.train.fragments import Plan
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.leg import FederatedLeg
from consortium.train.outer import vector_digest
from consortium.train.replay import kept_params, replay
from consortium.train.tokens import open_sequences
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB, Hub
from tests.train.test_leg import SITES, CrashError, CrashingLine, Site, digests, federation, together

pytestmark = pytest.mark.integration
ROUNDS = 4


def streamed(**changes: Any) -> dict[str, Any]:
    """Two fragments, applied two steps after they were sent, in a code that drops something."""
    outer = {"rounds": ROUNDS, "fragments": 2, "delay": 2, "mix": 0.5, "code": "int4", "keep_received": -1}
    return {**PARAMS, "outer": {**PARAMS["outer"], **outer, **changes}}


def stream(
    leg: Any, sites: tuple[str, ...] = SITES, screen: dict[str, Any] | None = None, **changes: Any
) -> list[Site]:
    made = federation(leg, sites, params=streamed(**changes, **({"screen": screen} if screen else {})))
    hub: Hub = made[0].hub
    hub.fragments = streamed(**changes)["outer"]["fragments"]
    hub.screen = ScreenRule(**(screen or {}))
    return made


def plan_of(site: Site) -> Plan:
    layout = Keep(site.store, JOB).measured(0)[0].layout
    return Plan.of(layout, PretrainConfig.of(site.context.params).outer)


@pytest.fixture(scope="module")
def calm() -> dict[str, Any]:
    """What an undisturbed run came to, against which disturbed ones are held."""
    return {}


def undisturbed(leg: Any, calm: dict[str, Any]) -> dict[str, Any]:
    if not calm:
        sites = stream(leg, SITES[:2])
        together(sites)
        (calm["digest"],) = digests(sites)
        calm["sites"] = sites
        calm["commits"] = sorted(sites[0].hub.commits_seen)
        calm["residuals"] = [vector_digest(site.final.residual) for site in sites]
    return calm


def test_every_round_changes_its_own_fragment_and_all_sites_agree(leg, calm):
    sites = undisturbed(leg, calm)["sites"]
    hub, plan, size = sites[0].hub, plan_of(sites[0]), len(sites[0].final.outer)
    states = [Keep(sites[0].store, JOB).outer(k, size) for k in range(ROUNDS + 1)]
    for number in range(1, ROUNDS + 1):
        assert len(hub.rounds[number].certificate.contributions) == 2
        before, after = states[number - 1], states[number]
        part, other = plan.fragment(number), plan.fragment(number + 1)
        for was, now in ((before.outer, after.outer), (before.momentum, after.momentum)):
            assert (part.take(was) != part.take(now)).mean() > 0.9
            np.testing.assert_array_equal(other.take(was), other.take(now))
        sent = {
            len(data)
            for artifact, data in hub.artifacts
            if artifact.artifact_class is ArtifactClass.PSEUDO_GRADIENT and artifact.round == number
        }
        assert sent == {plan_code(sites[0]).bytes_for(part.size)}
    assert states[1].ahead.steps == 2, "two steps of round 2 were done while round 1 was judged"
    assert sites[0].final.position == ROUNDS * 4 * 4
    assert {commit.steps for commit in hub.rounds[2].commits} == {4}
    losses = [float.fromhex(commit.loss) for k in (1, ROUNDS) for commit in hub.rounds[k].commits]
    assert sum(losses[2:]) < sum(losses[:2])


def plan_code(site: Site) -> Code:
    return Code.of(PretrainConfig.of(site.context.params).outer)


def test_an_auditor_recomputes_fragments_and_the_steps_between_them(leg, calm, tmp_path):
    site = undisturbed(leg, calm)["sites"][1]
    found = replay(site.store, JOB, kept_params(site.store, JOB))
    assert [(one.result, one.what) for one in found] == [("verified", ())] * ROUNDS
    params = PretrainConfig.of(site.context.params)
    text = open_sequences(site.store, site.context.inputs, params.model.context, VOCAB)
    for number in (1, 4):
        worker = InnerWorker(params, VOCAB, text, site.context.site)
        done = re_execute(Keep(site.store, JOB), worker, params, number, worker.layout.size)
        assert (done.same_bits, done.holds) == (True, True)


def test_steps_that_a_site_says_it_did_before_are_done_again_too(leg, calm, tmp_path):
    site = undisturbed(leg, calm)["sites"][1]
    params = PretrainConfig.of(site.context.params)
    text = open_sequences(site.store, site.context.inputs, params.model.context, VOCAB)
    keep, key = Keep(site.store, JOB), f"jobs/{JOB}/outer/3/state.json"
    state, whole = keep.outer(3, sum(keep.origin(3).layout.sizes)), site.store.get(key)
    elsewhere = keep._put_vector(f"jobs/{JOB}/outer/3", state.ahead.local + np.float32(1))
    told = json.loads(whole)
    try:
        for forged, holds in (
            ({"local": {"key": elsewhere.key, "digest": elsewhere.digest}}, True),  # nobody asks for them
            ({"steps": 4}, False),
            ({"steps": 0}, False),
        ):
            site.store.put(key, json.dumps(told | forged).encode())
            worker = InnerWorker(params, VOCAB, text, site.context.site)
            if holds:
                assert re_execute(Keep(site.store, JOB), worker, params, 4, worker.layout.size).same_bits
                continue
            with pytest.raises(VerificationError, match="were done already"):
                re_execute(Keep(site.store, JOB), worker, params, 4, worker.layout.size)
    finally:
        site.store.put(key, whole)


@pytest.mark.parametrize(
    "crash",
    [
        ("commit", 2, "after"),
        ("verdicts", 3, "before"),
        ("outer/2", 0, "before"),
        ("outer/2", 0, "after"),
    ],
)
def test_a_crash_beside_the_training_changes_no_bit(leg, calm, crash):
    expected = undisturbed(leg, calm)
    sites = stream(leg, SITES[:2])
    for site in sites:
        site.crash = crash
    together(sites)
    assert digests(sites) == {expected["digest"]}
    assert sorted(sites[0].hub.commits_seen) == expected["commits"]
    assert [vector_digest(site.final.residual) for site in sites] == expected["residuals"]


def test_what_was_still_to_be_written_when_the_process_died_is_done_again(leg, calm):
    """Writing goes on behind the steps: a crash may lose the state after a round that was published already."""
    expected = undisturbed(leg, calm)
    sites = stream(leg, SITES[:2])

    def die_and_live(site: Site) -> None:
        with pytest.raises(CrashError):
            site._run(("commit", 3, "before"))
        for key in ("outer/2/state.json", "rounds/3/contribution.json"):
            site.store.delete(f"jobs/{JOB}/{key}")
        site._run(None)

    for site in sites:
        site.live = partial(die_and_live, site)  # type: ignore[method-assign]
    together(sites)
    assert digests(sites) == {expected["digest"]}
    assert sorted(sites[0].hub.commits_seen) == expected["commits"]


@pytest.mark.parametrize("asked", [4, 8])
def test_legs_told_to_stop_while_a_round_is_judged_go_on_where_they_were(leg, calm, asked):
    expected = undisturbed(leg, calm)
    sites = stream(leg, SITES[:2])
    for site in sites:
        site.stop_at = asked
    together(sites)
    assert {site.stopped for site in sites} == {1}
    assert digests(sites) == {expected["digest"]}
    assert {site.final.position for site in sites} == {ROUNDS * 4 * 4}


def test_steps_that_are_being_encoded_as_the_leg_is_told_to_stop_are_not_lost(leg, calm, monkeypatch):
    """Encoding a large model takes longer than what is given up gets to end."""
    expected, make = undisturbed(leg, calm), FederatedLeg._make
    encoding: set[str] = set()
    told: set[str] = set()

    def slowly(self: FederatedLeg, *given: Any) -> Any:
        encoding.add(self._site)
        time.sleep(0.5)
        return make(self, *given)

    def stopping(self: CrashingLine) -> bool:
        site = self.context.site
        if site not in encoding or site in told:
            return False
        told.add(site)
        return True

    monkeypatch.setattr(FederatedLeg, "_make", slowly)
    monkeypatch.setattr(CrashingLine, "stopping", stopping)
    monkeypatch.setattr(beside, "_LEAVE_S", 0.0)
    sites = stream(leg, SITES[:2])
    kept = []

    def stop_and_live(site: Site) -> None:
        site._run(None)
        assert site.final is None
        kept.extend(key for key in site.store.list(f"jobs/{JOB}/rounds/1/") if key.endswith("contribution.json"))
        site._run(None)

    for site in sites:
        site.live = partial(stop_and_live, site)  # type: ignore[method-assign]
    together(sites)
    assert len(kept) == 2
    assert digests(sites) == {expected["digest"]}


@pytest.mark.parametrize("changes", [{"fragments": 1}, {"delay": 0}, {"delay": 4, "mix": 0.0}])
def test_fragments_without_delay_and_delay_without_fragments_work(leg, changes):
    sites = stream(leg, ("de-1", "fr-1"), **changes)
    together(sites)
    assert len(digests(sites)) == 1
    found = replay(sites[0].store, JOB, kept_params(sites[0].store, JOB))
    assert [one.result for one in found] == ["verified"] * ROUNDS


def test_steps_kept_from_before_a_round_that_changes_nothing_are_not_taken_for_those_after_it(leg, monkeypatch):
    """Applied when the next is sent, with nothing of its own kept, a site sends zeros: the digest stays as it is."""
    late = {"fragments": 1, "delay": 4, "mix": 0.0, "momentum": 0.0, "code": "fp32"}
    calm = stream(leg, ("fr-1",), **late)
    together(calm)
    rounds = calm[0].hub.rounds
    assert rounds[3].certificate.previous_outer == rounds[2].certificate.previous_outer != ""
    for name in ("KEEP_S", "LOOK_S", "SERVE_S"):
        monkeypatch.setattr(f"consortium.train.within.{name}", 0)
    often = stream(leg, ("fr-1",), **late)
    together(often)
    assert digests(often) == digests(calm)
    assert sorted(often[0].hub.commits_seen) == sorted(calm[0].hub.commits_seen)


def test_gates_judge_each_fragment_beside_the_training(leg):
    """The loss gate asks the model in the middle of a stretch; clipping follows from rounds of the same fragment."""
    screen = {"clip": 0.5, "quarantine": 3, "cosine": -1.0, "loss_rise": 5.0, "loss_sequences": 4}
    sites = stream(leg, screen=screen)
    sites[2].spoil = 100.0
    together(sites)
    assert len(digests(sites)) == 1
    rounds = sites[0].hub.rounds
    for number in range(1, ROUNDS + 1):
        assert [part.site for part in rounds[number].certificate.contributions] == ["de-1", "fr-1"]
    assert rounds[2].certificate.standing.norms == (), "the second fragment's first round"
    assert len(rounds[3].certificate.standing.norms) == 2
    assert rounds[4].certificate.standing.refused == (("uy-1", 1),)
    assert [one.result for one in replay(sites[0].store, JOB, kept_params(sites[0].store, JOB))] == [
        "verified"
    ] * ROUNDS


def test_a_site_that_missed_rounds_takes_the_outer_state_and_joins(leg):
    sites = stream(leg)
    hub, whole = sites[0].hub, sites[2].context
    late = sites[2]
    late.crash = ("verdicts", 1, "after")

    def leave() -> None:
        try:
            late._run(late.crash)
        except BaseException:
            hub.lose("uy-1")

    late.live = leave  # type: ignore[method-assign]
    together(sites)
    assert len(digests(sites[:2])) == 1
    back = Site(hub, whole, late.store)
    together([back])
    assert digests([back]) == {sites[0].final.digest}
    assert [len(hub.rounds[k].commits) for k in range(1, ROUNDS + 1)] == [3, 2, 2, 2]
    assert back.final.position == 4 * 4
    assert back.final.ahead is None


def test_a_disputed_state_that_was_gone_on_from_is_not_kept(leg):
    class Contrary(Hub):
        def agree(self, site: str, topic: str, value: str) -> None:
            lies = site == "fr-1" and topic in ("outer/2", "recomputed/2")
            super().agree(site, topic, "sha256:ff" if lies else value)

    sites = stream(leg, SITES[:2])
    hub = Contrary(SITES[:2])
    hub.fragments = sites[0].hub.fragments
    for site in sites:
        site.hub = hub
    together(sites)
    assert all(isinstance(site.fault, VerificationError) and "fr-1 has sha256:ff" in str(site.fault) for site in sites)
    assert all(Keep(site.store, JOB).rounds() == [0, 1] for site in sites)


def test_states_of_past_rounds_go_when_they_are_past(leg, monkeypatch):
    alive: list[int] = []
    states: list[weakref.ref[Any]] = []
    applied = FederatedLeg._applied

    def noted(self: FederatedLeg, *given: Any) -> Any:
        state = applied(self, *given)
        states.append(weakref.ref(state.outer))
        alive.append(sum(one() is not None for one in states))
        return state

    monkeypatch.setattr(FederatedLeg, "_applied", noted)
    sites = stream(leg, SITES[:1], rounds=12)
    gc.disable()
    try:
        together(sites)
    finally:
        gc.enable()
    assert len(digests(sites)) == 1
    assert max(alive) <= 3, alive


def test_settings_that_cannot_be_kept_are_refused():
    for wrong, said in (({"delay": 5}, "delay"), ({"rounds": 3}, "multiple"), ({"fragments": 4}, "layers")):
        with pytest.raises(UsageError, match=said):
            PretrainConfig.of(streamed(**wrong))
