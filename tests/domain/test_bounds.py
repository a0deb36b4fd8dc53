"""Bounds as people read them, and the error that names the keys at fault."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from consortium.domain.bounds import FieldError, number, within


@pytest.mark.parametrize(
    ("bound", "shown"),
    [(1_000_000, "1,000,000"), (1 << 25, "33,554,432"), (-1, "-1"), (0.9999, "0.9999"), (1e-9, "1e-09")],
)
def test_bounds_are_shown_in_full(bound: float, shown: str) -> None:
    assert number(bound) == shown


@pytest.mark.parametrize(
    "value", [0.5, 2.5, float("nan"), float("inf"), 10**400, -(10**400)], ids=lambda value: str(value)[:4]
)
def test_what_is_out_of_bounds_is_told_with_its_key(value: float) -> None:
    within(SimpleNamespace(rate=1.5), rate=(1, 2))
    with pytest.raises(FieldError, match=r"^rate must be 1 to 2, got ") as fault:
        within(SimpleNamespace(rate=value), rate=(1, 2))
    assert fault.value.keys == ("rate",)


def test_a_field_error_travels_between_processes() -> None:
    fault = FieldError("a and b exclude each other", "a", "b", fix="leave one out")
    again = pickle.loads(pickle.dumps(fault))
    assert (str(again), again.keys, again.fix) == ("a and b exclude each other", ("a", "b"), "leave one out")
