"""Accounting periods: calendar months in UTC, written `YYYY-MM`, as half-open intervals of Unix milliseconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from consortium.errors import UsageError

_FIRST_YEAR, _LAST_YEAR = 1970, 9998
_PERIOD = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


def period_of(unix_ms: int) -> str:
    """Return the period a moment lies in. Raises UsageError where `bounds` knows none."""
    if not has_period(unix_ms):
        raise UsageError(
            f"{unix_ms} is no time of the years {_FIRST_YEAR} to {_LAST_YEAR}", fix="write Unix milliseconds"
        )
    moment = datetime.fromtimestamp(unix_ms // 1000, UTC)
    return f"{moment.year:04d}-{moment.month:02d}"


def has_period(unix_ms: int) -> bool:
    """Tell whether a moment lies in a period that `bounds` knows."""
    return _ms(_FIRST_YEAR, 1) <= unix_ms < _ms(_LAST_YEAR + 1, 1)


def bounds(period: str) -> tuple[int, int]:
    """Return [start, end) of a period. Raises UsageError where it is not `YYYY-MM`."""
    match = _PERIOD.fullmatch(period)
    if match is None or not _FIRST_YEAR <= int(match[1]) <= _LAST_YEAR:
        raise UsageError(f"{period!r} is not a period", fix="write a month as YYYY-MM, such as 2026-03")
    year, month = int(match[1]), int(match[2])
    after = (year + 1, 1) if month == 12 else (year, month + 1)
    return _ms(year, month), _ms(*after)


def _ms(year: int, month: int) -> int:
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1000
