"""Sites that hold their state in slices, beside sites that hold it whole: one outer state, whatever happens to them."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from consortium.client.leg import LegSession
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.train import launch, peers
from consortium.train.checkpoints import Checkpoints
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.outer import vector_digest as digest
from consortium.train.replay import kept_params, replay
from consortium.train.tokens import open_sequences
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB, Hub, Line, serve
from tests.train.ranks import Rank, start
from tests.train.test_disputes import Misprinting, damage_momentum
from tests.train.test_leg import Site, digests, replace_site, together

# -- a leg of two ranks among legs of one ----------------------------------------------------------------------------

SITES = ("de-1", "fr-1", "uy-1")


FULL: dict[str, Any] = {
    "rounds": 4,
    "code": "int8",
    "fragments": 2,
    "delay": 2,
    "mix": 0.25,
    "keep_received": -1,
    "screen": {"clip": 2.0, "quarantine": 3, "loss_rise": 3.0, "loss_sequences": 4},
}


OUTER: dict[str, dict[str, Any]] = {
    "as it is": {"keep_received": -1},
    "all that there is": FULL,
    "shared": {"keep_received": -1, "share": "optimizer", "code": "topk"},
}


MUON = {"optim": PARAMS["optim"] | {"name": "muon", "lr": 0.003}}


OPTIM = {"shared": MUON, "all that there is": MUON}
"""What is optimised otherwise than by AdamW."""


def leg_main(rank: int, url: str) -> None:
    """One rank of a leg, as `launch` runs it on a worker of Ray Train."""
    peers._SHORT_S = peers._LONG_S = 0.02
    session = LegSession(url, "leg-token")
    params = PretrainConfig.of(session.context.params)
    context = session.context
    text = open_sequences(session.store(), context.inputs, params.model.context, VOCAB)
    worker = InnerWorker(params, VOCAB, text, context.site, rank=rank, world=2)
    if rank:
        worker.follow()
    else:
        launch.lead(session, worker, params, VOCAB, "sha256:00")


class Dying(Line):
    """A line of a leg that is killed at its commit to a round."""

    ranks: list[Rank]
    at = 0

    def commit(self, round: int, **values: Any) -> None:
        if round == self.at:
            for rank in self.ranks:
                rank.kill()
        super().commit(round, **values)


def sites_of(leg: Any, outer: dict[str, Any], more: dict[str, Any] | None = None) -> tuple[Site, list[Site]]:
    """The site of two ranks, and the others; all read as much in a step."""
    params = PARAMS | (more or {}) | {"outer": PARAMS["outer"] | outer}
    alone = params | {"data": PARAMS["data"] | {"batch_size": 8}}
    hub = Hub(SITES, screen=ScreenRule(**outer.get("screen", {})), fragments=outer.get("fragments", 1))
    found = {site: Site(hub, *leg(site, SITES, params=alone)) for site in SITES if site != "fr-1"}
    two = Site(hub, *leg("fr-1", SITES, params=params | {"parallel": "fsdp"}, gpus=2))
    return two, list(found.values())


def run_together(two: Site, others: list[Site], *, die_at: int = 0) -> None:
    with ExitStack() as stack:
        line = Dying(two.hub, two.context, two.store)
        url = stack.enter_context(serve(line))
        line.at, line.ranks = die_at, start("tests.train.test_sharded_sites:leg_main", url)
        stack.callback(lambda: [rank.kill() for rank in line.ranks])
        alone = threading.Thread(target=together, args=(others,))
        alone.start()
        codes = [rank.wait(timeout=120) for rank in line.ranks]
        if die_at:
            assert all(codes)
            line.at, line.ranks = 0, start("tests.train.test_sharded_sites:leg_main", url)
            codes = [rank.wait(timeout=120) for rank in line.ranks]
        alone.join(timeout=60)
    assert codes == [0, 0]


@pytest.fixture(scope="module")
def came() -> dict[str, dict[str, str]]:
    """Digests of runs, by what was run."""
    return {}


@pytest.mark.integration
@pytest.mark.parametrize("name", OUTER)
def test_a_site_that_holds_its_state_in_slices_has_the_bits_of_those_that_hold_it_whole(leg, came, name):
    two, others = sites_of(leg, OUTER[name], OPTIM.get(name))
    run_together(two, others)
    assert len(digests(others)) == 1
    result = two.hub.results["fr-1"]
    assert {result["outer_digest"]} == digests(others)
    rounds = two.hub.rounds
    assert all(len(one.certificate.contributions) == 3 for one in rounds.values()), [
        (v.site, v.reason) for one in rounds.values() for v in one.verdicts if v.reason
    ]
    came[name] = result["outer_digests"]
    said = list(replay(two.store, JOB, kept_params(two.store, JOB)))
    assert {one.result for one in said} == {"verified"}, said
    last = max(rounds)
    pointer = json.loads(two.store.get(f"jobs/{JOB}/outer/{last}/state.json"))
    assert [len(pointer[of]["parts"]) for of in ("vector", "momentum")] == [2, 2]
    keep = Keep(two.store, JOB)
    state = keep.outer(last, keep.origin(last).layout.size)
    assert digest(state.outer) == state.digest == result["outer_digest"]
    if name != "shared":
        assert max(len(one["parts"]) for one in pointer["optimizer"].values()) == 2
    assert not any(one.fault for one in Checkpoints(two.store, JOB).listed(verify=True))
    before = set(two.store.list(f"jobs/{JOB}/outer/{last}/"))
    keep.thin(last)
    assert set(two.store.list(f"jobs/{JOB}/outer/{last}/")) < before
    assert digest(keep.stepped(last, len(state.outer))[0]) == state.digest


@pytest.mark.integration
def test_after_its_ranks_were_killed_a_site_goes_on_from_its_slices_to_the_same_bits(leg, came):
    name = "all that there is"
    if name not in came:
        calm, beside = sites_of(leg, OUTER[name], OPTIM.get(name))
        run_together(calm, beside)
        came[name] = calm.hub.results["fr-1"]["outer_digests"]
    two, others = sites_of(leg, OUTER[name], OPTIM.get(name))
    run_together(two, others, die_at=3)
    assert two.hub.results["fr-1"]["outer_digest"] in digests(others)
    assert two.hub.results["fr-1"]["outer_digest"] == list(came[name].values())[-1]


@pytest.mark.integration
def test_a_site_in_slices_computes_a_disputed_round_again(leg):
    two, others = sites_of(leg, {"keep_received": -1})
    hub = Misprinting(SITES)
    for site in (two, *others):
        site.hub = hub
    run_together(two, others)
    settled = hub.rounds[2].settlement
    assert (settled.differ, settled.agree) == (("uy-1",), SITES)
    assert {hub.results["fr-1"]["outer_digest"]} == digests(others)


@pytest.mark.integration
def test_a_site_in_slices_takes_the_state_that_holds_from_a_peer(leg):
    two, others = sites_of(leg, {})
    run_together(replace_site(two, rounds=1), [replace_site(site, rounds=1) for site in others])
    damage_momentum(two, 1)
    run_together(two, others)
    settled = two.hub.rounds[2].settlement
    assert (settled.differ, settled.agree) == (("fr-1",), ("de-1", "uy-1"))
    assert {two.hub.results["fr-1"]["outer_digest"]} == digests(others)
    assert len(two.hub.rounds[3].certificate.contributions) == 3


@pytest.mark.integration
def test_a_site_in_slices_joins_in_mid_training_and_lets_another_join(leg):
    two, others = sites_of(leg, {})
    hub = two.hub
    hub.sites = ("de-1", "fr-1")
    first = [Site(hub, replace(site.context, peers=hub.sites), site.store) for site in (two, others[0])]
    run_together(replace_site(first[0], rounds=1), [replace_site(first[1], rounds=1)])
    hub.sites = SITES
    run_together(two, others)
    assert {hub.results["fr-1"]["outer_digest"]} == digests(others)
    counted = {k: [part.site for part in hub.rounds[k].certificate.contributions] for k in (1, 2, 3)}
    assert counted == {1: ["de-1", "fr-1"], 2: list(SITES), 3: list(SITES)}

    two, others = sites_of(leg, {})
    hub = two.hub
    hub.sites = ("de-1", "uy-1")
    together([replace_site(Site(hub, replace(site.context, peers=hub.sites), site.store), 1) for site in others])
    hub.sites = SITES
    run_together(two, others)
    assert {hub.results["fr-1"]["outer_digest"]} == digests(others)
    assert [part.site for part in hub.rounds[2].certificate.contributions] == list(SITES)


@pytest.mark.integration
def test_one_rank_goes_on_from_what_two_kept(leg):
    two, others = sites_of(leg, {"rounds": 4, "keep_received": -1})
    line = Dying(two.hub, two.context, two.store)
    with serve(line) as url:
        line.at, line.ranks = 3, start("tests.train.test_sharded_sites:leg_main", url)
        alone = threading.Thread(target=together, args=(others,))
        alone.start()
        assert all(rank.wait(timeout=120) for rank in line.ranks)
        data = PARAMS["data"] | {"batch_size": 8}
        one = Site(two.hub, replace(two.context, params=two.context.params | {"data": data}, gpus=1), two.store)
        together([one])
        alone.join(timeout=60)
    assert digests([one]) == digests(others)
    assert len(two.hub.rounds[4].certificate.contributions) == 3
