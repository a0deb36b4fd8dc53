"""Budgets: what was metered, what running jobs may still use, what is left; all cut at the end of the period."""

from __future__ import annotations

import pytest

from consortium.accounting.budgets import Claim, cost, standings
from consortium.accounting.periods import bounds
from consortium.domain.quota import Budget
from consortium.domain.units import MS_PER_HOUR

START, END = bounds("2026-11")
NOW = START + 100 * MS_PER_HOUR
FACTORS = {"fr-1": "1.0", "de-1": "0.344"}


def budget(account="fr", hours=1000, period="2026-11"):
    return Budget(account=account, period=period, reference_gpu_ms=hours * MS_PER_HOUR)


def claim(account="fr", site="fr-1", gpus=4, start_ms=NOW, end_ms=NOW + MS_PER_HOUR):
    return Claim(account=account, site=site, gpus=gpus, start_ms=start_ms, end_ms=end_ms)


@pytest.mark.parametrize(
    ("story", "used", "claims", "used_hours", "promised_hours", "left_hours"),
    [
        ("nothing happened yet", {}, [], 0, 0, 1000),
        ("what was metered counts with its site's factor", {("fr", "fr-1"): 10, ("fr", "de-1"): 1000}, [], 354, 0, 646),
        ("a project's use is its partner's too", {("fr/lab", "fr-1"): 100}, [], 100, 0, 900),
        ("another partner's is not", {("de", "fr-1"): 100, ("frx", "fr-1"): 100}, [], 0, 0, 1000),
        ("running jobs count up to their walltime", {}, [claim(gpus=8, end_ms=NOW + 24 * MS_PER_HOUR)], 0, 192, 808),
        ("but not beyond the period", {}, [claim(start_ms=END - MS_PER_HOUR, end_ms=END + 99)], 0, 4, 996),
        ("a budget that is overdrawn has nothing left", {("fr", "fr-1"): 1200}, [claim()], 1200, 4, 0),
    ],
)  # fmt: skip
def test_how_a_budget_stands(story, used, claims, used_hours, promised_hours, left_hours):
    gpu_ms = {key: hours * MS_PER_HOUR for key, hours in used.items()}
    (found,) = standings([budget()], gpu_ms, claims, FACTORS, NOW).values()
    assert found.used == used_hours * MS_PER_HOUR, story
    assert found.promised == promised_hours * MS_PER_HOUR, story
    assert found.left == left_hours * MS_PER_HOUR, story


def test_only_the_present_periods_budgets_bind():
    given = [budget(period="2026-10"), budget(period="2026-12"), budget("de")]
    assert set(standings(given, {}, [], FACTORS, NOW)) == {"de"}
    assert standings([budget(period="2026-10")], {}, [], FACTORS, NOW) == {}


def test_what_a_job_may_use_is_its_walltime_at_its_sites_within_the_period():
    assert cost(2, ("fr-1",), 3600, FACTORS, NOW) == 2 * MS_PER_HOUR
    assert cost(2, ("fr-1", "de-1"), 3600, FACTORS, NOW) == 2 * MS_PER_HOUR + 2 * 344 * MS_PER_HOUR // 1000
    assert cost(2, ("fr-1",), 7200, FACTORS, END - MS_PER_HOUR) == 2 * MS_PER_HOUR
    assert cost(1, ("uy-1",), 1, FACTORS, NOW) == 1000, "a site without a factor counts as the reference"
    assert cost(1, ("de-1",), 1, {"de-1": "0.0001"}, NOW) == 1, "rounded up, never to nothing"
