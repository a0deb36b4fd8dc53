"""Rates, and rounds as long as the rate to a power: as many steps as there are, and no round without one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.pretraining import OptimConfig, PretrainConfig, StartConfig, unlike
from consortium.train.again import re_execute
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.replay import kept_params, replay
from consortium.train.schedule import Pace, Rounds, learning_rate
from consortium.train.tokens import open_sequences
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB
from tests.train.test_leg import digests, federation, together


def job(rounds: int, steps: int, taper: float, *, done: int = 0, **optim: Any) -> PretrainConfig:
    start = {"job": JOB, "round": done, "resume": True, "done": done} if done else {}
    return PretrainConfig.of(
        {
            **PARAMS,
            "outer": {**PARAMS["outer"], "rounds": rounds, "inner_steps": steps, "taper": taper},
            "optim": {**PARAMS["optim"], "warmup_steps": 0, **optim},
            "start": start,
        }
    )


def lengths(params: PretrainConfig) -> list[int]:
    rounds = Rounds.of(params)
    return [rounds.steps(number) for number in range(1, params.outer.rounds + 1)]


def test_a_cosine_comes_down_to_its_floor_and_rounds_follow_it():
    params = job(60, 30, 0.5, warmup_steps=30)
    found = lengths(params)
    assert sum(found) == 60 * 30
    assert (found[0], found[-1], Rounds.of(params).span) == (49, 15, (15, 49))
    assert all(after <= before + 1 for before, after in pairwise(found))
    assert lengths(job(60, 30, 0.0, warmup_steps=30)) == [30] * 60


def test_a_rate_that_comes_down_to_nothing_ends_in_the_shortest_rounds_and_leaves_no_endless_one():
    cosine = lengths(job(60, 30, 1.0, final_lr_share=0.0))
    assert (cosine[-1], sum(cosine)) == (8, 1800)
    assert 100 < max(cosine) < 250
    late = lengths(job(60, 30, 1.0, schedule="wsd", decay_share=0.2, final_lr_share=0.0))
    assert max(late) - min(late[:30]) <= 1
    assert late[30] <= 47
    assert late[-1] == 8


def test_a_training_whose_rate_is_nothing_has_rounds_all_the_same():
    assert lengths(job(1, 1, 1.0, schedule="wsd", decay_share=1.0, final_lr_share=0.0)) == [1]


def test_a_plateau_has_rounds_of_one_length_and_a_decay_shorter_ones():
    found = lengths(job(20, 50, 1.0, schedule="wsd", decay_share=0.5, final_lr_share=0.5))
    assert max(found[:7]) - min(found[:7]) <= 1
    assert found[-1] < found[0] * 0.6
    assert sum(found) == 1000


@given(
    st.integers(1, 200), st.integers(1, 40), st.floats(0, 1), st.integers(0, 300), st.sampled_from(["cosine", "wsd"]),
    st.sampled_from([0.0, 0.1, 1.0]),
)  # fmt: skip
def test_every_step_is_in_one_round_and_no_round_is_without_one(rounds, steps, taper, warm, schedule, floor):
    params = job(rounds, steps, taper, warmup_steps=warm, schedule=schedule, final_lr_share=floor)
    found, begins = lengths(params), Rounds.of(params)
    assert sum(found) == rounds * steps
    assert min(found) >= (-(-steps // 4) if taper else steps)
    assert begins.span == (min(found), max(found))
    assert [begins.before(number) for number in range(1, rounds + 2)] == [sum(found[:k]) for k in range(rounds + 1)]


def test_a_resumed_job_goes_on_in_the_whole_trainings_rounds():
    whole, rest = Rounds.of(job(6, 20, 1.0)), Rounds.of(job(2, 20, 1.0, done=4))
    assert [rest.before(k) for k in (1, 2, 3)] == [whole.before(k) for k in (5, 6, 7)]


def test_rounds_that_shorten_are_resumed_over_the_rounds_they_were_cut_for():
    done = {"job": JOB, "round": 4, "resume": True, "done": 4}

    def left(rounds: int) -> tuple[str, ...]:
        more = job(rounds, 20, 1.0, done=4, schedule="wsd")
        return unlike(job(6, 20, 1.0, schedule="wsd"), replace(more, start=StartConfig(**done)))

    assert left(2) == ()
    assert left(6) == ("rounds that shorten are cut for 6 in all, not 10",)


def test_the_rate_of_a_faster_site_comes_down_over_rounds():
    pace = Pace(begin=100, usual=20, own=50)
    assert [pace.at(step) for step in (100, 125, 150)] == [100, 110, 120]
    after = Pace(begin=120, usual=20, own=50)
    drawn = [pace.drawn(100 + step) for step in range(50)] + [after.drawn(120 + step) for step in range(50)]
    assert drawn == list(range(250, 350))


def test_a_rate_is_of_the_step_alone():
    config = OptimConfig(lr=1.0, warmup_steps=5)
    assert learning_rate(2, 100, config) == 0.6
    assert learning_rate(99, 100, replace(config, final_lr_share=0.1)) == pytest.approx(0.1)


@pytest.mark.integration
def test_legs_with_unlike_rounds_commit_to_their_steps_and_an_audit_repeats_them(leg, tmp_path):
    outer = {**PARAMS["outer"], "rounds": 4, "inner_steps": 5, "taper": 1.0, "keep_received": -1}
    params = {**PARAMS, "outer": outer}
    wanted = lengths(PretrainConfig.of(params))
    assert len(set(wanted)) > 1
    sites = federation(leg, params=params)
    together(sites)
    assert len(digests(sites)) == 1
    hub, store = sites[0].hub, sites[0].store
    steps = [{commit.steps for commit in hub.rounds[number].commits} for number in (1, 2, 3, 4)]
    assert steps == [{length} for length in wanted]
    assert sites[0].final.tokens == 20 * 4 * 16
    assert {one.result for one in replay(store, JOB, kept_params(store, JOB))} == {"verified"}
    job = PretrainConfig.of(params)
    for number in (1, 3):
        text = open_sequences(store, sites[0].context.inputs, job.model.context, VOCAB)
        worker = InnerWorker(job, VOCAB, text, sites[0].context.site)
        done = re_execute(Keep(store, JOB), worker, job, number, worker.layout.size)
        assert (done.same_bits, done.steps) == (True, wanted[number - 1])
    calm = digests(sites)
    crashing = federation(leg, params=params)
    for site in crashing:
        site.crash = ("commit", 3, "after")
    together(crashing)
    assert digests(crashing) == calm
