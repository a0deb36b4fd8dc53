"""Vectors in slices with a site's ranks: the bits are those of whole vectors, in memory, over borders, in stores."""

from __future__ import annotations

import gc
import json
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.client.leg import LegSession
from consortium.domain.pretraining import OuterConfig, PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Contribution
from consortium.errors import UnreachableError, VerificationError
from consortium.storage.objects import ObjectStore
from consortium.train import launch, peers, redistribute
from consortium.train.checkpoints import Checkpoints
from consortium.train.codes import Code
from consortium.train.combine import combine
from consortium.train.fragments import Fragment, Plan
from consortium.train.holders import Holders
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.outer import Layout, Moments, cosine_of, difference, finite, nesterov, norm_of, to_bytes
from consortium.train.outer import vector_digest as digest
from consortium.train.replay import kept_params, replay
from consortium.train.sharded import Each, Ranges, Sharded, common, cut, lengths, placed, places, whole, within
from consortium.train.shelf import Blob, Shelf
from consortium.train.tokens import open_sequences
from tests.s3 import S3
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB, Hub, Line, serve
from tests.train.ranks import Rank, start
from tests.train.test_disputes import Misprinting, damage_momentum
from tests.train.test_leg import Site, digests, replace_site, together

SIZES = (1, 4096, 4097, 12_289, 70_001)
CODES = [Code(name=name) for name in ("fp32", "bf16", "int8", "int4", "topk")]
WORLD = 3


# -- where slices lie ------------------------------------------------------------------------------------------------


@given(st.integers(0, 100_000), st.integers(1, 9))
def test_slices_are_all_of_a_vector_once_in_order_and_begin_with_blocks(size, world):
    slices = cut(size, world)
    assert len(slices) == world
    edges = [edge for one in slices for edge in one]
    assert sum(lengths(slices)) == size
    assert [start for start, _ in edges] == [0, *(stop for _, stop in edges)][: len(edges)]
    assert all(start % 4096 == 0 for start, _ in edges)


ranges = st.lists(st.integers(1, 40), max_size=12).map(
    lambda steps: tuple(
        (int(a), int(b)) for a, b in np.cumsum([0, *steps])[: len(steps) // 2 * 2].reshape(-1, 2) if a < b
    )
)


@given(ranges, ranges)
def test_what_lies_in_both_is_found_by_position_and_by_place(one, other):
    def elements(of: Ranges) -> list[int]:
        return [at for start, stop in of for at in range(start, stop)]

    both = elements(common(one, other))
    assert both == sorted(set(elements(one)) & set(elements(other)))
    mine = elements(one)
    at = elements(places(one, common(one, other)))
    assert [mine[place] for place in at] == both
    assert elements(within(one, places(one, common(one, other)))) == both


# -- three ranks against one process -------------------------------------------------------------------------------


def contributions(count: int) -> list[Contribution]:
    weights = [0.5, 0.3, 0.2][:count]
    return [
        Contribution(site=f"s{at}", digest="", tokens=at + 1, weight=weight.hex(), clip=(1 - at / 4).hex())
        for at, weight in enumerate(weights)
    ]


def holders_main(rank: int, given_: dict[str, str]) -> None:
    redistribute.MOST = 5000  # several turns for vectors as short as these
    holders = HERE[0] = Holders(rank, WORLD, timeout_s=120)
    if rank:
        holders.serve()
        return
    store = ObjectStore(given_["endpoint"], given_["key"], given_["secret"], given_["bucket"])
    for size in SIZES:
        compare(holders, size)
    compare_fragments(holders)
    compare_stored(holders, store)
    refused(holders)
    gone(holders)
    ended(holders)
    holders.stop()
    Path(given_["done"]).write_text("all of it")


def same(in_slices: Any, as_one: Any) -> None:
    assert isinstance(in_slices, Sharded)
    assert to_bytes(in_slices) == to_bytes(as_one)


def compare(holders: Holders, size: int) -> None:
    """All that is computed of vectors, in slices and in one."""
    random = np.random.default_rng(size)
    one, other, third = (random.standard_normal(size, dtype=np.float32) for _ in range(3))
    a, b, c = (placed(vector, holders) for vector in (one, other, third))
    same(a, one)
    assert digest(a) == digest(one)
    same(difference(a, b), difference(one, other))
    assert norm_of(a) == pytest.approx(norm_of(one), rel=1e-12)
    assert cosine_of(a, b) == pytest.approx(cosine_of(one, other), rel=1e-9, abs=1e-12)
    for mine, theirs in zip(
        nesterov(a, b, c, lr=0.7, momentum_decay=0.9),
        nesterov(one, other, third, lr=0.7, momentum_decay=0.9),
        strict=True,
    ):
        same(mine, theirs)
    parts, vectors = contributions(3), {"s0": one, "s1": other, "s2": third}
    for how in ("mean", "trimmed", "median"):
        rule = ScreenRule(aggregate=how, trim=0.34)
        sliced = combine(parts, {"s0": a, "s1": b, "s2": c}, size, rule)
        same(sliced, combine(parts, vectors, size, rule))
    for code in CODES:
        compare_code(code, holders, one, other)


def compare_code(code: Code, holders: Holders, one: Any, other: Any) -> None:
    """The same bytes and residuals, decoded alike, twice so that a residual is carried."""
    size, a, b = len(one), placed(one, holders), placed(other, holders)
    first, second = code.encode(a), code.encode(one)
    assert first.data == second.data, code.name
    if second.residual is not None:
        same(first.residual, second.residual)
    first, second = code.encode(b, first.residual), code.encode(other, second.residual)
    assert first.data == second.data, code.name
    same(code.decode(first.data, size, holders), code.decode(second.data, size))
    spoilt = one.copy()
    spoilt[-1] = np.nan
    bad = code.encode(placed(spoilt, holders), first.residual)
    assert bad.data == code.encode(spoilt, second.residual).data
    assert not finite(code.decode(bad.data, size, holders))


def compare_fragments(holders: Holders) -> None:
    random = np.random.default_rng(0)
    vector = random.standard_normal(50_000, dtype=np.float32)
    for held in (((0, 50_000),), ((0, 5),), ((3, 9000), (9001, 30_000), (49_999, 50_000)), ((20_000, 41_000),)):
        fragment = Fragment(held)
        part = fragment.take(vector) + np.float32(1)
        sliced = placed(vector, holders)
        same(fragment.take(sliced), fragment.take(vector))
        same(fragment.put(sliced, placed(part, holders)), fragment.put(vector, part))
        same(sliced, vector)
    layout = Layout.of({f"layers.{at}.w": (70, 99) for at in range(6)} | {"head": (5000,)})
    plan = Plan.of(layout, OuterConfig(rounds=4, inner_steps=4, fragments=2, mix=0.25))
    whole_, momentum = (random.standard_normal(layout.size, dtype=np.float32) for _ in range(2))
    for number in (1, 2):
        gradient = plan.fragment(number).take(whole_) * np.float32(0.5)
        given_ = [placed(one, holders) for one in (whole_, momentum, gradient)]
        for mine, theirs in zip(
            plan.step(number, *given_, lr=1.0, momentum_decay=0.5),
            plan.step(number, whole_, momentum, gradient, lr=1.0, momentum_decay=0.5),
            strict=True,
        ):
            same(mine, theirs)
        same(plan.mix(number, *given_[:2]), plan.mix(number, whole_, momentum))


def compare_stored(holders: Holders, store: ObjectStore) -> None:
    """What ranks write is read whole, and by ranks, and so is what was written whole."""
    vector = np.random.default_rng(1).standard_normal(30_000, dtype=np.float32)
    sliced, alone = Shelf(store, "job", holders), Shelf(store, "job")
    for blob in (sliced._put_vector("a", placed(vector, holders)), alone._put_vector("a", vector)):
        same(sliced._vector(blob, 30_000), vector)
        assert to_bytes(alone._vector(blob, 30_000)) == to_bytes(vector)
        with pytest.raises(VerificationError, match=r"elements|bytes"):
            alone._vector(blob, 30_001)
    swapped = sliced._put_vector("a", placed(vector, holders), digest(vector))
    for shelf in (sliced, alone):
        same_everywhere(shelf, swapped, vector)
        with pytest.raises(VerificationError, match="do not hash to"):
            shelf._vector(replace(swapped, parts=swapped.parts[::-1]), 30_000)
    written = sliced._put_moments("a", Moments({"exp_avg": placed(vector, holders)}, 3))["exp_avg"]
    assert len(written.parts) == WORLD
    store.put(written.parts[1].key, b"other bytes")
    for shelf in (sliced, alone):
        with pytest.raises(VerificationError):
            shelf._vector(written, 30_000)
    same(placed(vector[:1000], holders), vector[:1000])


def same_everywhere(shelf: Shelf, blob: Blob, vector: Any) -> None:
    assert to_bytes(shelf._vector(blob, len(vector))) == to_bytes(vector)


def refused(holders: Holders) -> None:
    """What one rank refuses rank 0 raises, and all go on."""
    code, vector = Code(name="int8"), np.ones(20_000, dtype=np.float32)
    data = bytearray(code.encode(vector).data)
    data[-1] = 128
    before = holders.map(held_here, Each(range(WORLD)))
    gc.disable()
    for _ in range(5):
        with pytest.raises(VerificationError, match="a value is -128"):
            code.decode(bytes(data), 20_000, holders)
    assert holders.map(held_here, Each(range(WORLD))) == before, "what was refused is let go of, on all ranks"
    gc.enable()
    with pytest.raises(ZeroDivisionError) as fault:
        holders.map(divide, Each([1, 0, 0]))
    assert fault.value.__notes__ == ["on rank 1 of the site"]
    handle = placed(vector, holders)
    with pytest.raises(TypeError, match="is no array"):
        np.add(handle, vector)
    with pytest.raises(TypeError, match="place it first"):
        difference(handle, vector)


HERE: dict[int, Holders] = {}
"""This process's own."""


def held_here(_: int) -> int:
    return len(HERE[0]._held)


def divide(by: int) -> float:
    return 1 / by


def ended(holders: Holders) -> None:
    """Nothing is asked of ranks that may wait for each other."""
    holders._over = True
    for _ in range(2):
        with pytest.raises(UnreachableError, match="no longer do what they are told"):
            placed(np.ones(9000, dtype=np.float32), holders)
    holders._over = False


def gone(holders: Holders) -> None:
    """Slices go with their handles, on every rank."""
    kept = placed(np.ones(9000, dtype=np.float32), holders)
    before = len(holders._held)
    for _ in range(20):
        same(difference(kept, kept), np.zeros(9000))
    assert len(holders._held) <= before + 2
    assert whole(kept).sum() == 9000


@pytest.fixture
def store(s3: S3) -> ObjectStore:
    made = s3.store("slices")
    made.ensure_bucket()
    return made


@pytest.mark.integration
def test_three_ranks_compute_encode_and_store_what_one_process_does(store, s3, tmp_path):
    done = tmp_path / "done"
    given_ = {"endpoint": s3.endpoint, "key": s3.access_key, "secret": s3.secret_key, "bucket": store.bucket}
    ranks = start("tests.train.test_sharded:holders_main", {**given_, "done": str(done)}, WORLD)
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * WORLD
    assert done.read_text() == "all of it"


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
        line.at, line.ranks = die_at, start("tests.train.test_sharded:leg_main", url)
        stack.callback(lambda: [rank.kill() for rank in line.ranks])
        alone = threading.Thread(target=together, args=(others,))
        alone.start()
        codes = [rank.wait(timeout=120) for rank in line.ranks]
        if die_at:
            assert all(codes)
            line.at, line.ranks = 0, start("tests.train.test_sharded:leg_main", url)
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
        line.at, line.ranks = 3, start("tests.train.test_sharded:leg_main", url)
        alone = threading.Thread(target=together, args=(others,))
        alone.start()
        assert all(rank.wait(timeout=120) for rank in line.ranks)
        data = PARAMS["data"] | {"batch_size": 8}
        one = Site(two.hub, replace(two.context, params=two.context.params | {"data": data}, gpus=1), two.store)
        together([one])
        alone.join(timeout=60)
    assert digests([one]) == digests(others)
    assert len(two.hub.rounds[4].certificate.contributions) == 3
