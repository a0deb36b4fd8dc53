"""Checks that classes of params and configs make of their own fields, and the error that names the keys at fault."""

from __future__ import annotations

import math


class FieldError(ValueError):
    """What a class's own check found: `what`, the keys it lies between, and what to do about it.

    Keys are dotted below the class that checks; the first is the one to change where nobody set any of them.
    """

    def __init__(self, what: str, key: str, *more: str, fix: str = "") -> None:
        self.keys = (key, *more)
        self.fix = fix
        super().__init__(what, key, *more)

    def __str__(self) -> str:
        """Return what was found, alone."""
        return str(self.args[0])


def number(value: float) -> str:
    """Return a bound as people read it: `1,000,000`, `0.9999`, `1e-09`."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def within(config: object, **bounds: tuple[float, float]) -> None:
    """Raise FieldError unless each named field is a finite number from its lower to its upper bound."""
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        finite = isinstance(value, int) or math.isfinite(value)  # a whole number may be larger than any float
        if not (finite and low <= value <= high):
            raise FieldError(f"{name} must be {number(low)} to {number(high)}, got {value:,}", name)
