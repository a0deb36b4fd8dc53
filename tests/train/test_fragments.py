"""Fragments of a model, and whose turn it is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.pretraining import OuterConfig
from consortium.errors import UsageError
from consortium.train.fragments import Fragment, Plan, fragments_of
from consortium.train.outer import Layout


def layout(layers: int, width: int = 4) -> Layout:
    shapes = {f"blocks.{i}.{name}": (width, width) for i in range(layers) for name in ("down", "qkv")}
    return Layout.of(shapes | {"embedding.weight": (10, width), "final_norm.weight": (width,)})


@given(st.integers(1, 30), st.integers(1, 30))
def test_fragments_hold_every_element_once(layers, count):
    model = layout(layers)
    if count > layers + 2:
        with pytest.raises(UsageError, match=f"no {count} fragments"):
            fragments_of(model, count)
        return
    parts = fragments_of(model, count)
    covered = sorted(itertools.chain.from_iterable(part.ranges for part in parts))
    assert [start for start, _ in covered] == [0, *(stop for _, stop in covered[:-1])]
    assert covered[-1][1] == model.size
    assert sum(part.size for part in parts) == model.size
    assert all(one[1] < other[0] for part in parts for one, other in itertools.pairwise(part.ranges))


def test_layers_are_dealt_out_in_turn_and_the_embedding_to_the_smallest():
    model = layout(5)
    parts = fragments_of(model, 2)
    numbered = np.concatenate([np.full(size, i) for i, size in enumerate(model.sizes)]).astype(np.float32)
    held = [{model.names[int(i)] for i in np.unique(part.take(numbered))} for part in parts]
    assert {name for name in held[0] if name.startswith("blocks")} == {
        f"blocks.{i}.{name}" for i in (0, 2, 4) for name in ("down", "qkv")
    }
    assert "embedding.weight" in held[1]
    with pytest.raises(UsageError, match="no 0 fragments"):
        fragments_of(model, 0)


def test_what_is_taken_and_put_back_lies_where_it_was():
    vector = np.arange(10, dtype=np.float32)
    part = Fragment(((1, 3), (7, 9)))
    np.testing.assert_array_equal(part.take(vector), [1, 2, 7, 8])
    changed = part.put(vector, np.float32([-1, -2, -7, -8]))
    np.testing.assert_array_equal(changed, [0, -1, -2, 3, 4, 5, 6, -7, -8, 9])
    np.testing.assert_array_equal(vector, np.arange(10))


def plan_of(**said) -> Plan:
    return Plan.of(layout(6), OuterConfig(rounds=60, inner_steps=10, **said))


def test_fragments_take_turns_and_nothing_is_awaited_after_the_last_round():
    plan = plan_of(fragments=3, delay=4)
    assert [plan.fragment(number) for number in range(1, 7)] == [*plan.fragments, *plan.fragments]
    assert [plan.delay(number) for number in (1, 2, 59, 60)] == [4, 4, 4, 0]


@pytest.mark.parametrize(
    ("said", "carries"), [({}, False), ({"fragments": 2}, True), ({"delay": 1}, True), ({"mix": 0.5}, True)]
)
def test_sites_go_on_from_parameters_of_their_own_unless_it_is_plain_diloco(said, carries):
    assert plan_of(**said).carries is carries


def streamed(plan: Plan, sites: int = 3) -> np.ndarray:
    """Train sites with unlike optima on their own quadratics; return how far the outer model is from the mean one.

    Ten inner steps lie between two rounds; a round's result is applied as many steps later as the plan says.
    """
    size = layout(6).size
    random = np.random.default_rng(0)
    best = random.standard_normal((sites, size)).astype(np.float32)
    outer, momentum = np.zeros(size, np.float32), np.zeros(size, np.float32)
    local = [outer.copy() for _ in range(sites)]
    distances = []

    def train(steps: int) -> None:
        for site, target in enumerate(best):
            for _ in range(steps):
                local[site] = local[site] - np.float32(0.02) * (local[site] - target)

    late = 0
    for number in range(1, plan.rounds + 1):
        train(10 - late)
        part = plan.fragment(number)
        gradients = [np.subtract(part.take(outer), part.take(one)) for one in local]
        late = plan.delay(number)
        train(late)
        mean = np.mean(gradients, axis=0, dtype=np.float32)
        outer, momentum = plan.step(number, outer, momentum, mean, lr=0.7, momentum_decay=0.5)
        local = [plan.mix(number, one, outer) for one in local]
        distances.append(float(np.linalg.norm(outer - best.mean(axis=0)) / np.linalg.norm(best.mean(axis=0))))
    return np.array(distances)


@pytest.mark.parametrize("mixing", [0.0, 0.5])
def test_streamed_and_delayed_updates_reach_the_same_optimum(mixing):
    plain = streamed(plan_of())
    late = streamed(plan_of(fragments=3, delay=5, mix=mixing))
    assert plain[-1] < 1e-3
    assert late[-1] < 1e-2
    assert late[0] > plain[0], "after the first fragment two thirds of the model stand where they stood"
