"""Tables and JSON on standard output, talk on standard error."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any


def put_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Print a line for people on standard error."""
    print(text, file=sys.stderr, flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a plain table, columns of numbers flush right; say `empty` where there is no row.

    On a terminal the last column is cut to its width; a file or pipe gets all of it.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        say(empty)
        return
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    right = [all(_numeric(line[i]) for line in cells) for i in range(len(columns))]
    for line in [list(columns), *cells]:
        parts = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(line, widths, right, strict=True)
        ]
        text = "  ".join(parts).rstrip()
        print(clipped(text, shutil.get_terminal_size().columns) if sys.stdout.isatty() else text)


def when(unix_ms: int) -> str:
    """Render a time as UTC without fractions; one beyond the calendar, as somebody may have signed, as it is."""
    if not unix_ms:
        return "-"
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{unix_ms} ms"


def clipped(text: str, width: int) -> str:
    """Return at most `width` characters, with an ellipsis where some are left out."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _numeric(text: str) -> bool:
    return bool(text) and all(letter in "0123456789.,+-" for letter in text)
