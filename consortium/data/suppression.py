"""Numbers about a collection that may leave home (artifact class `statistic`): small cells suppressed.

A cell is a number of documents with something in common: a language, a domain, a rule that removed them. Nobody outside
may learn a cell of 1 to `at_least - 1` documents, by reading or by subtracting. The rule, for one table and its total:

1. A row goes to the pool, which is published as `other`, where one of its figures is small. Where the table tells what
   came in and what stayed, the difference counts as a figure too. A name that is no language code or host name goes
   there as well: it may be any text.
2. While a figure of the pool is small, or only one row is in it, the next smallest row joins it.
3. What is published: rows outside the pool, `other`, the total. Neither names nor number of pooled rows.
4. Lengths: neighbouring bins are joined until no figure of a band is small.
5. A collection of fewer than `at_least` documents has no statistic at all.

Only one-way tables are published, never language by rule or language by domain. What this does not do: two statistics
about almost the same collection, published after another, can be subtracted from each other; who knows how many rows
were pooled, or all documents but one, can bound the small ones; a row of many documents may rest on one long
one; a row of 0 is taken to tell of nobody. The numbers of documents and bytes of a dataset and its shards are in its
signed description and no secret, so the whole number that a stage removed is none either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from consortium.data.counts import Counts
from consortium.data.profile import Profile, Tally, length_bounds
from consortium.errors import UsageError

AT_LEAST = 10
OTHER = "other"
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{1,8}){0,3}")
_HOST = re.compile(r"(?=.{4,120}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+([a-z]{2,24}|xn--[a-z0-9-]{2,59})")

Figures = tuple[int, ...]


class Band(NamedTuple):
    """Documents by length: the fewest and the most characters, and the figures."""

    min_chars: int
    max_chars: int
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistic:
    """What may be told of a profile. Rows and `other` of a table add up to the totals; nothing where `withheld`."""

    at_least: int
    withheld: bool
    total: Tally
    languages: dict[str, Tally]
    other_languages: Tally
    domains: dict[str, Tally]
    other_domains: Tally
    lengths: tuple[tuple[int, int, int], ...]
    """Fewest characters, most characters, documents."""


def suppressed(profile: Profile, at_least: int = AT_LEAST) -> Statistic:
    """Return what may leave home of a profile. Raises UsageError for a bound below 3."""
    _check(at_least)
    total = profile.tally
    if total.documents < at_least:
        nothing = Tally()
        return Statistic(
            at_least=at_least,
            withheld=True,
            total=nothing,
            languages={},
            other_languages=nothing,
            domains={},
            other_domains=nothing,
            lengths=(),
        )
    by_language = {code: each.tally for code, each in profile.languages.items()}
    languages = _published(by_language, Tally(), is_language, at_least)
    domains = _published(profile.domains, profile.other_domains, is_host, at_least)
    return Statistic(
        at_least=at_least,
        withheld=False,
        total=total,
        languages=languages,
        other_languages=_rest(total, languages),
        domains=domains,
        other_domains=_rest(total, domains),
        lengths=tuple((low, high, figures[0]) for low, high, figures in bands([profile.lengths], at_least)),
    )


def pooled(
    rows: Mapping[str, Figures], *, named: Callable[[str], bool], at_least: int, rest: Figures = ()
) -> tuple[dict[str, Figures], Figures]:
    """Return the rows that may be published and the figures of the pool (empty where it has nothing).

    All figures of a row are numbers of documents. `rest` are those of documents that no row stands for: they are in
    the pool from the start.
    """
    ranked = sorted(rows, key=lambda name: (rows[name], name))
    hidden = [name for name in ranked if not named(name) or _small(rows[name], at_least)]
    shown = [name for name in ranked if name not in set(hidden)]
    members = len(hidden) + bool(any(rest))
    pool = _plus([rest] if rest else [], *(rows[name] for name in hidden))
    while members and shown and (members < 2 - bool(any(rest)) or _small(pool, at_least)):
        pool = _plus([pool], rows[shown.pop(0)])
        members += 1
    return {name: rows[name] for name in sorted(shown)}, pool


def bands(columns: Sequence[Sequence[int]], at_least: int) -> list[Band]:
    """Return length bins joined to bands; each figure, and each difference of two columns, is 0 or no small one.

    Where nothing else is left, one band holds all documents.
    """
    width = max(map(len, columns), default=0)
    bins = [tuple(column[at] if at < len(column) else 0 for column in columns) for at in range(width)]
    found: list[tuple[int, int, Figures]] = []
    start, held = 0, tuple(0 for _ in columns)
    for at, figures in enumerate(bins):
        held = _plus([held], figures)
        if not _small(_with_differences(held), at_least):
            found.append((start, at, held))
            start, held = at + 1, tuple(0 for _ in columns)
    while any(held) and found and _small(_with_differences(held), at_least):
        start, _, before = found.pop()
        held = _plus([held], before)
    if any(held):
        found.append((start, width - 1, held))
    return [Band(length_bounds(first)[0], length_bounds(last)[1], figures) for first, last, figures in found]


def band_quantile(found: Iterable[Band], column: int, share: float) -> float:
    """Return about how many characters the shortest `share` of a column's documents have at most, from bands alone."""
    rows = [(low, high, figures[column]) for low, high, figures in found]
    wanted = share * sum(documents for _, _, documents in rows)
    for low, high, documents in rows:
        if documents and wanted <= documents:
            return low + (high - low) * wanted / documents
        wanted -= documents
    return 0.0


def clean_numbers(
    counts: Counts, before: Profile | None = None, after: Profile | None = None, at_least: int = AT_LEAST
) -> dict[str, int]:
    """Return what may leave home of a clean stage, flat, as MLflow takes it.

    `documents_in`, `chars_in` and `_out`; `removed.RULE`, `removed.other`; `edits.RULE`;
    `language.CODE.documents_in` and `_out` (as declared), `language.other.*`; where there are profiles
    `length.p10_in`, `p50`, `p90`, in characters, right to a band. Characters that stay are left out where their
    difference would tell how long a few removed documents were. `at_least` 1 suppresses nothing: for use at home.
    Raises UsageError for 2: a cell below it can only be 1.
    """
    if at_least != 1:
        _check(at_least)
    gone = counts.total_in - counts.total_out
    found = {"documents_in": counts.total_in, "documents_out": counts.total_out, "chars_in": counts.chars_in}
    if not 0 < gone < at_least:
        found["chars_out"] = counts.chars_out
    removed, others = pooled(
        {rule: (counts.removed_by(rule),) for rule in counts.removed}, named=bool, at_least=at_least
    )
    for rule, (documents,) in removed.items():
        found[f"removed.{rule}"] = documents
    if any(others):
        found[f"removed.{OTHER}"] = others[0]
    found |= {f"edits.{rule}": edits for rule, edits in counts.edits.items() if edits >= at_least}
    codes = {*counts.documents_in, *counts.documents_out}
    pairs = {code: (counts.documents_in.get(code, 0), counts.documents_out.get(code, 0)) for code in codes}
    languages, rest = pooled(
        {code: (came, stay, came - stay) for code, (came, stay) in pairs.items()}, named=is_language, at_least=at_least
    )
    for code, (came, stay, _) in [*languages.items(), *([(OTHER, rest)] if any(rest) else [])]:
        found |= {f"language.{code}.documents_in": came, f"language.{code}.documents_out": stay}
    if before is not None and after is not None:
        joined = bands([before.lengths, after.lengths], at_least)
        for column, side in enumerate(("in", "out")):
            for percent in (10, 50, 90):
                found[f"length.p{percent}_{side}"] = round(band_quantile(joined, column, percent / 100))
    return found


def is_language(name: str) -> bool:
    """Tell whether a name is a language code, such as `fr` or `zh-Hant`, rather than some text."""
    return _LANGUAGE.fullmatch(name) is not None and name != OTHER


def is_host(name: str) -> bool:
    """Tell whether a name is that of a host with a top-level domain: no address, path or other text."""
    return _HOST.fullmatch(name) is not None


def _check(at_least: int) -> None:
    if at_least < 3:
        raise UsageError(f"cells of at least {at_least} documents hide nothing", fix="publish cells of at least 3")


def _published(rows: Mapping[str, Tally], rest: Tally, named: Callable[[str], bool], at_least: int) -> dict[str, Tally]:
    figures = {name: (tally.documents,) for name, tally in rows.items()}
    shown, _ = pooled(figures, named=named, at_least=at_least, rest=(rest.documents,))
    return {name: rows[name] for name in shown}


def _rest(total: Tally, rows: Mapping[str, Tally]) -> Tally:
    shown = sum(rows.values(), start=Tally())
    return Tally(
        documents=total.documents - shown.documents, chars=total.chars - shown.chars, words=total.words - shown.words
    )


def _small(figures: Figures, at_least: int) -> bool:
    return any(0 < abs(figure) < at_least for figure in figures)


def _with_differences(figures: Figures) -> Figures:
    return (*figures, *(one - other for at, one in enumerate(figures) for other in figures[at + 1 :]))


def _plus(base: Sequence[Figures], *more: Figures) -> Figures:
    rows = [*base, *more]
    return tuple(sum(column) for column in zip(*rows, strict=True)) if rows else ()
