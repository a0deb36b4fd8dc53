"""The mean of the sites' inner optimisers: what honest ones come to, what a liar can do, legs that go on from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import OuterConfig, PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Contribution
from consortium.errors import UsageError, VerificationError
from consortium.train.again import check_start, re_execute, states_apart
from consortium.train.codes import Code
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.outer import Layout, Moments, Vector
from consortium.train.replay import kept_params, replay
from consortium.train.shared import MOST, Sharing
from consortium.train.tokens import open_sequences
from consortium.train.votes import medians
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB
from tests.train.test_leg import Site, SpoilingWorker, digests, federation, replace_site, together

BETAS = (0.9, 0.95)
LONGEST = (1 + 2**-7) * (1 - BETAS[0]) / math.sqrt((1 - BETAS[1]) * (1 - BETAS[0] ** 2 / BETAS[1]))
SHARING = Sharing(
    Layout.of({"a": (4, 8), "b": (8, 8)}), {"exp_avg": ("b",), "exp_avg_sq": ("b",), "momentum_buffer": ("a",)}
)
VECTORS = sorted(SHARING.covered)
PARTNERS = ("de", "fr", "uy", "at", "be")
SHARED = {**PARAMS, "outer": {**PARAMS["outer"], "share": "optimizer", "keep_received": -1}}
MUON = {**SHARED, "optim": {"name": "muon", "lr": 0.01, "warmup_steps": 2}}


def contributions(sites: Iterable[str]) -> list[Contribution]:
    named = list(sites)
    weight = (1 / len(named)).hex()
    return [
        Contribution(site=site, digest="", tokens=1 + 7 * number, weight=weight, clip=(1.0).hex())
        for number, site in enumerate(named)
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


def expected(name: str, states: list[Any], found: Any) -> Vector:
    """The plain mean; of second moments without what is far above the median, and of first ones within these."""
    rows = np.stack([one[name] for one in states])
    if name == "exp_avg_sq":
        rows = np.minimum(rows, 10 * np.sort(rows, axis=0)[(len(rows) - 1) // 2])
    mean: Vector = rows.mean(axis=0)
    most = LONGEST * np.sqrt(found["exp_avg_sq"]) if name == "exp_avg" else np.inf
    return np.clip(mean, -most, most)


def met(*states: dict[str, Vector]) -> dict[str, Vector]:
    known = {f"{PARTNERS[number]}-1": SHARING.packed(Moments(one, 1)) for number, one in enumerate(states)}
    return SHARING.mean(contributions(known), known, BETAS)


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=5), st.integers(1, 60))
def test_of_honest_sites_it_is_the_mean(seeds, steps):
    states = [state(seed, steps=steps) for seed in seeds]
    found = met(*states)
    norms = {name: [float(np.linalg.norm(one[name])) for one in states] for name in VECTORS}
    for name, known in norms.items():
        if max(known) <= MOST * sorted(known)[(len(known) - 1) // 2]:
            mean = expected(name, states, found)
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


@pytest.mark.parametrize("level", [0.0, 1.0, 1e30])
def test_a_made_up_second_moment_makes_no_step_shorter_than_by_two(level):
    honest = [state(seed) for seed in (1, 2)]
    found = met(*honest, {**state(3), "exp_avg_sq": np.full(64, level, dtype=np.float32)})["exp_avg_sq"]
    both = np.stack([one["exp_avg_sq"] for one in honest])
    honest_mean = both.mean(axis=0)
    assert (found <= (10 * both.max(axis=0) + 2 * honest_mean) / 3 * 1.001).all()
    assert (found >= both.min(axis=0) / 3).all()


@pytest.mark.parametrize("level", [0.0, 1e30, -1e30])
def test_between_two_one_can_make_both_begin_anew_and_no_more(level):
    honest = state(1)
    liar = {**state(2), "exp_avg_sq": np.full(64, level, dtype=np.float32)}
    found = met(honest, liar)
    assert (found["exp_avg_sq"] <= 5.5 * honest["exp_avg_sq"] * 1.001).all()
    assert (np.abs(found["exp_avg"]) <= LONGEST * np.sqrt(found["exp_avg_sq"]) * 1.001).all()


def test_a_partner_with_three_of_five_sites_decides_no_second_moment():
    lie = SHARING.packed(Moments({**state(3), "exp_avg_sq": np.zeros(64, dtype=np.float32)}, 1))
    one, other = state(1), state(2)
    known = {f"de-{number}": lie for number in (1, 2, 3)}
    known |= {"fr-1": SHARING.packed(Moments(one, 1)), "uy-1": SHARING.packed(Moments(other, 1))}
    found = SHARING.mean(contributions(known), known, BETAS)["exp_avg_sq"]
    least = np.minimum(one["exp_avg_sq"], other["exp_avg_sq"])
    assert (found >= 2 * least / 5 * 0.999).all()


def test_what_one_site_alone_moves_begins_anew():
    alone = {name: np.zeros_like(vector) for name, vector in state(1).items() if name != "momentum_buffer"}
    rest = {"momentum_buffer": state(1)["momentum_buffer"]}
    found = met(state(2), {**alone, **rest}, {**alone, **rest})
    assert not found["exp_avg_sq"].any()
    assert not found["exp_avg"].any()


def test_a_partner_with_many_sites_has_one_vote_on_what_is_large():
    assert medians({"de-1": 1e-6, "de-2": 1e-6, "de-3": 1e-6, "fr-1": 1.0, "uy-1": 2.0}) == (1.0, 1.0)
    assert medians({"de-1": 1.0, "fr-1": 3.0}) == (1.0, 3.0)
    assert medians({"fr-1": 3.0}) == (3.0, 3.0)
    assert medians({}) == (0.0, 0.0)


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
    most = 1.01 * LONGEST
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


def test_steps_that_came_to_no_numbers_are_the_same_when_they_do_so_again():
    code, size = Code(state=SHARING.size), SHARING.layout.size
    fine = code.encode(np.ones(size, dtype=np.float32), None, SHARING.packed(Moments(state(1), 1))).data
    none = code.encode(np.ones(size, dtype=np.float32), None, np.full(SHARING.size, np.nan, dtype=np.float32)).data
    assert [states_apart(code, SHARING, *pair, size) for pair in ((none, none), (fine, none), (none, fine))] == [
        0.0, math.inf, math.inf,
    ]  # fmt: skip
    flat = {**state(1), "exp_avg_sq": np.full(64, 1e-3, dtype=np.float32)}
    other = code.encode(np.ones(size, dtype=np.float32), None, SHARING.packed(Moments(flat, 1))).data
    assert states_apart(code, SHARING, other, fine, size) > 0.5, "each vector by itself"


def test_settings_that_cannot_be_are_refused():
    for wrong in (
        {"delay": 2},
        {"rounds": 4, "fragments": 2},
        {"mix": 0.5},
        {"screen": ScreenRule(aggregate="median")},
    ):
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
            mean = expected(name, own, one.vectors)
            np.testing.assert_allclose(vector, mean, rtol=0.02, atol=0.01 * float(np.abs(mean).max()))
    sent = {artifact.artifact_class for artifact, _ in sites[0].hub.artifacts}
    assert sent == {ArtifactClass.OPTIMIZER_STATE, ArtifactClass.OUTER_STATE}
    site = sites[0]
    assert [one.result for one in replay(site.store, JOB, kept_params(site.store, JOB))] == ["verified"] * 3
    job = PretrainConfig.of(site.context.params)
    text = open_sequences(site.store, site.context.inputs, job.model.context, VOCAB)
    worker = InnerWorker(job, VOCAB, text, site.context.site)
    done = re_execute(Keep(site.store, JOB), worker, job, 3, worker.layout.size)
    assert (done.same_bits, done.distance, done.holds) == (True, 0.0, True)
    assert [check_start(site.store, JOB, job, number) for number in (1, 2, 3)] == [False, True, True]
    key = f"jobs/{JOB}/outer/1/state.json"
    kept = json.loads(site.store.get(key))
    name = sorted(kept["optimizer"])[0]
    size = kept_moments(site, 1).vectors[name].size
    made_up = site.store.put_addressed(f"jobs/{JOB}/outer/1", np.ones(size, dtype="<f4").tobytes(), ".f32")
    kept["optimizer"][name] = {"key": made_up.key, "digest": made_up.digest}
    site.store.put(key, json.dumps(kept).encode())
    with pytest.raises(VerificationError, match="not the mean of what round 1 counted"):
        check_start(site.store, JOB, job, 2)
    slightly = kept_moments(sites[1], 1).vectors[name].copy()
    slightly[np.argmax(np.abs(slightly))] *= np.float32(1.001)
    changed = site.store.put_addressed(f"jobs/{JOB}/outer/1", slightly.astype("<f4").tobytes(), ".f32")
    kept["optimizer"][name] = {"key": changed.key, "digest": changed.digest}
    site.store.put(key, json.dumps(kept).encode())
    with pytest.raises(VerificationError, match=f"1 elements of {name} differ"):
        check_start(site.store, JOB, job, 2)
    site.store.put(key, json.dumps({**kept, "adam_steps": 1}).encode())
    with pytest.raises(VerificationError, match="not that after 4 steps"):
        check_start(site.store, JOB, job, 2)
    for lost in site.store.list(f"jobs/{JOB}/rounds/1/received/"):
        site.store.put(lost, b"rotten")
    assert not check_start(site.store, JOB, job, 2), "what is damaged says nothing"


@pytest.mark.integration
def test_a_site_that_missed_a_round_goes_on_from_the_others_optimiser(leg):
    sites = federation(leg, params=SHARED)
    hub = sites[0].hub
    together([replace_site(site, rounds=1) for site in sites])
    hub.lose("uy-1")
    together(sites[:2])
    together(sites[2:])
    assert len(digests(sites)) == 1
    assert [len(hub.rounds[k].commits) for k in (1, 2, 3)] == [3, 2, 2]
    for name, vector in kept_moments(sites[0], 3).vectors.items():
        assert np.array_equal(kept_moments(sites[2], 3).vectors[name], vector)


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
    kind = "exp_avg"

    def moments(self) -> Moments | None:
        honest = super().moments()
        if honest is None:
            return None
        lie = np.float32(self.factor) * honest.vectors[self.kind]
        return replace(honest, vectors={**honest.vectors, self.kind: lie})


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "factor", "cosine", "reason"),
    [
        ("exp_avg", 1e12, -1.0, "outlier"),
        ("exp_avg", -1.0, 0.0, "cosine"),
        ("exp_avg", -1.0, -1.0, ""),
        ("exp_avg_sq", 1e6, -1.0, "outlier"),
        ("exp_avg_sq", -1.0, -1.0, "outlier"),
        ("exp_avg_sq", 30.0, -1.0, ""),
    ],
)
def test_a_made_up_state_is_refused_or_bounded_and_shows_when_its_steps_are_done_again(
    leg, monkeypatch, tmp_path, kind, factor, cosine, reason
):
    outer = {**SHARED["outer"], "screen": {"cosine": cosine}}
    sites = federation(leg, params={**SHARED, "outer": outer})
    worker_of = {"uy-1": LyingWorker}
    monkeypatch.setattr(LyingWorker, "factor", factor)
    monkeypatch.setattr(LyingWorker, "kind", kind)
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
    text = open_sequences(liar.store, liar.context.inputs, job.model.context, VOCAB)
    worker = InnerWorker(job, VOCAB, text, "uy-1")
    assert not re_execute(Keep(liar.store, JOB), worker, job, 2, worker.layout.size).holds
