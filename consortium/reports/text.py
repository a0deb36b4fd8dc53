"""Reports as JSON text: strictly in, the same bytes for the same report out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rfc8785

from consortium.errors import NotFoundError, UsageError, VerificationError


def render_json(report: Mapping[str, Any]) -> str:
    """Return a report (or any rendering of it) as JSON text, keys sorted."""
    return json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report file. Raises NotFoundError, UsageError (cannot be read) or VerificationError (no report)."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as fault:
        raise NotFoundError("there is no such report file", where=str(path)) from fault
    except OSError as fault:
        raise UsageError(f"cannot read the report: {fault.strerror}", where=str(path)) from fault
    return parse_report(data, where=str(path))


def parse_report(text: str | bytes, *, where: str = "report") -> dict[str, Any]:
    """Return the report in JSON text.

    Keys that stand twice and numbers with digits beyond what they keep are refused: no digit may go unread.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        value = json.loads(decoded, object_pairs_hook=_once, parse_float=_exact, parse_constant=_refuse)
    except UnicodeDecodeError as fault:
        raise VerificationError("not a report: the file is not UTF-8 text", where=where) from fault
    except json.JSONDecodeError as fault:
        raise VerificationError(
            f"not a report: not valid JSON: {fault.msg}", where=f"{where}:{fault.lineno}"
        ) from fault
    except (ValueError, RecursionError) as fault:
        raise VerificationError(f"not a report: {fault}", where=where) from fault
    if not isinstance(value, dict):
        raise VerificationError("not a report: the JSON is not an object", where=where)
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(key for key, _ in pairs if sum(other == key for other, _ in pairs) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return made


def _exact(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"number {text} is beyond a double")
    if text not in (repr(value), rfc8785.dumps(value).decode()):
        raise ValueError(f"number {text} is not the shortest text of its value {value!r}")
    return value


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")
