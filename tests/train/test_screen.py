from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from consortium.domain.pretraining import PretrainConfig
from consortium.domain.protocol import LegContext, StoreAccess
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Commit, Standing
from consortium.keys.canonical import digest as digest_of
from consortium.train.outer import norm_of, to_bytes
from consortium.train.screen import Gates, Work, screen
from tests.train.conftest import PARAMS
from tests.train.test_pace import round_of

SIZE = 50


@pytest.fixture
def leg_context() -> LegContext:
    none = StoreAccess(endpoint="", bucket="", access_key="", secret_key="", prefix="")
    return LegContext(
        job="j", job_kind="pretrain", job_name="t", attempt="", leg="", epoch="1.1", site="de-1", partner="de",
        peers=("de-1", "fr-1"), params={}, inputs=(), gpus=1, gpus_per_worker=1, gpu_resource="sim_gpu", store=none,
    )  # fmt: skip


def made(site: str, scale: float = 1.0, value: float | None = None, **changes) -> tuple[Commit, bytes]:
    vector = (np.random.default_rng(sum(site.encode())).standard_normal(SIZE) * scale).astype(np.float32)
    if value is not None:
        vector[3] = value
    data = to_bytes(vector)
    fields = {"digest": digest_of(data), "norm": norm_of(vector).hex(), "loss": "0x0p+0"} | changes
    return Commit(job="j", round=1, site=site, tokens=1, steps=1, **fields), data


def reasons(*contributions: tuple[Commit, bytes], faults: dict[str, str] | None = None) -> dict[str, str]:
    received = {commit.site: data for commit, data in contributions if commit.site not in (faults or {})}
    judged = screen([commit for commit, _ in contributions], received, faults or {}, SIZE)
    assert [one.commit.site for one in judged] == sorted(one.commit.site for one in judged)
    return {one.commit.site: one.reason for one in judged}


def test_honest_contributions_of_unlike_size_are_accepted():
    assert reasons(made("uy-1", 5.0), made("de-1"), made("fr-1", 0.5)) == {"de-1": "", "fr-1": "", "uy-1": ""}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (made("uy-1", 100.0), "outlier"),
        (made("uy-1", value=np.nan), "finite"),
        (made("uy-1", value=np.inf), "finite"),
        (made("uy-1", loss="0x1.fffffffffffffp+1023"), "finite"),
        (made("uy-1", loss="nan"), "finite"),
        (made("uy-1", loss="-inf"), "finite"),
        (made("uy-1", loss="low"), "finite"),
        (made("uy-1", norm=(1.0).hex()), "norm"),
        (made("uy-1", norm="not a number"), "norm"),
        (made("uy-1", digest="sha256:00"), "digest"),
        ((made("uy-1", digest=digest_of(b"\0" * 8))[0], b"\0" * 8), "shape"),
    ],
)
def test_a_bad_contribution_is_refused_and_named_the_others_are_not(bad, reason):
    assert reasons(made("de-1"), made("fr-1"), bad) == {"de-1": "", "fr-1": "", "uy-1": reason}


def test_what_could_not_be_had_carries_its_fault():
    judged = reasons(made("de-1"), made("fr-1"), faults={"fr-1": "unreachable"})
    assert judged == {"de-1": "", "fr-1": "unreachable"}


def test_between_two_nobody_is_the_outlier():
    assert reasons(made("de-1"), made("fr-1", 1000.0)) == {"de-1": "", "fr-1": ""}


def test_a_contribution_of_zeros_is_no_reason_to_refuse_the_others():
    assert set(reasons(made("de-1", 0.0), made("fr-1", 0.0), made("uy-1")).values()) == {""}


def test_a_verdict_names_digest_reason_and_measured_norm():
    contribution = made("de-1")
    (one,) = screen([contribution[0]], {"de-1": contribution[1]}, {}, SIZE)
    assert one.as_verdict() == {
        "site": "de-1", "digest": contribution[0].digest, "accept": True, "reason": "", "norm": contribution[0].norm
    }  # fmt: skip


def gates(momentum: np.ndarray | None = None, norms: tuple[float, ...] = (), probe=None, **rule) -> Gates:
    standing = Standing(clip=(2.0).hex(), window=8, quarantine=0, norms=tuple(norm.hex() for norm in norms))
    return Gates(rule=ScreenRule(**rule), standing=standing, momentum=momentum, probe=probe)


def judged(given: Gates, *contributions: tuple[Commit, bytes]) -> dict[str, str]:
    found = screen(
        [commit for commit, _ in contributions], {commit.site: data for commit, data in contributions}, {}, SIZE, given
    )
    return {one.commit.site: one.reason for one in found}


def test_past_norms_tell_the_outlier_between_two():
    norms = tuple(norm_of(vector_of(made(site))) for site in ("de-1", "fr-1", "uy-1"))
    assert judged(gates(norms=norms), made("de-1"), made("fr-1", 1000.0)) == {"de-1": "", "fr-1": "outlier"}
    assert judged(gates(norms=norms[:2]), made("de-1"), made("fr-1", 1000.0)) == {"de-1": "", "fr-1": ""}


def vector_of(contribution: tuple[Commit, bytes]) -> np.ndarray:
    return np.frombuffer(contribution[1], dtype="<f4")


def test_a_contribution_against_the_momentum_is_refused_whatever_the_others_say():
    momentum = vector_of(made("de-1")) + vector_of(made("fr-1"))
    flipped = made("fr-1", -1.0)
    given = gates(momentum, cosine=0.0)
    assert judged(given, made("de-1"), flipped) == {"de-1": "", "fr-1": "cosine"}
    assert judged(given, flipped) == {"fr-1": "cosine"}
    assert judged(gates(momentum), made("de-1"), flipped) == {"de-1": "", "fr-1": ""}


@pytest.mark.parametrize(
    ("steps", "tokens", "reason"),
    [(5, 500, ""), (4, 400, ""), (5, 10**30, "tokens"), (6, 600, "tokens"), (0, 0, "tokens"), (5, 499, "tokens")],
)
def test_a_weight_that_no_leg_can_have_earned_is_refused(steps, tokens, reason):
    commit, data = made("fr-1")
    given = Gates(work=Work(tokens_per_step=100, most_steps=5))
    assert judged(given, (replace(commit, steps=steps, tokens=tokens), data)) == {"fr-1": reason}


def test_where_pace_is_measured_each_site_has_the_steps_that_its_own_speed_gave_it():
    work = Work(tokens_per_step=100, most_steps=30, earlier=round_of(("de-1", 30, 2_000), ("fr-1", 30, 1_000)))
    commit = replace(made("fr-1")[0], steps=60, tokens=6_000)
    assert work.fits(commit)
    assert not work.fits(replace(commit, steps=61, tokens=6_100))
    assert not work.fits(replace(commit, site="de-1"))


@pytest.mark.parametrize(("delay", "number", "most"), [(0, 1, 1), (0, 2, 4), (2, 1, 1), (2, 2, 1), (2, 3, 4)])
def test_before_any_speed_was_measured_no_site_has_more_steps_than_the_job_says(leg_context, delay, number, most):
    outer = {**PARAMS["outer"], "pace": "measured", "delay": delay}
    params = PretrainConfig.of({**PARAMS, "outer": outer})
    assert Work.of(params, leg_context, number).most_steps == most * params.outer.inner_steps


def test_judges_that_have_not_the_same_measure_by_the_same():
    three = made("de-1"), made("fr-1"), made("uy-1", 100.0)
    commits = [commit for commit, _ in three]
    for absent in (0, 1):
        here = [one for at, one in enumerate(three) if at != absent]
        judged = screen([c for c, _ in here], {c.site: data for c, data in here}, {}, SIZE, beside=commits)
        assert {one.commit.site: one.reason for one in judged}["uy-1"] == "outlier"
        late = screen(
            commits, {c.site: data for c, data in here}, {commits[absent].site: "unreachable"}, SIZE, beside=commits
        )
        assert {one.commit.site: one.reason for one in late}["uy-1"] == "outlier"


def test_before_there_is_momentum_the_cosine_says_nothing():
    assert judged(gates(np.zeros(SIZE, np.float32), cosine=0.0), made("fr-1", -1.0)) == {"fr-1": ""}


def test_what_does_damage_is_refused_worst_first_and_the_rest_is_measured_again():
    target = vector_of(made("de-1")) / 3

    def loss(gradient: np.ndarray) -> float:
        return 1 + float(np.sum((target - gradient) ** 2))

    given = gates(probe=loss, loss_rise=0.5)
    assert judged(given, made("de-1"), made("fr-1", 5.0), made("uy-1", 0.01)) == {
        "de-1": "", "fr-1": "loss", "uy-1": ""
    }  # fmt: skip
    assert judged(gates(probe=loss), made("de-1"), made("fr-1", 5.0)) == {"de-1": "", "fr-1": ""}


def test_a_loss_that_is_no_number_is_damage():
    given = gates(probe=lambda gradient: float("nan") if np.abs(gradient).max() > 3 else 1.0, loss_rise=1.0)
    assert judged(given, made("de-1", 0.1), made("fr-1", 9.0)) == {"de-1": "", "fr-1": "loss"}
