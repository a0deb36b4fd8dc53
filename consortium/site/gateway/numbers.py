"""Numbers that leave a site: six significant digits."""

from __future__ import annotations

import math
from typing import Any

SIGNIFICANT_DIGITS = 6
"""Of metrics and progress: enough for people, little room for anything else."""


def rounded(value: Any) -> float | str:
    """Return a metric's value with six significant digits; not-a-number and infinities as MLflow writes them."""
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}")
