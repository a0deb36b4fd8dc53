"""Reports as JSON text: strictly in, the same bytes for the same report out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.keys.strict import STDIN, NotStrictError, parse_object, read_bounded

MAX_BYTES = 1 << 30
"""What a report may take: 400,000 records, where a site makes one every ten minutes and one for each leg that ends. It
takes some times as much memory to verify."""


def render_json(report: Mapping[str, Any]) -> str:
    """Return a report (or any rendering of it) as JSON text, keys sorted."""
    return json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report file, or standard input (`-`).

    Raises NotFoundError, UsageError (cannot be read, or larger than `MAX_BYTES`) or VerificationError (no report).
    """
    where = "standard input" if str(path) == STDIN else str(path)
    try:
        data = read_bounded(path, MAX_BYTES)
    except FileNotFoundError as fault:
        raise NotFoundError("there is no such report file", where=where) from fault
    except OSError as fault:
        raise UsageError(f"cannot read the report: {fault.strerror}", where=where) from fault
    return parse_report(data, where=where)


def parse_report(text: str | bytes, *, where: str = "report") -> dict[str, Any]:
    """Return the report in JSON text, read strictly. Raises VerificationError."""
    try:
        return parse_object(text)
    except NotStrictError as fault:
        raise VerificationError(f"not a report: {fault}", where=fault.at(where)) from fault
