"""A dataset's page: one HTML file without scripts and without anything from elsewhere. Same facts, same bytes.

Texts, names and sources of a collection are hostile until shown otherwise: Jinja escapes all of them, `visible` takes
their control characters, and the page's policy forbids a browser everything but the one style sheet it carries.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from consortium.data.counts import Counts
from consortium.data.documents import UNKNOWN
from consortium.data.profile import LanguageProfile, Profile, Tally, length_bounds, quantile
from consortium.domain.data import ArtifactClass
from consortium.reports.dataset import Facts, parents_of
from consortium.reports.rule_words import in_words
from consortium.reports.visible import visible

TOP_DOMAINS = 15
MAX_LANGUAGES = 6
"""Columns by language in the table of rules; the others are added up."""
_CLASSES = {
    ArtifactClass.RAW: "Collection as it was registered",
    ArtifactClass.CLEAN: "Cleaned collection",
    ArtifactClass.TOKENS: "Collection as tokens, for training",
}


def render(facts: Facts) -> str:
    """Return the page."""
    style = _file("dataset.css")
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    values = {**_head(facts), **_removals(facts), **_made_of(facts), **_samples(facts), **_provenance(facts)}
    page = _environment().from_string(_file("dataset.html"))
    return page.render(style=Markup(style), style_hash=f"sha256-{hashed}", **values) + "\n"  # noqa: S704  our own file


def percent(part: int, whole: int) -> str:
    """Return a share as people read it; what is not all is never shown as 100%, what is not none never as 0%."""
    if not whole:
        return "-"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1%"
    if 99.9 < share < 100:
        return "> 99.9%"
    return f"{share:.1f}%" if part and part != whole else f"{share:.0f}%"


# -- what the template gets ----------------------------------------------------------------------------------------


def _head(facts: Facts) -> dict[str, Any]:
    dataset, counts = facts.dataset, facts.counts
    cards = [_card(f"{dataset.documents:,}", "documents")]
    lead = f"{dataset.documents:,} documents at {dataset.site}, licence {dataset.licence or 'unknown'}."
    if counts is not None:
        kept, chars = percent(counts.total_out, counts.total_in), percent(counts.chars_out, counts.chars_in)
        lead = (
            f"Of {counts.total_in:,} documents {counts.total_out:,} are kept ({kept}) and "
            f"{counts.total_in - counts.total_out:,} were removed. {chars} of the text is left.{_reasons(counts)}"
        )
        cards = [
            _card(f"{counts.total_in:,}", "documents came in"),
            _card(f"{counts.total_out:,}", f"are kept, {kept}"),
            _card(f"{counts.chars_out:,}", f"characters are kept, {chars}"),
            _card(f"{sum(counts.edits.values()):,}", "changes inside documents"),
        ]
        if facts.run is not None and facts.run.seconds > 0:
            speed = counts.total_in / facts.run.seconds, counts.chars_in / 1e6 / facts.run.seconds
            text = f"documents a second, {speed[1]:,.1f} million characters; the job took {facts.run.seconds:,.0f} s"
            cards.append(_card(f"{speed[0]:,.0f}", text))
    elif dataset.tokens:
        cards.append(_card(f"{dataset.tokens:,}", "tokens"))
        lead = f"{dataset.tokens:,} tokens of {dataset.documents:,} documents, licence {dataset.licence or 'unknown'}."
    stage = {name: float(n) for name, n in facts.manifest.get("counts", {}).items() if isinstance(n, int)}
    numbers = facts.numbers or (stage if counts is None else {})
    return {
        "dataset": dataset,
        "kind": _CLASSES.get(dataset.artifact_class, dataset.artifact_class.value),
        "lead": lead,
        "missing": facts.missing,
        "cards": [*cards, _card(f"{dataset.size_bytes / 1e6:,.1f} MB", f"in {len(dataset.shards):,} files")],
        "numbers": sorted(numbers.items()),
    }


def _reasons(counts: Counts) -> str:
    """Return a sentence on the rules that removed most."""
    ranked = sorted(counts.removed, key=lambda rule: (-counts.removed_by(rule), rule))[:3]
    said = [f"{(in_words(rule) or rule).rstrip('.').lower()} ({counts.removed_by(rule):,})" for rule in ranked]
    return f" Most often: {'; '.join(said)}." if said else ""


def _removals(facts: Facts) -> dict[str, Any]:
    counts = facts.counts
    if counts is None:
        return {"removed": (), "edits": ()}
    codes = sorted(counts.documents_in, key=lambda code: (-counts.documents_in[code], code))
    named, others = (codes[:MAX_LANGUAGES], codes[MAX_LANGUAGES:]) if len(codes) > 1 else ([], [])

    def columns(by_language: dict[str, int]) -> list[int]:
        rest = [sum(by_language.get(code, 0) for code in others)] if others else []
        return [*(by_language.get(code, 0) for code in named), *rest]

    def line(label: str, by_language: dict[str, int]) -> dict[str, Any]:
        documents = sum(by_language.values())
        share = percent(documents, counts.total_in)
        return {"label": label, "documents": documents, "share": share, "by_language": columns(by_language)}

    gone = {code: counts.documents_in[code] - counts.documents_out.get(code, 0) for code in codes}
    rules = sorted(counts.removed, key=lambda rule: (-counts.removed_by(rule), rule))
    removed = [{**line("", counts.removed[rule]), "rule": rule, "words": in_words(rule)} for rule in rules]
    edits = sorted(counts.edits, key=lambda rule: (-counts.edits[rule], rule))
    return {
        "languages": [*map(_language, named), *(["others"] if others else [])],
        "removed": removed,
        "most_removed": max((row["documents"] for row in removed), default=0),
        "sums": [
            line("all removed", gone),
            line("kept", counts.documents_out),
            line("came in", counts.documents_in),
        ],
        "edits": [{"rule": rule, "edits": counts.edits[rule], "words": in_words(rule)} for rule in edits],
        "most_edits": max(counts.edits.values(), default=0),
    }


def _made_of(facts: Facts) -> dict[str, Any]:
    after = facts.after
    if after is None:
        return {"made_of": ()}
    before = facts.before or Profile(languages={}, domains={})
    none = LanguageProfile(tally=Tally(), lengths=())
    codes = sorted(
        {*after.languages, *before.languages},
        key=lambda code: (-after.languages.get(code, none).tally.documents, code),
    )
    names = sorted(
        {*after.domains, *before.domains},
        key=lambda name: (
            -after.domains.get(name, Tally()).documents,
            -before.domains.get(name, Tally()).documents,
            name,
        ),
    )[:TOP_DOMAINS]
    shown = [
        _Source(name, after.domains.get(name, Tally()).documents, before.domains.get(name, Tally()).documents)
        for name in names
    ]
    columns = [before.lengths, after.lengths] if facts.before is not None else [after.lengths]
    return {
        "compared": facts.before is not None,
        "made_of": [
            {
                "language": _language(code),
                "after": after.languages.get(code, none).tally,
                "before": before.languages.get(code, none).tally,
                "median": round(quantile(after.languages.get(code, none).lengths, 0.5)),
            }
            for code in codes
        ],
        "domains": shown,
        "most_domain": max((row.after for row in shown), default=0),
        "other_domains": after.tally.documents - sum(row.after for row in shown),
        "other_domains_before": before.tally.documents - sum(row.before for row in shown),
        "missed": max(after.missed, before.missed),
        "chart": _chart(columns),
    }


def _samples(facts: Facts) -> dict[str, Any]:
    removed = facts.counts.removed if facts.counts is not None else {}
    order = sorted(facts.samples, key=lambda rule: (rule not in removed, rule))
    return {
        "samples": [
            {"rule": rule, "words": in_words(rule), "samples": facts.samples[rule]}
            for rule in order
            if facts.samples[rule]
        ]
    }


def _provenance(facts: Facts) -> dict[str, Any]:
    dataset, manifest = facts.dataset, facts.manifest
    inputs = [f"{one['name']} ({one['id']}), {len(one['shards'])} files" for one in parents_of(manifest)]
    lines = [
        ("home", f"{dataset.site}, territory {dataset.territory}"),
        ("licence", dataset.licence),
        ("source", dataset.source),
        ("languages", ", ".join(dataset.languages)),
        ("categories", ", ".join(dataset.categories)),
        ("made from", "; ".join(inputs)),
        ("made by job", facts.run.job if facts.run is not None else ""),
        ("installed code (digest)", facts.run.code_digest if facts.run is not None else ""),
        ("rules and libraries (digest)", manifest.get("code", "")),
        ("manifest (digest)", dataset.manifest_digest),
        *((name.replace("_", " "), value) for name, value in sorted(dataset.attributes.items())),
        ("dataset id", dataset.id),
    ]
    config = manifest.get("config")
    return {
        "provenance": [(name, value) for name, value in lines if value],
        "config": json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False) if config else "",
    }


class _Source(NamedTuple):
    name: str
    after: int
    before: int


@dataclass(frozen=True, slots=True)
class _Bar:
    kind: str
    x: float
    y: float
    width: float
    height: float
    title: str


def _chart(columns: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return a histogram of lengths, ready to draw: bars side by side for each bin, ticks at powers of two."""
    width, height, left, bottom, top = 440, 230, 46, 34, 8
    used = [at for column in columns for at, documents in enumerate(column) if documents]
    first, last = (min(used), max(used)) if used else (0, 0)
    most = max((max(column, default=0) for column in columns), default=0)
    step = _round_step(most)
    scale = (height - bottom - top) / (step * 4)
    slot = (width - left) / (last - first + 1)
    kinds = ("before", "after") if len(columns) == 2 else ("after",)
    bars, ticks = [], []
    every = max(1, round(34 / slot))
    for at in range(first, last + 1):
        x = left + slot * (at - first)
        low, high = length_bounds(at)
        if (at - first) % every == 0:
            ticks.append({"x": round(x, 1), "label": _power(low)})
        for number, (kind, column) in enumerate(zip(kinds, columns, strict=True)):
            documents = column[at] if at < len(column) else 0
            tall, wide = documents * scale, slot * 0.84 / len(columns)
            bars.append(
                _Bar(
                    kind,
                    round(x + slot * 0.08 + number * wide, 2),
                    round(height - bottom - tall, 2),
                    round(wide, 2),
                    round(tall, 2),
                    f"{documents:,} documents of {low:,} to {high:,} characters",
                )
            )
    grid = [{"y": round(height - bottom - step * n * scale, 1), "label": _short(step * n)} for n in range(5)]
    axis, title = "characters at least (k: 1,024)", "Documents by length in characters"
    return {"width": width, "height": height, "left": left, "bars": bars, "ticks": ticks, "grid": grid,
            "axis": axis, "title": title}  # fmt: skip


def _round_step(most: int) -> int:
    """Return a round number, four of which reach at least `most`."""
    size = 1
    while True:
        for factor in (1, 2, 5):
            if 4 * factor * size >= most:
                return factor * size
        size *= 10


def _short(number: int) -> str:
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _power(number: int) -> str:
    """Return a power of two in few signs."""
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if number >= size:
            return f"{number // size}{unit}"
    return str(number)


def _language(code: str) -> str:
    return "not declared" if code == UNKNOWN else code


def _card(value: str, label: str) -> dict[str, str]:
    return {"value": value, "label": label}


@lru_cache(maxsize=1)
def _environment() -> Environment:
    found = Environment(autoescape=True, finalize=_shown, trim_blocks=True, keep_trailing_newline=False)
    found.filters["n"] = lambda number: f"{number:,.0f}"
    found.filters["words"] = lambda name: in_words(name.partition(".")[2])
    return found


def _shown(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@lru_cache(maxsize=4)
def _file(name: str) -> str:
    return resources.files("consortium.reports").joinpath(name).read_text(encoding="utf-8")
