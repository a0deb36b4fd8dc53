from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.units import MS_PER_HOUR, data_size, gpu_hours, reference_gpu_hours


@pytest.mark.parametrize(
    ("gpu_ms", "digits", "text"),
    [
        (0, 4, "0.0000"),
        (MS_PER_HOUR, 4, "1.0000"),
        (MS_PER_HOUR // 2, 0, "0"),
        (3 * MS_PER_HOUR // 2, 0, "2"),
        (180, 4, "0.0000"),
        (540, 4, "0.0002"),
        (181, 4, "0.0001"),
        (-540, 4, "-0.0002"),
        (10**24, 4, "277777777777777777.7778"),
        (10**40 * MS_PER_HOUR + 181, 4, "1" + "0" * 40 + ".0001"),
    ],
)
def test_gpu_hours_round_half_even_once(gpu_ms, digits, text):
    assert gpu_hours(gpu_ms, digits) == text


@given(st.integers(0, 10**15), st.integers(0, 6))
def test_the_rendering_is_the_nearest_decimal(gpu_ms, digits):
    distance = abs(Fraction(gpu_hours(gpu_ms, digits)) - Fraction(gpu_ms, MS_PER_HOUR))
    assert distance <= Fraction(1, 2 * 10**digits)


def test_reference_hours_are_summed_exactly_and_rounded_at_the_end():
    assert reference_gpu_hours({"1.0": MS_PER_HOUR, "0.312": 3 * MS_PER_HOUR}) == "1.9360"
    third = {"0.1": 180, "0.2": 180, "0.7": 180}
    assert reference_gpu_hours(third) == gpu_hours(180)
    assert reference_gpu_hours({}) == "0.0000"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (24_400_000, "24.4 MB"),
        (5 * 10**12, "5.0 TB"),
        (7 * 10**15, "7.0 PB"),
        (7 * 10**18, "7000.0 PB"),
    ],
)
def test_data_sizes(size, text):
    assert data_size(size) == text
