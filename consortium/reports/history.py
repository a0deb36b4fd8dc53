"""What a clean stage did to one document, gone through again at home: each edit with what stands around it.

The stage's annotations keep rules and spans, never a text. So the edits are made again with the stage's configuration;
they are shown only where they are the very ones that the stage noted. Personal data are never shown: neither what was
redacted nor what stands beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from consortium.data import pii, screening, steps
from consortium.data.documents import Annotation, Document, Notes
from consortium.data.lines import CITATION, without_citations
from consortium.data.steps import LanguageConfig
from consortium.domain.cleaning import CleanConfig

_AROUND_CHARS = 80
_CUT_CHARS = 160
_SHOWN = 20
"""Edits per rule that are shown, the first ones: a hostile page has hundreds of thousands."""
_NOT_EDITS = ("decontaminate.",)
"""Rules that may note a span without changing the text."""


Seen = tuple[Annotation, str | None]
"""An edit, and the text that its span counts characters of; None where it is not shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A place in a text: what stands before it, there and behind it, each shortened and without personal data."""

    before: str
    cut: str
    after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """A document as the judges saw it, in the language found, and its edits in order.

    `passages` are those of the first `_SHOWN` edits by each rule; where the edits could not be made again as they were
    noted (`exact` is False: other code than the stage's), the text is as it came and there are no passages.
    """

    text: str
    language: str
    confidence: float
    exact: bool
    edits: tuple[Annotation, ...]
    passages: tuple[tuple[Annotation, Passage], ...]


def replay(document: Document, config: CleanConfig, noted: Sequence[Annotation]) -> History:
    """Make the edits of one document again; `noted` are the stage's annotations of it, in their order."""
    wanted = tuple(note for note in noted if note.start >= 0 and not note.rule.startswith(_NOT_EDITS))
    seen: list[Seen] = []
    after = _edited(document, config, Notes(wanted[0].shard if wanted else 0), seen)
    exact = tuple(note for note, _ in seen) == wanted
    if not exact:
        after = document
    language, confidence = language_of(after, config.languages)
    return History(
        text=after.text,
        language=language,
        confidence=confidence,
        exact=exact,
        edits=wanted,
        passages=tuple((note, _passage(note, text, language)) for note, text in seen if exact and text is not None),
    )


def _edited(document: Document, config: CleanConfig, notes: Notes, seen: list[Seen]) -> Document:
    """Edit one document as `screening.screen` does: again as what it is where that is another language."""
    watched, judging = [_watched(step, seen) for step in screening.edits(config)], screening.judges(config)
    for _ in range(steps.MAX_ROUNDS):
        (after,) = steps.edited(watched, [document], notes)
        kept = list(steps.chain(judging, [after], Notes(notes.shard)))
        if not kept or kept[0].language == document.language:
            return after
        (document,) = steps.edited(watched, kept, notes)
        if document.text == kept[0].text:
            return document
    return document


def language_of(document: Document, languages: tuple[str, ...]) -> tuple[str, float]:
    """Return the language that the language step finds, and its probability; no language where there are no letters."""
    notes = Notes(0)
    list(steps.language(LanguageConfig(languages=languages, min_confidence=2))([document], notes))
    (note,) = notes.annotations
    if note.rule == "language.none":
        return "", 0.0
    if note.rule == "language.other":
        found, _, probability = note.value.partition(" ")
        return found, float(probability)
    (kept,) = steps.language(LanguageConfig(languages=languages, min_confidence=-1))([document], Notes(0))
    return kept.language, float(note.value)


def without_personal_data(text: str, language: str) -> str:
    """Return a text with placeholders for all personal data that the package knows to find."""
    return pii.redact(text, pii.PiiConfig(), language)[0]


def passage(text: str, start: int, end: int, language: str, placeholder: str = "") -> Passage:
    """Return the place [start, end) of a text; `placeholder` stands for what must not be shown there."""
    spans = [(s, e, pii.placeholder(kind)) for kind, s, e in pii.redact(text, pii.PiiConfig(), language)[1]]
    for from_, to, _ in spans:  # what reaches over an end of the place is shown in no part
        if from_ < end and start < to:
            start, end = min(start, from_), max(end, to)

    def part(low: int, high: int) -> str:
        pieces, at = [], low
        for from_, to, mark in spans:
            if low <= from_ and to <= high:
                pieces += [text[at:from_], mark]
                at = to
        return "".join([*pieces, text[at:high]])

    before, cut, after = part(0, start), placeholder or part(start, end), part(end, len(text))
    return Passage(
        before=("…" if len(before) > _AROUND_CHARS else "") + before[-_AROUND_CHARS:],
        cut=shortened(cut, _CUT_CHARS),
        after=shortened(after, _AROUND_CHARS),
    )


def shortened(text: str, chars: int) -> str:
    """Return at most `chars` characters, and an ellipsis where there are more."""
    return text if len(text) <= chars else text[:chars] + "…"


def _passage(note: Annotation, text: str, language: str) -> Passage:
    placeholder = note.value if note.rule.startswith("redact.") else ""
    return passage(text, note.start, note.end, language, placeholder)


def _watched(step: steps.Step, seen: list[Seen]) -> steps.Step:
    """Return the step that also leaves in `seen` each edit, with its text where it is one of those to show."""

    def run(documents: Iterable[Document], notes: Notes) -> Iterator[Document]:
        for document in documents:
            first = len(notes.annotations)
            after = list(step([document], notes))
            shown = Counter(note.rule for note, _ in seen)
            seen.extend(_with_texts(notes.annotations[first:], document.text, shown))
            yield from after

    return run


def _with_texts(notes: Sequence[Annotation], text: str, shown: Counter[str]) -> Iterator[Seen]:
    """Yield one step's edits with their texts, those to show. Citations go before lines are looked at, in rounds."""
    came, last = text, -1
    for note in notes:
        shows = shown[note.rule] < _SHOWN
        shown[note.rule] += 1
        if note.rule == "c4.citation":
            if shows and note.start < last:
                text = CITATION.sub("", text)
            last = note.end
        elif last >= 0:
            text, last = without_citations(came)[0], -1
        yield note, text if shows else None
