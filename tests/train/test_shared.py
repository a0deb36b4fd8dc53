"""The mean of the sites' inner optimisers: what honest ones come to, what a liar can do, legs that go on from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import OuterConfig, PretrainConfig
from consortium.domain.training import Contribution
from consortium.errors import UsageError, VerificationError
from consortium.train.codes import Code
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.outer import Layout, Moments, Vector
from consortium.train.replay import kept_params, re_execute, replay
from consortium.train.shared import MOST, Sharing
from consortium.train.tokens import open_sequences
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB
from tests.train.test_leg import Site, SpoilingWorker, digests, federation, together

BETAS = (0.9, 0.95)
SHARING = Sharing(
    Layout.of({"a": (4, 8), "b": (8, 8)}), {"exp_avg": ("b",), "exp_avg_sq": ("b",), "momentum_buffer": ("a",)}
)
VECTORS = sorted(SHARING.covered)
SHARED = {**PARAMS, "outer": {**PARAMS["outer"], "share": "optimizer", "keep_received": -1}}
MUON = {**SHARED, "optim": {"name": "muon", "lr": 0.01, "warmup_steps": 2}}


def contributions(sites: int) -> list[Contribution]:
    return [
        Contribution(site=f"s{number}", digest="", tokens=1, weight=(1 / sites).hex(), clip=(1.0).hex())
        for number in range(sites)
    ]


def adamw(seed: int, steps: int = 40, size: int = 64, scale: float = 1.0) -> dict[str, Vector]:
    """The moments that random gradients leave."""
    draw = np.random.default_rng(seed)
    first, second = np.zeros(size), np.zeros(size)
    for _ in range(steps):
        gradient = scale * draw.standard_normal(size) * draw.choice([0.0, 1.0, 30.0], size)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
    return {"exp_avg": np.float32(first), "exp_avg_sq": np.float32(second)}


def state(seed: int, **kinds: Any) -> dict[str, Vector]:
    momentum = np.random.default_rng([seed, 1]).standard_normal(32).astype(np.float32)
    return {**adamw(seed, **kinds), "momentum_buffer": momentum}


def met(*states: dict[str, Vector]) -> dict[str, Vector]:
    known = {f"s{number}": SHARING.packed(Moments(one, 1)) for number, one in enumerate(states)}
    return SHARING.mean(contributions(len(states)), known, BETAS)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=5), st.integers(1, 60))
def test_of_honest_sites_it_is_the_plain_mean(seeds, steps):
    states = [state(seed, steps=steps) for seed in seeds]
    found = met(*states)
    norms = {name: [float(np.linalg.norm(one[name])) for one in states] for name in VECTORS}
    for name, known in norms.items():
        if max(known) <= MOST * sorted(known)[(len(known) - 1) // 2]:
            mean = np.mean([one[name] for one in states], axis=0)
            np.testing.assert_allclose(found[name], mean, rtol=1e-5, atol=1e-6 * float(np.abs(mean).max()))


@pytest.mark.parametrize("factor", [1e3, -1e3, 1e30])
def test_who_sends_a_huge_momentum_has_no_more_say_than_twice_the_median(factor):
    honest = [state(seed) for seed in (1, 2)]
    liar = {name: np.float32(factor) * vector for name, vector in state(3).items()}
    found = met(*honest, liar)["momentum_buffer"]
    rest = sum(one["momentum_buffer"] for one in honest) / 3
    lower = min(float(np.linalg.norm(one["momentum_buffer"])) for one in honest)
    upper = max(float(np.linalg.norm(one["momentum_buffer"])) for one in honest)
    assert lower / 3 <= float(np.linalg.norm(found - rest)) <= MOST * upper / 3 * 1.001
    alone = met(honest[0], liar)["momentum_buffer"]
    least = float(np.linalg.norm(honest[0]["momentum_buffer"]))
    assert float(np.linalg.norm(alone - honest[0]["momentum_buffer"] / 2)) <= MOST * least / 2 * 1.001


@given(st.integers(0, 10_000), st.sampled_from(["one", "all", "negative", "nothing"]), st.integers(0, 40))
def test_whatever_one_sends_no_later_step_is_longer_than_adamw_ever_makes(seed, lie, later):
    """|m| / sqrt(v) is bounded for any gradients; a made-up state must not lift it, now or while it fades."""
    liar = state(seed)
    if lie == "one":
        liar["exp_avg"] = np.zeros(64, dtype=np.float32)
        liar["exp_avg"][0], liar["exp_avg_sq"] = 1e20, np.zeros(64, dtype=np.float32)
    elif lie == "all":
        liar["exp_avg"] = np.full(64, -1e10, dtype=np.float32)
    elif lie == "negative":
        liar["exp_avg_sq"] = -np.float32(1e10) * np.ones(64, dtype=np.float32)
    else:
        liar = {name: np.zeros_like(vector) for name, vector in liar.items()}
    found = met(state(seed + 1), state(seed + 2), liar)
    first, second = found["exp_avg"].astype(np.float64), found["exp_avg_sq"].astype(np.float64)
    draw = np.random.default_rng(seed)
    one, two = BETAS
    most = 1.01 * (1 - one) / math.sqrt((1 - two) * (1 - one**2 / two))
    for _ in range(later + 1):
        assert (second >= 0).all()
        assert (np.abs(first) <= most * np.sqrt(second) + 1e-30).all()
        gradient = draw.standard_normal(64)
        first, second = one * first + (1 - one) * gradient, two * second + (1 - two) * gradient**2


@pytest.mark.parametrize("name", ["fp32", "bf16", "int8", "int4", "topk"])
def test_a_state_crosses_behind_every_code_and_what_is_not_one_is_refused(name):
    draw = np.random.default_rng(0)
    vector, moments = draw.standard_normal(5000).astype(np.float32), draw.standard_normal(700).astype(np.float32)
    code, alone = Code(name=name, state=700), Code(name=name)
    sent = code.encode(vector, None, moments)
    assert len(sent.data) == code.bytes_for(5000) == alone.bytes_for(5000) + len(Code(name="bf16").encode(moments).data)
    assert np.array_equal(code.decode(sent.data, 5000), alone.decode(alone.encode(vector).data, 5000))
    np.testing.assert_allclose(code.state_in(sent.data, 5000), moments, rtol=2**-8)
    assert (sent.residual is None) == (name == "fp32")
    damaged = bytearray(sent.data)
    damaged[-1], damaged[-2] = 0x7F, 0xC0
    for wrong in (sent.data[:-2], sent.data + b"\0\0", alone.encode(vector).data, bytes(damaged)):
        with pytest.raises(VerificationError):
            code.decode(wrong, 5000)
    for bad in (np.full(700, np.nan, dtype=np.float32), moments * np.float32(np.inf)):
        assert np.isnan(code.decode(code.encode(vector, None, bad).data, 5000)).all()
    assert np.isnan(code.decode(code.encode(vector * np.float32(np.nan), None, moments).data, 5000)).any()
    with pytest.raises(ValueError, match="700 elements"):
        code.encode(vector, None, moments[:-1])


def test_settings_that_cannot_be_are_refused():
    for wrong in ({"delay": 2}, {"rounds": 4, "fragments": 2}, {"mix": 0.5}):
        with pytest.raises(ValueError, match="share goes with"):
            OuterConfig(**({"rounds": 3, "inner_steps": 4, "share": "optimizer"} | wrong))
    with pytest.raises(UsageError, match=r"betas\[0\] squared"):
        PretrainConfig.of({**SHARED, "optim": {**PARAMS["optim"], "betas": [0.99, 0.95]}})


def kept_moments(site: Site, number: int) -> Moments:
    moments = Keep(site.store, JOB).outer(number, len(site.final.outer)).moments
    assert moments is not None
    return moments


@pytest.mark.integration
@pytest.mark.parametrize("params", [SHARED, MUON], ids=["adamw", "muon"])
def test_all_go_on_from_one_optimiser_and_an_audit_repeats_rounds_and_steps(leg, params, tmp_path):
    sites = federation(leg, params=params)
    together(sites)
    assert len(digests(sites)) == 1
    for number in (1, 2, 3):
        one, *others = [kept_moments(site, number) for site in sites]
        assert one.steps == 4 * number
        own = [Keep(site.store, JOB).contribution(number, len(site.final.outer)).moments.vectors for site in sites]
        for name, vector in one.vectors.items():
            assert all(np.array_equal(other.vectors[name], vector) for other in others)
            mean = np.mean([made[name] for made in own], axis=0)
            np.testing.assert_allclose(vector, mean, rtol=0.02, atol=0.01 * float(np.abs(mean).max()))
    sent = {artifact.artifact_class for artifact, _ in sites[0].hub.artifacts}
    assert sent == {ArtifactClass.OPTIMIZER_STATE, ArtifactClass.OUTER_STATE}
    site = sites[0]
    assert [one.result for one in replay(site.store, JOB, kept_params(site.store, JOB))] == ["verified"] * 3
    job = PretrainConfig.of(site.context.params)
    text = open_sequences(site.store, site.context.inputs, job.model.context, VOCAB, tmp_path)
    worker = InnerWorker(job, VOCAB, text, site.context.site)
    done = re_execute(Keep(site.store, JOB), worker, job, 3, worker.layout.size)
    assert (done.same_bits, done.distance, done.holds) == (True, 0.0, True)


@pytest.mark.integration
@pytest.mark.parametrize("crash", [("commit", 2, "before"), ("commit", 2, "after"), ("outer/2", 0, "before")])
def test_a_crash_changes_no_bit_of_what_is_shared(leg, crash):
    calm, sites = federation(leg, params=MUON), federation(leg, params=MUON)
    together(calm)
    for site in sites:
        site.crash = crash
    together(sites)
    assert digests(sites) == digests(calm)
    for name, vector in kept_moments(calm[0], 3).vectors.items():
        assert np.array_equal(kept_moments(sites[2], 3).vectors[name], vector)


class LyingWorker(SpoilingWorker):
    """Trains honestly and makes its optimiser's state up."""

    factor = 1.0

    def moments(self) -> Moments | None:
        honest = super().moments()
        if honest is None:
            return None
        lies = {name: np.float32(self.factor) * one for name, one in honest.vectors.items() if name != "exp_avg_sq"}
        return replace(honest, vectors={**honest.vectors, **lies})


@pytest.mark.integration
@pytest.mark.parametrize(
    ("factor", "cosine", "reason"), [(1e12, -1.0, "outlier"), (-1.0, 0.0, "cosine"), (-1.0, -1.0, "")]
)
def test_a_made_up_state_is_refused_or_bounded_and_shows_when_its_steps_are_done_again(
    leg, monkeypatch, tmp_path, factor, cosine, reason
):
    outer = {**SHARED["outer"], "screen": {"cosine": cosine}}
    sites = federation(leg, params={**SHARED, "outer": outer})
    worker_of = {"uy-1": LyingWorker}
    monkeypatch.setattr(LyingWorker, "factor", factor)
    monkeypatch.setattr(
        "tests.train.test_leg.SpoilingWorker", lambda *given: worker_of.get(given[-1], SpoilingWorker)(*given)
    )
    together(sites)
    assert len(digests(sites)) == 1
    assert np.isfinite(sites[0].final.outer).all()
    hub = sites[0].hub
    losses = [float.fromhex(commit.loss) for k in (1, 3) for commit in hub.rounds[k].commits]
    assert sum(losses[3:]) < sum(losses[:3])
    for number in (1, 2, 3):
        said = {(one.site, one.reason) for one in hub.rounds[number].verdicts}
        assert said == {("de-1", ""), ("fr-1", ""), ("uy-1", reason)}
    liar = sites[2]
    job = PretrainConfig.of(liar.context.params)
    text = open_sequences(liar.store, liar.context.inputs, job.model.context, VOCAB, tmp_path)
    worker = InnerWorker(job, VOCAB, text, "uy-1")
    assert not re_execute(Keep(liar.store, JOB), worker, job, 2, worker.layout.size).holds
