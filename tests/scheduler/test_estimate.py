"""Run times that accounts were seen to have: what a walltime is worth, and how good the estimates are."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.errors import ConfigError
from consortium.scheduler import RunTimes, accuracy, estimate, expected_s, observe
from consortium.scheduler.estimate import ENOUGH

HOUR = 3600


def seen(*jobs, start=None):
    """Run times after `jobs`: (account, how many, walltime in s, ran in s)."""
    run_times = start or RunTimes()
    for account, many, walltime_s, ran_s in jobs:
        for _ in range(many):
            run_times = observe(run_times, account, walltime_s, ran_s)
    return run_times


@pytest.mark.parametrize(
    ("story", "jobs", "account", "done_s", "low_s", "high_s", "source"),
    [
        ("nobody has ended a job: half of the walltime", (), "fr", 0, 5 * HOUR, 5 * HOUR, "walltime"),
        ("nor has enough of them", (("fr", ENOUGH - 1, HOUR, 60),), "fr", 0, 5 * HOUR, 5 * HOUR, "walltime"),
        ("half of what is left, then", (), "fr", 4 * HOUR, 3 * HOUR, 3 * HOUR, "walltime"),
        ("who uses a tenth is expected to use a tenth", (("fr", 40, HOUR, 360),), "fr", 0, 2800, 4400, "fr"),
        ("who always uses all is expected to use all", (("fr", 40, HOUR, HOUR),), "fr", 0, 36_000, 36_000, "fr"),
        ("having run on, it is one of the long ones", (("fr", 30, HOUR, 360), ("fr", 30, HOUR, HOUR)), "fr", 2 * HOUR,
         8 * HOUR, 8 * HOUR, "fr"),
        ("a new project is like its partner", (("fr/lab", 40, HOUR, 360),), "fr/health", 0, 2800, 4400, "fr"),
        ("a new partner is like everybody", (("fr/lab", 40, HOUR, 360),), "de", 0, 2800, 4400, "everybody"),
        ("own jobs come before others'", (("fr", 400, HOUR, HOUR), ("de", 40, HOUR, 360)), "de", 0, 2800, 4400, "de"),
        ("longer than any of its own: like everybody", (("fr", 40, HOUR, 360), ("de", 40, HOUR, HOUR)), "fr", 5 * HOUR,
         5 * HOUR, 5 * HOUR, "everybody"),
        ("past its walltime there is a second left", (("fr", 40, HOUR, 360),), "fr", 11 * HOUR, 1, 1, "walltime"),
    ],
)  # fmt: skip
def test_what_a_job_of_ten_hours_is_expected_to_run(story, jobs, account, done_s, low_s, high_s, source):
    answer = estimate(seen(*jobs), account, 10 * HOUR, done_s)
    assert low_s <= answer.expected_s <= high_s, story
    assert answer.source == source, story
    assert expected_s(seen(*jobs), account, 10 * HOUR, done_s) == answer.expected_s


def test_an_account_is_judged_by_what_it_does_lately():
    run_times = seen(("fr", 4096, HOUR, 40))
    before = expected_s(run_times, "fr", HOUR)
    run_times = seen(("fr", 4096, HOUR, HOUR), start=run_times)
    assert before < 100
    assert expected_s(run_times, "fr", HOUR) > 2400, "half of the first 4,096 jobs would leave less than this"


def test_counts_of_another_make_are_refused_when_they_are_read_back():
    run_times = seen(("fr", 3, HOUR, 40))
    assert RunTimes.restored(run_times.shares, run_times.errors) == run_times
    for broken in ((1, 2), (-1, *run_times.shares["fr"][1:])):
        with pytest.raises(ConfigError, match="run times of account 'fr'"):
            RunTimes.restored({"fr": broken}, {})


def test_the_range_holds_eight_in_ten_and_the_error_is_reported():
    """Walltimes are 1.1 to 20 times the run time, log-uniformly: nothing is known but the account's own past."""
    rng = random.Random(7)
    run_times, inside, ratios = RunTimes(), 0, []
    for _ in range(2000):
        ran_s = rng.randint(600, 50_000)
        walltime_s = int(ran_s * 1.1 * (20 / 1.1) ** rng.random())
        guess = estimate(run_times, "fr/lab", walltime_s)
        inside += guess.low_s <= ran_s <= guess.high_s
        ratios.append(ran_s / guess.expected_s)
        run_times = observe(run_times, "fr/lab", walltime_s, ran_s)
    assert 0.77 <= inside / 2000 <= 0.84
    found = accuracy(run_times, "fr/lab")
    assert found is not None
    assert found.jobs == 2000
    ratios.sort()
    assert found.median == pytest.approx(ratios[1000], rel=0.2)
    assert found.low == pytest.approx(ratios[500], rel=0.2)
    assert found.high == pytest.approx(ratios[1500], rel=0.2)
    assert accuracy(run_times, "fr") == found, "the partner's jobs are those of its project"
    assert accuracy(run_times, "de") is None


@given(
    jobs=st.lists(
        st.tuples(st.sampled_from(["fr", "fr/lab", "de"]), st.integers(1, 10**6), st.integers(0, 10**6)), max_size=120
    ),
    account=st.sampled_from(["fr", "fr/lab", "fr/new", "de", "uy"]),
    walltime_s=st.integers(1, 10**7),
    done_s=st.integers(0, 10**7),
)
def test_estimates_stay_within_the_walltime_and_do_not_depend_on_the_order_of_what_was_seen(
    jobs, account, walltime_s, done_s
):
    run_times = RunTimes()
    for each in jobs:
        run_times = observe(run_times, *each)
    answer = estimate(run_times, account, walltime_s, done_s)
    assert 1 <= answer.low_s <= answer.high_s <= max(1, walltime_s - done_s)
    assert answer.low_s <= answer.expected_s or answer.source != "walltime"
    assert 1 <= answer.expected_s <= max(1, walltime_s - done_s)
    backwards = RunTimes()
    for each in reversed(jobs):
        backwards = observe(backwards, *each)
    assert backwards.shares == run_times.shares
    assert estimate(backwards, account, walltime_s, done_s) == answer
