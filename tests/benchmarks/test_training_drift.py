"""Sites with different aims: rounds of many inner steps must still lead where single steps together would."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.training_drift import deviation, lengths

AIMS = np.array([[0.0, 4.0], [6.0, 0.0], [1.0, 1.0]], dtype=np.float32)
CURVATURES = np.array([[1.0, 0.1], [0.2, 2.0], [0.5, 0.5]], dtype=np.float32)
TOGETHER = (AIMS * CURVATURES).sum(axis=0) / CURVATURES.sum(axis=0)
"""Where the sum of the sites' losses, half of curvature times squared distance from the aim, is least."""
RATE, STEPS = 0.1, 20


def rounds(count: int, share: float) -> np.ndarray:
    """Train by plain averaging; each site takes `share` of its deviation back."""
    outer = np.zeros(2, dtype=np.float32)
    kept: list[np.ndarray | None] = [None, None, None]
    for _ in range(count):
        sent = []
        for aim, curvature, correction in zip(AIMS, CURVATURES, kept, strict=True):
            local = outer.copy()
            for _ in range(STEPS):
                local -= np.float32(RATE) * curvature * (local - aim)
                if correction is not None:
                    local += np.float32(share * RATE) * correction
            sent.append(outer - local)
        mean = np.mean(sent, axis=0, dtype=np.float32)
        kept = [
            deviation(own, mean, rates=RATE * STEPS, before=before, share=share) if share else None
            for own, before in zip(sent, kept, strict=True)
        ]
        outer = outer - mean
    return outer


def test_averaging_alone_ends_beside_the_common_optimum():
    assert np.abs(rounds(200, 0.0) - TOGETHER).max() > 0.2


def test_sites_that_take_their_deviation_back_reach_it():
    assert np.abs(rounds(200, 1.0) - TOGETHER).max() < 1e-3


def test_deviations_of_all_sites_cancel():
    own = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    mean = own.mean(axis=0)
    found = [deviation(one, mean, rates=2.0, before=None) for one in own]
    assert np.abs(np.sum(found, axis=0)).max() < 1e-5


def test_what_was_taken_back_is_not_forgotten():
    own, mean = np.float32([3.0, 1.0]), np.float32([1.0, 1.0])
    first = deviation(own, mean, rates=2.0, before=None)
    # The site does the same again but for the correction: its deviation is the same again.
    assert deviation(own - 2.0 * first, mean, rates=2.0, before=first).tolist() == first.tolist()


def test_a_round_without_learning_has_no_deviation():
    with pytest.raises(ValueError, match="more than 0"):
        deviation(AIMS[0], AIMS[1], rates=0.0, before=None)


def test_rounds_are_shorter_where_the_rate_is_lower():
    rates = [0.1, 0.5, *[1.0] * 58, *[0.5] * 40]
    assert lengths(rates, 10, power=0) == (10,) * 10
    found = lengths(rates, 14, power=1)
    assert sum(found) == 100
    assert found == (10,) * 6 + (5,) * 8


@pytest.mark.parametrize("power", [-3.0, 3.0])
def test_no_round_is_without_a_step(power):
    rates = np.linspace(1.0, 0.01, 40)
    found = lengths(rates.tolist(), 30, power=power)
    assert (sum(found), len(found), min(found)) == (40, 30, 1)
    with pytest.raises(ValueError, match="41 rounds"):
        lengths(rates.tolist(), 41, power=power)
