"""Rounds that shorten with the rate: as many steps as there are, and no round without one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.training_lengths import lengths


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
