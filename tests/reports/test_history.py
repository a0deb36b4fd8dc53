"""Edits of a document made again at home, shown without what was redacted."""

from __future__ import annotations

import time

import pytest

from consortium.data.documents import Annotation, Document
from consortium.data.screening import screen
from consortium.domain.cleaning import CleanConfig
from consortium.reports.history import Passage, passage, replay, without_personal_data
from consortium.storage.shards import read_table, write_text

CONFIG = CleanConfig(
    languages=("fr", "de"),
    min_language_confidence=0.5,
    min_chars=20,
    max_chars=100_000,
    redact=("email", "iban", "phone"),
    lines=("repeated", "boilerplate"),
    filters=("c4",),
)
FRENCH = "La présente loi fixe les règles applicables aux contrats conclus entre les personnes. "


def document(text: str, language: str = "fr") -> Document:
    return Document(id="a", text=text, row=0, language=language, declared=language)


def noted(one: Document) -> list[Annotation]:
    """What the stage notes of one document."""
    columns = {"id": [one.id], "text": [one.text], "language": [one.declared]}
    found = screen(read_table(write_text(columns)), 0, CONFIG)
    return [Annotation(**row) for row in found.annotations.to_pylist()]


@pytest.mark.parametrize("language", ["fr", "de", "und"])
def test_edits_made_again_are_the_ones_noted_and_show_no_redacted_value(language: str) -> None:
    text = (
        FRENCH * 6
        + "\nÉcrire à jean.dupont@exemple.fr ou claire@exemple.fr [[1]] pour en savoir davantage [2].\n"
        + "Javascript doit être activé pour lire cette page de la loi.\n"
        + FRENCH.strip()
        + "\n\x07"
        + FRENCH.strip()
        + "\n"
    )
    one = document(text, language)
    history = replay(one, CONFIG, noted(one))
    assert history.exact
    assert history.language == "fr"
    assert history.confidence > 0.9
    rules = [edit.rule for edit in history.edits]
    assert rules.count("redact.email") == 2
    assert {"repair.unicode", "c4.citation", "c4.line_javascript", "lines.repeated"} <= set(rules)
    shown = {note.rule: passage for note, passage in history.passages}
    assert shown["redact.email"].cut == "[EMAIL]"
    assert shown["c4.line_javascript"].cut.startswith("Javascript doit")
    assert tuple(note for note, _ in history.passages) == history.edits
    citations = [p.cut for note, p in history.passages if note.rule == "c4.citation"]
    assert citations == ["[1]", "[2]", "[]"]
    assert not any("@" in part for _, p in history.passages for part in (p.before, p.cut, p.after))
    assert "[EMAIL] ou [EMAIL]" in history.text


def test_of_a_page_of_brackets_the_first_edits_are_shown() -> None:
    one = document(FRENCH * 6 + "[" * 100_000 + "]" * 100_000 + "\nJavascript doit être activé pour lire cette page.\n")
    started = time.process_time()
    history = replay(one, CONFIG, noted(one))
    assert time.process_time() - started < 10
    assert history.exact
    assert len(history.edits) == 100_001
    rules = [note.rule for note, _ in history.passages]
    assert rules == ["c4.citation"] * 20 + ["c4.line_javascript"]
    assert {shown.cut for _, shown in history.passages[:-1]} == {"[]"}


def test_edits_that_come_out_otherwise_than_noted_are_not_shown() -> None:
    one = document(FRENCH + "Écrire à jean.dupont@exemple.fr.")
    (note,) = [note for note in noted(one) if note.start >= 0]
    history = replay(one, CONFIG, [note._replace(start=note.start - 3)])
    assert (history.exact, history.passages) == (False, ())
    assert history.text == one.text


def test_a_document_without_letters_is_in_no_language() -> None:
    history = replay(document("12 34 56 78"), CONFIG, [])
    assert (history.exact, history.language, history.confidence) == (True, "", 0.0)


def test_a_passage_shows_no_part_of_personal_data_that_reaches_into_it() -> None:
    text = "Compte FR7630006000011234567890189 de jean.dupont@exemple.fr, merci."
    at = text.index("dupont")
    assert passage(text, at, at + 6, "fr") == Passage(before="Compte [IBAN] de ", cut="[EMAIL]", after=", merci.")
    assert passage(text, 0, 6, "fr").after == " [IBAN] de [EMAIL], merci."


def test_long_surroundings_are_shortened() -> None:
    found = passage("a" * 500 + "mot" + "b" * 500, 500, 503, "fr")
    assert (found.before, found.cut, found.after) == ("…" + "a" * 80, "mot", "b" * 80 + "…")


def test_personal_data_of_all_kinds_are_masked_whatever_the_stage_redacts() -> None:
    masked = without_personal_data("Tel. +33 1 42 34 56 78, serveur 203.0.113.77, x@y.fr", "fr")
    assert masked == "Tel. [PHONE], serveur [IP], [EMAIL]"
