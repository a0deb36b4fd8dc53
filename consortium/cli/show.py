"""Tables and JSON on standard output, talk on standard error."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from consortium.reports.visible import visible, visible_json

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ONE_LINE = str.maketrans("\n\t", "  ")


def put_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(visible_json(json.dumps(value, indent=2, ensure_ascii=False)))


def put(text: str = "") -> None:
    """Print text on standard output; what a terminal would take for a command becomes visible."""
    print(plain(text))


def say(text: str) -> None:
    """Print a line for people on standard error; where that cannot be done nothing else changes."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(plain(text), file=sys.stderr, flush=True)


def plain(text: str) -> str:
    """Return text that may be of another's making as it may be shown: colours are dropped, controls become visible."""
    return visible(_COLOUR.sub("", text))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a plain table, columns of numbers flush right; say `empty` where there is no row.

    On a terminal the last column is cut to its width; a file or pipe gets all of it.
    """
    cells = [[plain(str(cell)).translate(_ONE_LINE) for cell in row] for row in rows]
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
    """Render a time as UTC without fractions; one that no calendar has as its milliseconds."""
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if unix_ms else "-"
    except (OverflowError, ValueError, OSError):
        return f"{unix_ms} ms"


def clipped(text: str, width: int) -> str:
    """Return at most `width` characters, with an ellipsis where some are left out."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _numeric(text: str) -> bool:
    return bool(text) and all(letter in "0123456789.,+-" for letter in text)
