"""Legs whose pseudo-gradients cross borders in a code: one outer state, crashes, refusals, residuals."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import OuterConfig, PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Commit
from consortium.errors import UsageError
from consortium.keys.canonical import digest as digest_of
from consortium.train.again import re_execute
from consortium.train.codes import Code
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.outer import norm_of, to_bytes, vector_digest
from consortium.train.replay import kept_params, replay
from consortium.train.screen import screen
from consortium.train.tokens import open_sequences
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB
from tests.train.test_leg import CrashError, Site, digests, federation, together

pytestmark = pytest.mark.integration
CODES = ("bf16", "int8", "int4", "topk")
ROUNDS = 6


def coded(name: str, **changes: Any) -> dict[str, Any]:
    sparse = {"lr": 1.0, "momentum": 0.0, "topk": 256} if name == "topk" else {}  # no outer momentum, as in SparseLoCo
    return {**PARAMS, "outer": {**PARAMS["outer"], "code": name, **sparse, **changes}}


def kept_residual(site: Site, number: int) -> np.ndarray | None:
    return Keep(site.store, JOB).outer(number, len(site.final.outer)).residual


@pytest.mark.parametrize("name", CODES)
def test_sites_agree_learn_and_send_what_the_code_says(leg, name):
    sites = federation(leg, params=coded(name, rounds=ROUNDS))
    together(sites)
    assert len(digests(sites)) == 1
    hub, size, numbers = sites[0].hub, len(sites[0].final.outer), range(1, ROUNDS + 1)
    assert all(len(hub.rounds[k].certificate.contributions) == 3 for k in numbers)
    losses = [float.fromhex(commit.loss) for k in (1, ROUNDS) for commit in hub.rounds[k].commits]
    assert sum(losses[3:]) < sum(losses[:3])
    sent = [data for artifact, data in hub.artifacts if artifact.artifact_class is ArtifactClass.PSEUDO_GRADIENT]
    assert {len(data) for data in sent} == {Code.of(PretrainConfig.of(coded(name)).outer).bytes_for(size)}
    committed = {commit.digest for k in numbers for commit in hub.rounds[k].commits}
    assert (
        {digest_of(data) for data in sent}
        == committed
        == {part.digest for k in numbers for part in hub.rounds[k].certificate.contributions}
    )
    for site in sites:
        assert site.final.residual is not None
        assert site.final.residual.any()
        np.testing.assert_array_equal(kept_residual(site, ROUNDS), site.final.residual)
    assert len({vector_digest(site.final.residual) for site in sites}) == 3, "each site's own"


def test_without_a_code_the_bare_vector_is_sent_and_nothing_more_is_kept(leg):
    sites = federation(leg)
    together(sites)
    assert len(digests(sites)) == 1
    size = len(sites[0].final.outer)
    assert {len(data) for _, data in sites[0].hub.artifacts} == {4 * size}
    assert all(site.final.residual is None for site in sites)
    assert not [key for key in sites[0].store.list(f"jobs/{JOB}/") if key.endswith(".code")]


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize(
    "crash",
    [
        ("commit", 2, "before"),
        ("commit", 2, "after"),
        ("outer/2", 0, "before"),
    ],
)
def test_a_crash_neither_loses_nor_doubles_a_residual(leg, undisturbed, crash):
    if not undisturbed:
        calm = federation(leg, params=coded("topk", feedback=0.95))
        together(calm)
        undisturbed["outer"] = digests(calm)
        undisturbed["commits"] = sorted(calm[0].hub.commits_seen)
        undisturbed["residuals"] = [vector_digest(site.final.residual) for site in calm]
    sites = federation(leg, params=coded("topk", feedback=0.95))
    for site in sites:
        site.crash = crash
    together(sites)
    assert digests(sites) == undisturbed["outer"]
    assert sorted(sites[0].hub.commits_seen) == undisturbed["commits"]
    assert [vector_digest(site.final.residual) for site in sites] == undisturbed["residuals"]


@pytest.mark.parametrize("lost", ["nothing", "the contribution", "the residual"])
@pytest.mark.parametrize("name", ["int4", "topk"])
def test_what_was_applied_and_the_residual_add_up_to_what_was_trained(leg, monkeypatch, name, lost):
    """A crash between encoding and commit, with or without what was kept of it: encoded again, counted once."""
    given: dict[str, np.ndarray] = {}
    encode = Code.encode

    def seen(code: Code, vector: np.ndarray, *more: np.ndarray | None) -> Any:
        given[vector_digest(vector)] = vector
        return encode(code, vector, *more)

    monkeypatch.setattr(Code, "encode", seen)
    (site,) = federation(leg, ("fr-1",), params=coded(name))
    with pytest.raises(CrashError):
        site._run(("commit", 2, "before"))
    if lost != "nothing":
        made = Keep(site.store, JOB).contribution(2, next(iter(given.values())).size)
        key = f"jobs/{JOB}/rounds/2/"
        gone = "contribution.json" if lost == "the contribution" else vector_digest(made.residual)[7:] + ".f32"
        site.store.delete(key + gone)
    together([site])
    assert digests([site])
    assert len(given) == 3, "repeated steps give the same vector"
    code, size = Code.of(PretrainConfig.of(coded(name)).outer), len(site.final.outer)
    applied = [
        code.decode(Keep(site.store, JOB).contribution(k, size).data, size).astype(np.float64) for k in (1, 2, 3)
    ]
    trained = sum(vector.astype(np.float64) for vector in given.values())
    scale = max(np.abs(vector).max() for vector in given.values())
    np.testing.assert_allclose(sum(applied) + site.final.residual, trained, rtol=0, atol=12 * scale * 2.0**-23)


def test_a_refused_contribution_leaves_its_sites_residual_as_it_was(leg):
    sites = federation(leg, params=coded("topk"))
    sites[2].spoil = 100.0
    together(sites)
    assert len(digests(sites)) == 1
    assert {v.reason for k in (1, 2, 3) for v in sites[0].hub.rounds[k].verdicts if v.site == "uy-1"} == {"outlier"}
    assert sites[2].final.residual is None, "nothing of it was ever applied"
    assert sites[0].final.residual is not None


def test_an_auditor_recomputes_coded_rounds_and_inner_steps(leg, tmp_path):
    sites = federation(leg, ("de-1", "fr-1"), params=coded("int4", keep_received=-1))
    together(sites)
    assert digests(sites)
    site, params = sites[1], PretrainConfig.of(sites[1].context.params)
    assert [one.result for one in replay(site.store, JOB, kept_params(site.store, JOB))] == ["verified"] * 3
    text = open_sequences(site.store, site.context.inputs, params.model.context, VOCAB)
    worker = InnerWorker(params, VOCAB, text, site.context.site)
    done = re_execute(Keep(site.store, JOB), worker, params, 3, worker.layout.size)
    assert (done.same_bits, done.holds) == (True, True)
    root = f"jobs/{JOB}/rounds"
    kept, before = (json.loads(site.store.get(f"{root}/{number}/contribution.json")) for number in (3, 2))
    site.store.put(f"{root}/3/contribution.json", json.dumps(kept | {"residual": before["residual"]}).encode())
    done = re_execute(Keep(site.store, JOB), worker, params, 3, worker.layout.size)
    assert not done.holds, "the bytes are those, and what it carries on is made up"


class Elsewhere(InnerWorker):
    """A machine that rounds differently."""

    def run(self, start: Any, **where: Any) -> Any:
        done = super().run(start, **where)
        moved = np.abs(done.local - start).mean()
        noise = np.random.default_rng(1).normal(0, 3e-3 * moved, len(done.local)).astype(np.float32)
        return replace(done, local=done.local + noise)


@pytest.mark.parametrize("name", ["bf16", "int8", "int4"])
def test_inner_steps_done_again_where_last_bits_are_others_are_found_to_be_those(leg, tmp_path, name):
    (site,) = federation(leg, ("fr-1",), params=coded(name))
    together([site])
    assert digests([site])
    params = PretrainConfig.of(site.context.params)
    text = open_sequences(site.store, site.context.inputs, params.model.context, VOCAB)
    worker = Elsewhere(params, VOCAB, text, site.context.site)
    done = re_execute(Keep(site.store, JOB), worker, params, 3, worker.layout.size)
    assert (done.same_bits, done.holds) == (False, True), done
    assert done.distance < 0.1


def judged(code: Code, data: bytes, norm: float) -> str:
    commit = Commit(
        job="j", round=1, site="fr-1", tokens=1, steps=1, digest=digest_of(data), norm=norm.hex(), loss="0x0p+0"
    )
    (one,) = screen([commit], {"fr-1": data}, {}, 5000, code=code)
    return one.reason


def test_a_contribution_in_another_code_or_form_is_refused_by_its_shape():
    vector = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    for name in CODES:
        code = Code(name=name)
        data = code.encode(vector).data
        norm = norm_of(code.decode(data, 5000))
        assert judged(code, data, norm) == ""
        assert judged(code, data, norm * 1.01) == "norm", "the norm is of the decoded vector"
        assert judged(code, to_bytes(vector), norm) == "shape"
        assert judged(code, data[:-1], norm) == "shape"
        assert judged(Code(name="topk", topk=32), data, norm) == "shape"
        assert judged(code, code.encode(np.full(5000, np.nan, np.float32)).data, norm) == "finite"


def test_settings_name_a_code_that_exists():
    assert Code.of(PretrainConfig.of(PARAMS).outer) == Code()
    assert Code.of(PretrainConfig.of(coded("topk", topk=32, feedback=0.9)).outer) == Code(
        name="topk", topk=32, feedback=0.9
    )
    for wrong in ({"code": "zip"}, {"topk": 48}, {"feedback": 2.0}):
        with pytest.raises(UsageError):
            PretrainConfig.of({**PARAMS, "outer": {**PARAMS["outer"], **wrong}})
    with pytest.raises(ValueError, match="aggregate must be mean"):
        OuterConfig(rounds=1, inner_steps=1, code="topk", screen=ScreenRule(aggregate="median"))
