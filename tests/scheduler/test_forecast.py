"""Forecasts: a closed run goes on at every instant that lets a job start, not only when a leg ends."""

from __future__ import annotations

from consortium.scheduler import Window, WindowKind, forecast
from tests.builders import NOW_MS, account
from tests.scheduler.worlds import H100, HOUR_MS, held, job, world


def test_a_job_starts_when_the_window_it_waits_for_is_over_though_nothing_runs():
    closed = Window(
        id="win-1", kind=WindowKind.MAINTENANCE, site="fr-1", nodes=(), start_ms=NOW_MS, end_ms=NOW_MS + HOUR_MS
    )
    asks = job(1, sites=("fr-1",))
    assert forecast(world(asks, windows=(closed,))) == {asks.id: NOW_MS + HOUR_MS}


def test_what_was_borrowed_is_taken_back_as_soon_as_it_ran_for_min_run_s():
    accounts = (account("fr", {H100: 16}), account("de", {H100: 0}))
    lent = held(1, "fr-1", {"n0": 8, "n1": 8}, account="de", walltime_s=10 * 3600)
    asks = job(1, gpus=8, sites=("fr-1",))
    assert forecast(world(asks, accounts=accounts, held=(lent,))) == {asks.id: NOW_MS + (1800 + 120) * 1000}
    later = forecast(world(asks, accounts=accounts, held=(lent,), min_run_s=7200, stop_s=60))
    assert later == {asks.id: NOW_MS + (7200 + 60) * 1000}
    assert forecast(world(asks, accounts=accounts, held=(lent,), preemption=False)) == {asks.id: NOW_MS + 10 * HOUR_MS}


def test_a_forecast_counts_expected_run_times_where_it_is_asked_to():
    runs = held(1, "fr-1", {"n0": 8, "n1": 8}, expected_s=600)
    asks = job(1, gpus=8, sites=("fr-1",))
    snapshot = world(asks, held=(runs,))
    assert forecast(snapshot) == {asks.id: NOW_MS + HOUR_MS}
    assert forecast(snapshot, run="expected") == {asks.id: NOW_MS + 600_000}


def test_a_forecast_of_many_shapes_ends_before_it_keeps_its_caller_for_minutes():
    runs = held(1, "fr-1", {"n0": 8, "n1": 8})
    asks = [job(number, gpus=16 - number, sites=("fr-1",), walltime_s=3600) for number in range(3)]
    snapshot = world(*asks, held=(runs,))
    starts = forecast(snapshot)
    assert sorted(starts.values()) == [NOW_MS + hours * HOUR_MS for hours in (1, 2, 3)]
    first = min(starts, key=lambda name: starts[name])
    assert forecast(snapshot, looks=3) == {}
    assert forecast(snapshot, looks=4) == {first: starts[first]}
