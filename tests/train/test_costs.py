"""What a training would cost, against what codes, models and plain arithmetic say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from consortium.cli import estimate
from consortium.config.compose import compose_job
from consortium.config.federation import load_federation
from consortium.domain.codec import to_json
from consortium.domain.partner import Site
from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UsageError
from consortium.train.codes import Code
from consortium.train.costs import Costs, Place, _kept, costs, fragment_counts
from consortium.train.sizes import flops_per_token, memory, parameter_count
from tests.train.conftest import PARAMS
from tests.train.conftest import VOCAB as SMALL
from tests.train.hub import JOB
from tests.train.test_leg import federation, together

VOCAB = 32_000
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sites() -> dict[str, Site]:
    return {site.id: site for site in load_federation(ROOT / "configs", ROOT / "clusters").sites}


def asked(
    sites: dict[str, Site], *more: str, at: tuple[str, ...] = ("fr-1", "de-1", "uy-1"), walltime_s: int = 86_400
) -> tuple[PretrainConfig, Costs]:
    params = PretrainConfig.of(compose_job("pretrain", list(more)).params)
    links = {"fr-1": {"de-1": "10", "uy-1": "1"}}
    places = [Place(site=sites[name], data_tokens=10**9, gbit_per_s=links.get(name, {})) for name in at]
    return params, costs(params, VOCAB, places, gpus=8, gpus_per_worker=1, walltime_s=walltime_s)


def test_hours_are_flops_over_measured_tflops_and_the_slowest_site_holds_the_others(sites):
    params, found = asked(sites, "model=1b", "outer.rounds=100", "outer.inner_steps=100", "data.batch_size=4")
    by_site = {one.site: one for one in found.sites}
    tokens = 100 * 100 * 8 * 4 * params.model.context
    flops = tokens * flops_per_token(params.model, VOCAB)
    assert by_site["fr-1"].tokens == tokens
    assert by_site["fr-1"].passes == tokens / 10**9
    assert by_site["fr-1"].hours == pytest.approx(
        (flops / (620e12 * 8 * 0.6 * 3600), flops / (620e12 * 8 * 0.3 * 3600))
    )
    slowest = max(found.sites, key=lambda one: one.hours)
    assert slowest.site != "fr-1"
    initial = 4 * found.parameters / 10e9 * 8 / 3600
    crossing = max(border.round_s or 0 for border in found.borders) * 100 / 3600 + initial
    assert found.hours == pytest.approx((slowest.hours[0] + crossing, slowest.hours[1] + crossing))
    assert found.computing[0] == pytest.approx(slowest.hours[0] / found.hours[0])
    held = [8 * float(sites[one.site].flavor.reference_factor) * found.hours[1] for one in found.sites]
    assert found.reference_gpu_hours[1] == pytest.approx(sum(held))
    _, recomputed = asked(sites, "model=1b", "outer.rounds=100", "outer.inner_steps=100", "data.batch_size=4",
                          "model.recompute=true")  # fmt: skip
    assert recomputed.sites[0].hours[0] == pytest.approx(found.sites[0].hours[0] * 4 / 3)


@pytest.mark.parametrize(("optim", "least", "most"), [("adamw", 4.0, 4.0), ("muon", 2.0, 3.0)])
def test_a_shared_optimiser_adds_two_bytes_for_each_of_its_numbers(sites, optim, least, most):
    given = ("model=1b", f"optim={optim}", "outer.rounds=10")
    (_, alone), (params, shared) = asked(sites, *given), asked(sites, *given, "outer.share=optimizer")
    more = shared.borders[0].round_bytes - alone.borders[0].round_bytes
    assert more == pytest.approx(memory(params, VOCAB).optimizer / 2, rel=1e-6)
    assert least <= more / shared.parameters <= most + 1e-6
    assert shared.kept_round_bytes - alone.kept_round_bytes == more


@pytest.mark.integration
@pytest.mark.parametrize("outer", [
    {}, {"delay": 2}, {"delay": 2, "mix": 0.5}, {"mix": 0.5}, {"delay": 2, "code": "int8"},
])  # fmt: skip
def test_what_a_round_keeps_is_what_the_store_takes(leg, outer):
    given = PARAMS | {"outer": PARAMS["outer"] | outer}
    (site,) = federation(leg, ("fr-1",), params=given)
    together([site])
    params = PretrainConfig.of(given)
    count = parameter_count(params.model, SMALL)
    vectors = [
        site.store.size(key)
        for room in ("outer", "rounds")
        for key in site.store.list(f"jobs/{JOB}/{room}/2/")
        if key.endswith((".f32", ".code"))
    ]
    stated = _kept(params, SMALL, count, Code.of(params.outer, 0).bytes_for(count))
    assert sum(vectors) == stated


def test_rounds_that_shorten_do_as_many_steps(sites):
    (_, alike), (_, tapered) = asked(sites, "outer.rounds=60"), asked(sites, "outer.rounds=60", "outer.taper=0.5")
    assert (alike.shortest, alike.longest) == (20, 20)
    assert tapered.shortest < 20 < tapered.longest
    assert [one.steps for one in tapered.sites] == [one.steps for one in alike.sites]


@pytest.mark.parametrize("code", ["fp32", "int4", "topk"])
def test_bytes_are_those_of_the_code_and_the_first_site_sends_the_initial_state(sites, code):
    params, found = asked(sites, "model=small", f"outer.code={code}", "outer.rounds=7", "outer.keep_received=3")
    count = parameter_count(params.model, VOCAB)
    payload = Code.of(params.outer).bytes_for(count)
    borders = {(one.sender, one.recipient): one for one in found.borders}
    assert len(borders) == 6
    assert borders["fr-1", "uy-1"].total_bytes == 7 * payload
    assert borders["de-1", "fr-1"].total_bytes == 7 * payload + 4 * count
    assert borders["fr-1", "uy-1"].round_s == pytest.approx(8 * payload / 1e9)
    assert borders["uy-1", "fr-1"].round_s == borders["fr-1", "uy-1"].round_s
    assert borders["de-1", "uy-1"].round_s is None
    assert found.received_bytes == 3 * 2 * payload


def test_what_does_not_fit_is_said_with_what_makes_it_fit(sites):
    large = ["model=1b", "data.batch_size=32", "outer.rounds=1"]
    params, found = asked(sites, *large)
    needed = memory(params, VOCAB, workers=8).total
    assert all(needed < one.needed_bytes < needed + 3e9 for one in found.sites)
    (said,) = [text for text in found.warnings if text.startswith("fr-1: ")]
    assert "more than it has; it fits with data.accumulate=" in said
    mended = said.rpartition("it fits with ")[2].split(" and ")
    assert not any(text.startswith("fr-1: ") for text in asked(sites, *large, *mended)[1].warnings)
    (hopeless, *_) = asked(sites, "model=7b", "model.layers=400", "outer.rounds=1")[1].warnings
    assert "no batch is small enough" in hopeless
    assert asked(sites, "model=1m", at=("fr-1",))[1].warnings == ()


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ((), False),
        (("optim.warmup_steps=99",), False),
        (("optim.warmup_steps=100",), True),
        (("optim.warmup_steps=80", "optim.schedule=wsd"), False),
        (("optim.warmup_steps=81", "optim.schedule=wsd"), True),
        (("optim.warmup_steps=100", "optim.final_lr_share=1"), False),
    ],
)
def test_a_warm_up_that_leaves_the_rate_no_steps_to_come_down_is_said(sites, given, warned):
    _, found = asked(sites, "model=1m", "outer.rounds=10", "outer.inner_steps=10", *given, at=("fr-1",))
    assert any("warmup_steps" in text for text in found.warnings) is warned


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_workers_share_a_model_that_fits_on_none_of_them(sites, optim):
    given = ["model=7b", f"optim={optim}", "data.batch_size=1", "outer.rounds=1"]
    (said, *_) = asked(sites, *given, at=("fr-1",))[1].warnings
    assert said.endswith("parallel=fsdp")
    mended = said.rpartition("it fits with ")[2].split(" and ")
    assert not any(text.startswith("fr-1: ") for text in asked(sites, *given, *mended, at=("fr-1",))[1].warnings)


def test_a_walltime_that_ends_before_the_last_round_is_said_with_one_that_does_not(sites):
    long = ["model=1b", "outer.rounds=100", "outer.inner_steps=5000"]
    (late,) = [said for said in asked(sites, *long)[1].warnings if "walltime_s" in said]
    enough = int(late.partition("walltime_s=")[2].split()[0])
    assert not any("walltime_s" in said for said in asked(sites, *long, walltime_s=enough)[1].warnings)


def test_what_streaming_and_pace_change(sites):
    long = ["model=1b", "outer.rounds=100", "outer.inner_steps=100", "data.batch_size=4"]
    (params, plain), (_, parts) = asked(sites, *long), asked(sites, *long, "outer.fragments=2")
    assert abs(2 * parts.borders[0].round_bytes - plain.borders[0].round_bytes) <= 4
    assert plain.kept_round_bytes < parts.kept_round_bytes
    late = asked(sites, *long, "outer.delay=100", "outer.mix=0.5")[1]
    slowest = max(site.hours[0] for site in plain.sites)
    assert plain.hours[0] > slowest
    crossing_h = max(border.round_s or 0 for border in late.borders) / 3600
    initial_h = 4 * late.parameters / 10e9 * 8 / 3600
    assert late.hours[0] == pytest.approx(slowest + crossing_h + initial_h), (
        "but for the last round and the first state"
    )
    paced = {site.site: site for site in asked(sites, *long, "outer.pace=measured")[1].sites}
    usual = {site.site: site for site in plain.sites}
    assert paced["uy-1"].steps == usual["uy-1"].steps
    assert usual["fr-1"].steps < paced["fr-1"].steps <= 4 * usual["fr-1"].steps
    assert paced["fr-1"].hours[0] <= paced["uy-1"].hours[0]
    again = replace(params, start=replace(params.start, job="job-" + "0" * 26, round=1, resume=True, done=1))
    resumed = costs(again, VOCAB, [Place(site=sites[s]) for s in ("de-1", "fr-1")], gpus=8, gpus_per_worker=1,
                    walltime_s=10**6)  # fmt: skip
    assert [border.first_bytes for border in resumed.borders] == [0, 0]


def test_a_fragment_that_holds_the_embeddings_is_larger_and_a_delay_does_not_hide_all_of_it(sites):
    # Of `15m` with 32,000 words the embeddings are three fifths, and lie in one of six fragments.
    given = ("model=15m", "outer.rounds=12", "outer.inner_steps=10", "outer.fragments=6", "outer.delay=10")
    params, found = asked(sites, *given, at=("fr-1", "uy-1"))
    count, code = parameter_count(params.model, VOCAB), Code.of(params.outer)
    sizes = fragment_counts(params.model, VOCAB, 6)
    assert sum(sizes) == count
    assert max(sizes) > 4 * count / 6 > 4 * min(sizes)
    border = next(one for one in found.borders if one.sender == "uy-1")
    assert border.total_bytes == 2 * sum(code.bytes_for(size) for size in sizes)
    # Over 1 Gbit/s, ten steps being shorter than that: all of it shows, less ten steps for all rounds but the last.
    slowest = max(site.hours[0] for site in found.sites)
    all_h = 8 * (border.total_bytes + 4 * count) / 1e9 / 3600
    delays_h = 11 * 10 * slowest / 120
    least_h = 8 * code.bytes_for(min(sizes)) / 1e9 / 3600
    assert least_h > 10 * slowest / 120, "no round is hidden whole"
    assert found.hours[0] == pytest.approx(slowest + all_h - delays_h)


def test_no_walltime_is_named_that_would_be_refused(sites):
    long = ["model=7b", "outer.rounds=10000", "outer.inner_steps=5000"]
    (late,) = [said for said in asked(sites, *long)[1].warnings if "walltime" in said]
    assert late.endswith("it is stopped after 24 h, before its last round; no walltime_s is enough: take more GPUs, or "
                         "fewer steps")  # fmt: skip


def test_numbers_are_told_in_words_and_units_of_people(capsys, sites):
    assert [estimate.number(n) for n in (999, 999_499_999, 999_500_000, 1_235_814_400, 4 * 10**16)] == [
        "999", "999 million", "1 billion", "1.24 billion", "40,000 trillion"
    ]  # fmt: skip
    assert estimate.span([3.3e-06, 6.7e-06]) == "<0.001"
    assert estimate.span([0.0005, 12.345]) == "<0.001 to 12.3"
    params = PretrainConfig.of(compose_job("pretrain", ["model=7b", "outer.rounds=100000", "outer.inner_steps=1000000",
                                                        "data.batch_size=65536"]).params)  # fmt: skip
    place = Place(site=sites["fr-1"], data_tokens=1)
    found = costs(params, VOCAB, [place], gpus=100_000, gpus_per_worker=1, walltime_s=1)
    estimate.show(to_json(found))
    assert "GPU-hours" in capsys.readouterr().out


def test_of_one_site_nothing_crosses_and_of_a_plugin_nothing_is_known(sites):
    params, found = asked(sites, "model=1m", at=("fr-1",))
    assert (found.borders, found.computing, found.received_bytes) == ((), (1.0, 1.0), 0)
    with pytest.raises(UsageError, match="not known before it is built"):
        costs(
            replace(params, model=replace(params.model, plugin="own")),
            VOCAB,
            [Place(site=sites["fr-1"])],
            gpus=1,
            gpus_per_worker=1,
            walltime_s=1,
        )
