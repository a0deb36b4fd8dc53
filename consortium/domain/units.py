"""Integer quantities and their rendering. Sums stay integers; rounding happens once, here, when a person reads.

Accounted quantities: GPU-milliseconds (`gpu_ms`), bytes, tokens, millijoules. Times are UTC Unix milliseconds
(`*_ms`), intervals half-open. Factors are decimal strings (`"0.312"`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from fractions import Fraction

MS_PER_HOUR = 3_600_000
MAX_SAFE_INTEGER = 2**53 - 1
"""The largest integer every JSON reader keeps exactly; larger ones travel as strings."""


def gpu_hours(gpu_ms: int, digits: int = 4) -> str:
    """Render GPU-milliseconds as GPU-hours, rounded half-even to `digits` decimals."""
    return _rounded(Fraction(gpu_ms, MS_PER_HOUR), digits)


def reference_gpu_hours(gpu_ms_by_factor: dict[str, int], digits: int = 4) -> str:
    """Render the sum of GPU-milliseconds times their factor (decimal strings) as reference GPU-hours."""
    total = sum((Fraction(factor) * gpu_ms for factor, gpu_ms in gpu_ms_by_factor.items()), Fraction(0))
    return _rounded(total / MS_PER_HOUR, digits)


def data_size(size_bytes: int) -> str:
    """Render a byte count with a decimal unit: `999 B`, `24.4 MB`."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    unit_bytes = 1000
    for unit in ("kB", "MB", "GB", "TB"):
        if size_bytes < 1000 * unit_bytes:
            return f"{_rounded(Fraction(size_bytes, unit_bytes), 1)} {unit}"
        unit_bytes *= 1000
    return f"{_rounded(Fraction(size_bytes, unit_bytes), 1)} PB"


_SPAN = re.compile(r"\+?([0-9]{1,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment_ms(text: str, now_ms: int) -> int:
    """Return the instant that a person wrote: `2026-11-23T08:00` (UTC unless it says otherwise), or `6h` from now.

    Units of a span are `s`, `m`, `h` and `d`. Raises ValueError.
    """
    span = _SPAN.fullmatch(text)
    if span is not None:
        return now_ms + int(span[1]) * _SECONDS[span[2]] * 1000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as fault:
        raise ValueError(f"{text!r} is neither a time such as 2026-11-23T08:00 nor a span such as 6h") from fault
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def is_decimal(text: str) -> bool:
    """Tell whether `text` is a decimal number as files write them: `0.312`; no sign, exponent or fraction."""
    return bool(_DECIMAL.fullmatch(text))


_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,11})(\.[0-9]{1,12})?")


def _rounded(value: Fraction, digits: int) -> str:
    scaled = round(value * 10**digits)  # of a fraction, half-even and exact
    whole, part = divmod(abs(scaled), 10**digits)
    return f"{'-' if scaled < 0 else ''}{whole}" + (f".{part:0{digits}d}" if digits else "")
