from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.data.decontaminate import RULE, EvaluationSets, decontaminate
from consortium.data.documents import Document, Notes
from consortium.domain.cleaning import DecontaminateConfig
from tests.data.drawn import text

QUESTION = "Which court decides on complaints against acts of public authority under article 93 of the Basic Law?"
CONFIG = DecontaminateConfig()


def document(body: str, row: int = 0) -> Document:
    return Document(id=f"d{row}", text=body, row=row, language="en", declared="en")


def run(bodies: list[str], sets: dict[str, list[str]], config: DecontaminateConfig = CONFIG) -> tuple[list[str], Notes]:
    notes = Notes(shard=2)
    step = decontaminate(EvaluationSets(sets, config))
    return [kept.text for kept in step(map(document, bodies, range(len(bodies))), notes)], notes


def test_a_document_that_holds_thirteen_words_of_a_question_goes_and_the_note_names_the_question() -> None:
    quote = "**which** Court decides on complaints, against acts of public authority: under article 93 ..."
    holds = f"{text(1)}\n{quote}{text(2)}"
    kept, notes = run([text(3), holds], {"exam": ["another question of no more than nine words here", QUESTION]})
    assert kept == [text(3)]
    [note] = notes.annotations
    assert note == ("d1", 2, 1, RULE, "exam 1", "13 words", -1, -1)
    assert notes.removed == {RULE: {"en": 1}}


def test_twelve_words_in_a_row_are_not_enough() -> None:
    words = QUESTION.split()
    assert run([" ".join(words[:12])], {"exam": [QUESTION]})[0] != []
    assert run([" ".join(words[:13])], {"exam": [QUESTION]})[0] == []
    assert run([" ".join([*words[:6], "then", *words[6:]])], {"exam": [QUESTION]})[0] != []


def test_a_short_evaluation_text_counts_as_a_whole_from_eight_words() -> None:
    eight, seven = "What is the capital of the Eastern Republic?", "What is the capital of the Republic?"
    sets = {"geography": [eight, seven]}
    kept, notes = run([f"Asked: {eight} Montevideo.", f"Asked: {seven} Paris.", eight], sets)
    assert kept == [f"Asked: {seven} Paris."]
    assert {(note.value, note.threshold) for note in notes.annotations} == {("geography 0", "8 words")}


def test_a_window_does_not_reach_from_one_document_into_the_next() -> None:
    words = QUESTION.split()
    bodies = [" ".join(words[:9]), " ".join(words[9:])]
    assert run(bodies, {"exam": [QUESTION]})[0] == bodies


def test_noted_documents_stay_with_the_span_of_the_first_window() -> None:
    body = f"Été : {QUESTION} {QUESTION}"
    kept, notes = run([body], {"exam": [QUESTION]}, DecontaminateConfig(drop=False))
    assert kept == [body]
    [note] = notes.annotations
    assert body[note.start : note.end] == " ".join(QUESTION.split()[:13])
    assert (notes.removed, notes.edits) == ({}, {})


def test_a_match_of_numbers_alone_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = EvaluationSets({"exam": [QUESTION]}, CONFIG)
    monkeypatch.setattr("consortium.data.decontaminate._members", lambda sums, *_: np.arange(len(sums)))
    bodies = [text(1), f"{text(2)} {QUESTION}"]
    assert [kept.text for kept in decontaminate(sets)(map(document, bodies), Notes(0))] == [text(1)]


def test_no_evaluation_sets_drop_nothing_and_senseless_configs_are_errors() -> None:
    assert run([text(1), ""], {})[0] == [text(1), ""]
    assert run([text(1)], {"empty": ["", "two words"]})[0] == [text(1)]
    with pytest.raises(ValueError, match="min_words"):
        DecontaminateConfig(words=5, min_words=6)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_what_is_dropped_is_what_the_plain_way_finds_and_a_second_run_drops_nothing(seed: int) -> None:
    draw = random.Random(seed)
    sets = {"a": [text(seed + at, draw.randint(0, 30)) for at in range(6)], "b": [text(seed, draw.randint(5, 40))]}
    windows = set()
    for words in (one.split() for texts in sets.values() for one in texts):
        length = min(len(words), 13)
        windows |= {" ".join(words[i : i + length]) for i in range(len(words) - length + 1)} if length >= 8 else set()
    bodies = []
    for at in range(20):
        quoted = draw.choice([one for texts in sets.values() for one in texts]).split()
        start = draw.randint(0, len(quoted))
        part = quoted[start : start + draw.randint(0, 20)]
        bodies.append(" ".join([*text(seed + 100 + at, 30).split(), *part, *text(seed + 200 + at, 30).split()]))
    clean = [body for body in bodies if not any(f" {window} " in f" {body} " for window in windows)]
    assert run(bodies, sets)[0] == clean
    assert run(clean, sets)[0] == clean


def test_blocks_are_no_border(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [f"{text(at)} {QUESTION}" if at % 3 == 0 else text(at) for at in range(12)]
    before = run(bodies, {"exam": [QUESTION]})
    monkeypatch.setattr("consortium.data.decontaminate.BLOCK_CHARS", 100)
    after = run(bodies, {"exam": [QUESTION]})
    assert after == before
    assert len(before[0]) == 8
