"""The table of a benchmark: figures beside their targets, printed as they are measured; with `--json` as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One figure."""

    what: str
    value: float
    unit: str
    reference: float | None
    """What others reach, or what the same is without us; where it comes from, the benchmark's docstring says."""
    target: float | None
    """The least or the most that was asked for; None where the figure is told and not judged."""
    met: bool
    """True without a target, too."""


def row(
    what: str,
    value: float,
    unit: str,
    reference: float | None = None,
    *,
    most: float | None = None,
    least: float | None = None,
) -> Row:
    """Return a row, judged before its value is rounded to three places."""
    met = (most is None or value <= most) and (least is None or value >= least)
    shown = reference if reference is None else round(reference, 3)
    return Row(what, round(value, 3), unit, shown, most if least is None else least, met)


def arguments(doc: str | None, parts: Iterable[str] = ()) -> argparse.ArgumentParser:
    """Return a parser with `--json` and, where the benchmark has `parts`, `--only PART,...`: all of them by default."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, at the end")
    known = tuple(parts)

    def some(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        for part in chosen:
            if part not in known:
                raise argparse.ArgumentTypeError(f"there is no part {part!r}; there are {', '.join(known)}")
        return chosen

    if known:
        parser.add_argument("--only", type=some, default=known, metavar="PART,...", help=f"of {', '.join(known)}")
    return parser


def show(rows: Iterable[Row], *, as_json: bool) -> None:
    """Print each row as soon as it is there, or all of them as a JSON list of objects."""
    if as_json:
        print(json.dumps([asdict(each) for each in rows], indent=1))
        return
    for each in rows:
        beside = "" if each.reference is None else f"reference {each.reference:,.10g}"
        judged = "" if each.target is None else f"target {each.target:,.10g}: {'met' if each.met else 'MISSED'}"
        print(f"{each.what:75} {each.value:>12,.10g} {each.unit:10} {beside:20} {judged}".rstrip(), flush=True)
