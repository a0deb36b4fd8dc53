"""Vectors in slices with a site's ranks: the bits are those of whole vectors, in memory, over borders, in stores."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.pretraining import OuterConfig
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Contribution
from consortium.errors import UnreachableError, VerificationError
from consortium.storage.objects import ObjectStore
from consortium.train import redistribute
from consortium.train.codes import Code
from consortium.train.combine import combine
from consortium.train.fragments import Fragment, Plan
from consortium.train.holders import Holders
from consortium.train.outer import Layout, Moments, cosine_of, difference, finite, nesterov, norm_of, to_bytes
from consortium.train.outer import vector_digest as digest
from consortium.train.sharded import Each, Ranges, Sharded, common, cut, lengths, placed, places, whole, within
from consortium.train.shelf import Blob, Shelf
from tests.s3 import S3
from tests.train.ranks import start

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
