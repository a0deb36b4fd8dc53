"""Figures against values computed by hand."""

from __future__ import annotations

import json

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.config.quota import QuotaEntry
from consortium.config.scenario import SiteEntry
from consortium.simulate.events import Kind, line
from consortium.simulate.figures import Meter, Moment, Totals, hours, quantile, summary
from consortium.simulate.plot import Averages
from tests.simulate.builders import H, finish, job, scenario, start, submit

SITES = {"de-1": SiteEntry(gpus=8), "es-1": SiteEntry(gpus=24), "fr-1": SiteEntry(gpus=8)}
DE, ES, FR = "de-1-n000", "es-1-n000", "fr-1-n000"


def test_borrowed_is_lent_by_those_who_leave_theirs_unused_in_proportion() -> None:
    """fr holds 12 of its own 8 for two hours: 4 borrowed. de leaves 8 unused, es 24: they lend 1 and 3.

    After an hour es fills 16 of its 24: de and es leave 8 each and lend 2 each.
    """
    meter = Meter(scenario(sites=SITES), from_ms=0, until_ms=H)
    big, small, own = job("big", gpus=8), job("small", gpus=4), job("own", gpus=16, account="es")
    for event in [
        submit(big), submit(small), start(big, 0, "fr-1", {FR: 8}), start(small, 0, "de-1", {DE: 4}),
        submit(own, H), start(own, H, "es-1", {ES: 8, "es-1-n001": 8}),
        finish(small, 2 * H, "de-1", {DE: 4}), finish(big, 2 * H, "fr-1", {FR: 8}),
        finish(own, 3 * H, "es-1", {ES: 8, "es-1-n001": 8}),
    ]:  # fmt: skip
        meter.see(event)
    meter.close(3 * H)
    assert meter.partners == ["de", "es", "fr"]
    assert [value / H for value in meter.borrowed] == [0, 0, 8]
    assert [value / H for value in meter.lent] == [1 + 2, 3 + 2, 0]
    assert [value / H for value in meter.consumed] == [0, 32, 24]
    assert [value / H for value in meter.delivered] == [8, 32, 16]
    assert meter.busy_gpu_ms == 12 * H  # within the first hour only
    assert meter.capacity == 40


def test_nothing_is_borrowed_within_nominal_wherever_it_runs() -> None:
    meter = Meter(scenario(), from_ms=0, until_ms=H)
    abroad = job("abroad", gpus=8)
    for event in [submit(abroad), start(abroad, 0, "de-1", {DE: 8}), finish(abroad, H, "de-1", {DE: 8})]:
        meter.see(event)
    meter.close(H)
    assert (meter.borrowed, meter.lent) == ([0, 0], [0.0, 0.0])
    assert (meter.delivered, meter.consumed) == ([8 * H, 0], [0, 8 * H])


def test_projects_count_with_their_partner() -> None:
    quotas = {"fr/lab": {"gpu": QuotaEntry(nominal=0)}}
    meter = Meter(scenario(quotas=quotas), from_ms=0, until_ms=H)
    lab = job("lab", gpus=8, account="fr/lab")
    for event in [submit(lab), start(lab, 0, "fr-1", {FR: 8}), finish(lab, H, "fr-1", {FR: 8})]:
        meter.see(event)
    meter.close(H)
    assert meter.borrowed == [0, 0]


def test_wait_is_from_submission_to_finish_less_the_run_time_owed() -> None:
    first, second = job("a", submit_ms=0), job("b", submit_ms=H, account="de")
    meter = Meter(scenario(), from_ms=0, until_ms=H)
    for event in [submit(first), start(first, 0, "fr-1", {FR: 1}), submit(second, H)]:
        meter.see(event)
    meter.see(finish(first, H, "fr-1", {FR: 1}))
    meter.close(2 * H)
    figures = summary((first, second), Totals(waits_ms={"a": 0, "b": 3 * H}, starts=3, evictions=1), meter)
    assert (figures["mean_wait_h"], figures["median_wait_h"], figures["p95_wait_h"]) == (1.5, 1.5, 2.85)
    assert (figures["jobs"], figures["completed"], figures["decisions"]) == (2, 2, 4)
    assert figures["utilisation"] == 1 / 16
    per_partner = figures["per_partner"]
    assert isinstance(per_partner, dict)
    assert per_partner["de"]["mean_wait_h"] == 3
    assert per_partner["fr"]["gpu_hours_consumed"] == 1


def test_no_job_no_figures() -> None:
    meter = Meter(scenario(), from_ms=0, until_ms=0)
    meter.close(0)
    assert summary((), Totals(), meter)["mean_wait_h"] == 0
    assert hours([]) == {"mean": 0, "median": 0, "p95": 0, "p99": 0}


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=40), st.sampled_from((0.0, 0.5, 0.95, 0.99, 1.0)))
def test_quantiles_are_those_of_numpy(values: list[int], part: float) -> None:
    assert quantile(sorted(values), part) == pytest.approx(float(numpy.quantile(values, part)), rel=1e-9, abs=1e-6)


def test_an_event_is_one_line_of_json_with_whole_seconds_where_they_are() -> None:
    odd = job('he said "no"', gpus=12)
    assert json.loads(line(start(odd, 90_000, "fr-1", {"fr-1-n001": 4, FR: 8}))) == {
        "t": 90, "event": "start", "job": 'he said "no"', "partner": "fr", "site": "fr-1", "gpus": 12,
        "nodes": {FR: 8, "fr-1-n001": 4},
    }  # fmt: skip
    assert line(submit(odd, 1)).startswith('{"t": 0.001, "event": "submit"')
    assert '"t": 90,' in line(finish(odd, 90_000, "fr-1", {FR: 12}, Kind.PREEMPT))


def test_the_plot_averages_what_was_held_over_each_bin() -> None:
    """Ten seconds in two bins: 4 GPUs for the first 2.5 s, then 8; one waits for the last 2.5 s."""
    moments = [
        Moment(0, (4,), (0,), (0.0,), 0),
        Moment(2500, (8,), (2,), (0.0,), 0),
        Moment(7500, (8,), (2,), (1.0,), 1),
        Moment(10_000, (0,), (0,), (0.0,), 0),
    ]
    seen = Averages(moments, 1, bins=2)
    assert seen.held == [[6.0, 8.0]]
    assert seen.borrowed == [[1.0, 2.0]]
    assert seen.lent == [[0.0, 0.5]]
    assert seen.queued == [0.0, 0.5]
