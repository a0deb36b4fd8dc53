"""Mean, trimmed mean and median by coordinate: the same bits everywhere, and one site cannot pull them far."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.domain.screening import ScreenRule
from consortium.domain.training import Contribution
from consortium.train.combine import combine, trimmed_sites
from consortium.train.outer import aggregate

SITES = ("aa-1", "bb-1", "cc-1", "dd-1", "ee-1")
RUN = """
import importlib, sys, numpy as np
if sys.argv[1] != "-":
    importlib.import_module(sys.argv[1])
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Contribution
from consortium.train.combine import combine
from consortium.keys.canonical import digest as digest_of
from consortium.train.outer import to_bytes
random = np.random.default_rng(3)
n = 100_003
tokens = {"de-1": 700, "es-1": 100, "fr-1": 300, "uy-1": 300}
made = {site: (random.standard_normal(n) * 1e-3).astype(np.float32).round(4) for site in tokens}
parts = [Contribution(site=s, digest="", tokens=tokens[s], weight=(tokens[s] / 1400).hex(), clip=(0.7).hex())
         for s in sys.argv[2:]]
for how in ("trimmed", "median"):
    print(digest_of(to_bytes(combine(parts, made, n, ScreenRule(aggregate=how)))))
"""


def parts(*tokens: int, clip: float = 1.0) -> list[Contribution]:
    total = sum(tokens)
    return [
        Contribution(site=site, digest="", tokens=count, weight=(count / total).hex(), clip=clip.hex())
        for site, count in zip(SITES, tokens, strict=False)
    ]


def rows(*values: list[float]) -> dict[str, np.ndarray]:
    return {site: np.float32(row) for site, row in zip(SITES, values, strict=False)}


def test_bits_do_not_depend_on_simd_or_on_the_order_of_arrival():
    runs = {
        tuple(
            subprocess.run(
                [sys.executable, "-c", RUN, library, *order.split()],
                env={**os.environ, "ATEN_CPU_CAPABILITY": capability, "NPY_DISABLE_CPU_FEATURES": numpy_off},
                capture_output=True,
                text=True,
                check=True,
            ).stdout.split()[-2:]
        )
        for library, capability, numpy_off, order in (
            ("-", "default", "AVX2 FMA3", "fr-1 uy-1 de-1 es-1"),
            ("torch", "avx2", "", "es-1 uy-1 de-1 fr-1"),
        )
    }
    assert len(runs) == 1, runs


def test_the_mean_is_the_one_it_always_was():
    made, vectors = parts(100, 300, clip=0.5), rows([1, 2], [3, 5])
    np.testing.assert_array_equal(combine(made, vectors, 2, ScreenRule()), aggregate(made, vectors, 2))


@pytest.mark.parametrize(
    ("what", "tokens", "values", "expected"),
    [
        ("the middle one of three", (1, 1, 1), ([1], [9], [5]), [5]),
        ("between two equal ones", (1, 1), ([1], [9]), [5]),
        ("the heavier one of two", (1, 2), ([1], [9]), [9]),
        ("a site with most tokens decides", (1, 1, 3), ([1], [2], [7]), [7]),
        ("half of the tokens on either side", (1, 1, 2), ([1], [2], [7]), [4.5]),
        ("one alone", (5,), ([3],), [3]),
    ],
)
def test_the_median_counts_tokens(what, tokens, values, expected):
    made = combine(parts(*tokens), rows(*values), 1, ScreenRule(aggregate="median"))
    np.testing.assert_array_equal(made, np.float32(expected), what)


def test_a_trimmed_mean_leaves_the_ends_out_and_weighs_the_rest():
    rule = ScreenRule(aggregate="trimmed", trim=0.25)
    made = combine(parts(1, 1, 1, 3), rows([1, 4], [100, 3], [-9, 2], [5, 1]), 2, rule)
    np.testing.assert_array_equal(made, np.float32([(1 + 3 * 5) / 4, 2.5]))
    assert [trimmed_sites(n, 0.25) for n in (1, 2, 3, 4, 8)] == [0, 0, 1, 1, 2]
    assert trimmed_sites(3, 0.49) == 1


@pytest.mark.parametrize("lie", [2**62, 10**60])
def test_a_token_count_beyond_all_bounds_breaks_no_leg(lie):
    made, vectors = parts(1000, 1000, lie), rows([1, 2], [1.5, 2], [9, -9])
    median = combine(made, vectors, 2, ScreenRule(aggregate="median"))
    np.testing.assert_array_equal(median, np.float32([9, -9]), "who is believed to have most of the tokens decides")
    trimmed = combine(made, vectors, 2, ScreenRule(aggregate="trimmed"))
    assert np.isfinite(trimmed).all()


def test_equal_values_are_cut_from_the_first_site_on():
    rule = ScreenRule(aggregate="trimmed", trim=0.25)
    assert combine(parts(1, 1, 2, 4), rows([1], [1], [1], [1]), 1, rule) == np.float32(1)


numbers = st.floats(-1e3, 1e3, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), numbers), min_size=3, max_size=5), st.sampled_from(["median", "trimmed"]),
       st.floats(-(2.0**100), 2.0**100, width=32))  # fmt: skip
def test_one_site_among_equals_cannot_leave_the_others_range(given_, how, lie):
    values = [[value] for _, value in given_]
    values[0] = [lie]
    made = combine(parts(*[1] * len(values)), rows(*values), 1, ScreenRule(aggregate=how, trim=0.34))
    others = np.float32([value for (value,) in values[1:]])
    # Relative rounding, and that of values so small that they have few bits left.
    slack = np.float32(1e-5) * np.abs(others).max() + 4 * np.finfo(np.float32).smallest_subnormal
    assert others.min() - slack <= made[0] <= others.max() + slack


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 10**9), numbers), min_size=1, max_size=5))
def test_at_most_half_of_the_tokens_lie_on_either_side_of_the_median(given_):
    made = float(combine(parts(*[t for t, _ in given_]), rows(*[[v] for _, v in given_]), 1,
                         ScreenRule(aggregate="median"))[0])  # fmt: skip
    total = sum(tokens for tokens, _ in given_)
    close = 1e-3 + 1e-5 * abs(made)
    assert 2 * sum(tokens for tokens, value in given_ if value < made - close) <= total
    assert 2 * sum(tokens for tokens, value in given_ if value > made + close) <= total
