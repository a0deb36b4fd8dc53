"""Fragments of a model, when they are sent and applied, and that one fragment without delay is DiLoCo."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.errors import UsageError
from consortium.train.fragments import Event, Fragment, Streaming, fragments_of
from consortium.train.outer import Layout, nesterov


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


def test_one_fragment_without_delay_is_diloco():
    assert Streaming(period=30).events(60) == (
        Event(step=30, exchange=1, action="send", fragment=0),
        Event(step=30, exchange=1, action="apply", fragment=0),
        Event(step=60, exchange=2, action="send", fragment=0),
        Event(step=60, exchange=2, action="apply", fragment=0),
    )


def test_three_fragments_take_turns_and_the_last_result_is_waited_for():
    events = Streaming(period=30, count=3, delay=4).events(60)
    assert [(event.step, event.action, event.fragment) for event in events] == [
        (10, "send", 0), (14, "apply", 0), (20, "send", 1), (24, "apply", 1), (30, "send", 2), (34, "apply", 2),
        (40, "send", 0), (44, "apply", 0), (50, "send", 1), (54, "apply", 1), (60, "send", 2), (60, "apply", 2),
    ]  # fmt: skip


@given(st.integers(1, 12), st.integers(1, 60), st.integers(0, 60), st.integers(1, 5), st.integers(0, 400))
def test_schedules_keep_one_exchange_under_way_and_go_on_from_any_step(count, period, delay, periods, since):
    period, steps = max(period, count), max(period, count) * periods
    plan = Streaming(period=period, count=count, delay=min(delay, period // count))
    events = plan.events(steps)
    under_way: list[int] = []
    for event in events:
        if event.action == "send":
            under_way.append(event.exchange)
        else:
            under_way.remove(event.exchange)
        assert len(under_way) <= 1
    assert not under_way
    assert [event.step for event in events] == sorted(event.step for event in events)
    sent = [event for event in events if event.action == "send"]
    assert [event.exchange for event in sent] == list(range(1, count * periods + 1))
    for fragment in range(count):
        turns = [event.step for event in sent if event.fragment == fragment]
        assert len(turns) == periods
        assert {later - earlier for earlier, later in itertools.pairwise(turns)} <= {period}
    assert plan.events(steps, since=since) == tuple(event for event in events if event.step > since)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"count": 0}, "fragments"),
        ({"count": 31}, "fragments"),
        ({"count": 3, "delay": 11}, "delay must be 0 to 10"),
        ({"mixing": 1.5}, "mixing"),
        ({"mixing": math.nan}, "mixing"),
    ],
)
def test_a_schedule_that_cannot_be_kept_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Streaming(period=30, **wrong)
    with pytest.raises(ValueError, match="whole periods"):
        Streaming(period=30).events(31)


def test_a_delay_hides_an_exchange_as_long_as_the_steps_it_spans():
    plan = Streaming(period=30, count=3, delay=5)
    assert plan.wait_s(exchange_s=9.0, step_s=2.0) == 0
    assert plan.wait_s(exchange_s=11.0, step_s=2.0) == 1
    assert Streaming(period=30).wait_s(exchange_s=9.0, step_s=2.0) == 9


def streamed(plan: Streaming, steps: int, sites: int = 3) -> np.ndarray:
    """Train sites with unlike optima on their own quadratics; return how far the outer model is from the mean one."""
    model = layout(6)
    parts = fragments_of(model, plan.count)
    random = np.random.default_rng(0)
    best = random.standard_normal((sites, model.size)).astype(np.float32)
    outer, momentum = np.zeros(model.size, np.float32), np.zeros(model.size, np.float32)
    local = [outer.copy() for _ in range(sites)]
    sent: dict[int, np.ndarray] = {}
    done, distances = 0, []
    for event in plan.events(steps):
        for site in range(sites):
            for _ in range(event.step - done):
                local[site] = local[site] - np.float32(0.02) * (local[site] - best[site])
        done, part = event.step, parts[event.fragment]
        if event.action == "send":
            gradients = [np.subtract(part.take(outer), part.take(one)) for one in local]
            sent[event.exchange] = np.mean(gradients, axis=0, dtype=np.float32)
        else:
            after, speed = nesterov(
                part.take(outer), part.take(momentum), sent.pop(event.exchange), lr=0.7, momentum_decay=0.5
            )
            outer, momentum = part.put(outer, after), part.put(momentum, speed)
            local = [part.put(one, plan.mix(part.take(one), after)) for one in local]
            distances.append(float(np.linalg.norm(outer - best.mean(axis=0)) / np.linalg.norm(best.mean(axis=0))))
    return np.array(distances)


@pytest.mark.parametrize("mixing", [0.0, 0.5])
def test_streamed_and_delayed_updates_reach_the_same_optimum(mixing):
    plain = streamed(Streaming(period=30), 30 * 20)
    late = streamed(Streaming(period=30, count=3, delay=5, mixing=mixing), 30 * 20)
    assert plain[-1] < 1e-3
    assert late[-1] < 1e-2
    assert late[0] > plain[0], "after the first fragment two thirds of the model stand where they stood"
