from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.config import compose_job
from consortium.data import gopher, ngrams
from consortium.data.documents import Document, Notes
from consortium.data.parts import Parts, duplicate_ngram_chars, top_ngram_chars
from consortium.data.quality import EVERY_RULE, Quality, QualityConfig, rules_of
from consortium.data.rules import judge
from consortium.domain.cleaning import C4, FineWeb, GopherQuality, GopherRepetition
from tests.cleaned import measured

CLAUSE = (
    "The minister may, with the consent of the council and after a report that all members have seen, order the office "
    "number {n} to be closed for {m} days. Those who have been employed there keep their pay until the last of them. "
)
GOOD = "\n".join(CLAUSE.format(n=n, m=n * 7 % 11) + f"Section {n} applies." for n in (3, 8, 21)) + "\n" + (
    "Nothing in this chapter limits what a court decides about property, inheritance, marriage or the care of children."
)  # fmt: skip


def verdict(text: str, *filters: Any, language: str = "en", **thresholds: Any) -> str | None:
    """Return the rule that removes a text, with value and threshold, or None."""
    notes = Notes(0)
    config = QualityConfig(filters=filters or EVERY_RULE, **thresholds)
    kept = list(Quality(config)([Document(id="d", text=text, row=0, language=language, declared=language)], notes))
    assert len(kept) + len(notes.annotations) == 1
    return None if kept else "{0.rule} {0.value} {0.threshold}".format(notes.annotations[0])


def test_plain_prose_stays() -> None:
    loose = GopherRepetition(max_top_ngram_chars=(1, 1, 1), max_duplicate_ngram_chars=(1, 1, 1, 1, 1, 1))
    assert verdict(GOOD, gopher_repetition=loose) is None


@pytest.mark.parametrize(
    ("text", "removed"),
    [
        ("few words only", "gopher.min_words 3 50"),
        (GOOD + " a" * 500, "gopher.min_mean_word_chars 1.8064 3"),
        (GOOD + " incomprehensibilities" * 200, "gopher.max_mean_word_chars 1"),
        (GOOD + " #" * 60, "gopher.hashes 0.2"),
        (GOOD + " and ..." * 60, "gopher.ellipses 0."),
        ("\n".join(f"- the paragraph of number {n}" for n in range(30)), "gopher.bullet_lines 1 0.9"),
        ("\n".join(f"that is the paragraph of number {n * n} ..." for n in range(3)) * 4, "gopher.ellipses 0."),
        (GOOD + " 1234" * 60, "gopher.alpha_words 0."),
        ("Kein Wort ist hier englisch " * 12, "gopher.stop_words 0 2"),
    ],
)
def test_gopher_quality(text: str, removed: str) -> None:
    assert str(verdict(text, "gopher_quality")).startswith(removed)


@pytest.mark.parametrize(
    ("text", "removed"),
    [
        ("one paragraph\n\n" * 8, "repetition.duplicate_paragraphs 0.875 0.3"),
        ("a line that comes again\n" * 8, "repetition.duplicate_lines"),
        (GOOD + " by and large by and large" * 20, "repetition.top_3_gram"),
        ("x" * 30, None),
        ("", None),
    ],
)
def test_gopher_repetition(text: str, removed: str | None) -> None:
    found = verdict(text, "gopher_repetition")
    assert (found or "") [: len(removed or "")] == (removed or "")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "removed"),
    [
        (GOOD, None),
        (GOOD + " Lorem ipsum dolor.", "c4.lorem_ipsum 1 0"),
        (GOOD + " if (x) { return }", "c4.curly_bracket 1 0"),
        ("One sentence. And another one. Art. 5 is none, nor is No. 7 of it.", "c4.min_sentences 3 5"),
    ],
)
def test_c4(text: str, removed: str | None) -> None:
    assert verdict(text, "c4") == removed


@pytest.mark.parametrize(
    "text",
    [
        "उन्हें बुद्धि प्राप्त है। यह घोषणा है। सबको अधिकार है।",
        "وہ آزاد ہیں\u06d4 یہ اعلان ہے\u06d4 کیا سب کو حق ہے؟",
        "هل هم أحرار؟ هذا إعلان. للجميع حق.",
        "ነጻ ነው። ይህ ነው። እውነት ነው።",
    ],
)
def test_sentences_end_in_their_own_scripts_signs(text: str) -> None:
    found = measured(text, "und")
    assert (found["c4.min_sentences"], found["fineweb.terminal_lines"]) == (3, 1)


@pytest.mark.parametrize(
    ("text", "removed"),
    [
        (GOOD, None),
        ("no end here at all for this line of text\n" + "nor here for that one\n" * 2, "fineweb.terminal_lines 0 0.12"),
        ("\n".join(f"Short line {n}." for n in range(9)), "fineweb.short_lines 1 0.67"),
        (GOOD + "\n" + GOOD, "fineweb.duplicate_line_chars 0.5 0.01"),
        ("\n\n\n".join(f"{'verylongword' * 3} {n}." for n in range(9)), "fineweb.newlines 1.33333 0.3"),
    ],
)
def test_fineweb(text: str, removed: str | None) -> None:
    assert verdict(text, "fineweb") == removed


def test_a_language_brings_its_stop_words_punctuation_and_thresholds() -> None:
    german = "Der Minister und die Räte beschließen das in der Sitzung. " * 10
    assert verdict(german, "gopher_quality", language="de") is None
    assert str(verdict(german, "gopher_quality")).startswith("gopher.stop_words")
    long_words = "die Verwaltungsgerichtsordnung und das Bundesverfassungsgericht " * 10
    assert str(verdict(long_words, "gopher_quality", language="de")).startswith("gopher.max_mean_word_chars")
    assert verdict(long_words, "gopher_quality", language="de", language_thresholds=True) is None
    quoted = "\n".join(f"«Il dit la phrase numéro {n} devant le tribunal.»" for n in range(9))
    assert verdict(quoted, "fineweb", language="fr") is None
    assert str(verdict(quoted, "fineweb")).startswith("fineweb.terminal_lines")


def test_a_language_without_a_file_is_not_asked_for_stop_words() -> None:
    rules = rules_of(QualityConfig(filters=EVERY_RULE), "fi").single
    assert "gopher.stop_words" not in [rule.name for rule in rules]
    assert "fineweb.terminal_lines" in [rule.name for rule in rules]


def test_what_is_said_of_a_removed_text_is_what_its_rule_measures() -> None:
    assert measured(GOOD, "en")["gopher.min_words"] == len(GOOD.split())
    removed = str(verdict(GOOD + "\n" + GOOD, "fineweb")).split()
    assert measured(GOOD + "\n" + GOOD, "en")[removed[0]] == float(removed[1])


def test_profiles_carry_the_published_thresholds() -> None:
    params = compose_job("clean", ["clean=web"]).params
    sets = {"gopher_quality": GopherQuality, "gopher_repetition": GopherRepetition, "c4": C4, "fineweb": FineWeb}
    for name, kind in sets.items():
        for field in fields(kind):
            given_value = params[name][field.name]
            assert (tuple(given_value) if isinstance(given_value, list) else given_value) == field.default


words = st.lists(st.sampled_from(["a", "be", "the", "ab", "zz", "longerword", "é", "x1"]), max_size=40)


@given(st.lists(words, max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_bounds_never_spare_a_document_that_breaks_a_rule(batch: list[list[str]], draw: Any) -> None:
    limits = replace(
        GopherRepetition(),
        max_top_ngram_chars=tuple(draw.choice((0.1, 0.3, 0.5)) for _ in range(3)),
        max_duplicate_ngram_chars=tuple(draw.choice((0.05, 0.2, 0.6)) for _ in range(6)),
    )
    suspected = ngrams.suspects(batch, [len(" ".join(text)) for text in batch], [limits] * len(batch))
    rules = gopher.ngrams(limits)
    for text, asked in zip(batch, suspected, strict=True):
        parts = Parts(" ".join(text))
        spared = [rule for rule, suspect in zip(rules, asked, strict=True) if not suspect]
        assert judge(spared, parts) is None


@given(st.lists(words, min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_document_has_the_same_verdict_alone_as_among_others(texts: list[list[str]]) -> None:
    config = QualityConfig(filters=("gopher_repetition",))
    documents = [
        Document(id=str(i), text=" ".join(text), row=i, language="en", declared="en") for i, text in enumerate(texts)
    ]
    together = [document.row for document in Quality(config)(documents, Notes(0))]
    assert together == [d.row for document in documents for d in Quality(config)([document], Notes(0))]


@pytest.mark.parametrize(
    ("text", "n", "top", "repeated"),
    [
        ("a b a b a b", 2, 9, 4),
        ("a b c d", 2, 3, 0),
        ("a a a a", 2, 9, 2),
        ("a", 2, 0, 0),
        ("the law the law is the law", 2, 21, 12),
    ],
)
def test_ngrams_by_hand(text: str, n: int, top: int, repeated: int) -> None:
    assert top_ngram_chars(text.split(), n) == top
    assert duplicate_ngram_chars(text.split(), n) == repeated
