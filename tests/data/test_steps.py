from __future__ import annotations

from typing import Any

import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from consortium.data import pii
from consortium.data.documents import Document, Notes
from consortium.data.language import identifier
from consortium.data.steps import LanguageConfig, LengthConfig, Step, language, length

FRENCH = "Le préfet peut, après avis de la commission, autoriser l'exploitation des installations."
GERMAN = "Die zuständige Behörde kann nach Anhörung der Gemeinde eine Genehmigung erteilen."
SPANISH = "El Poder Ejecutivo podrá autorizar la explotación de las instalaciones por un plazo determinado."
PORTUGUESE = "O Poder Executivo poderá autorizar a exploração das instalações por um prazo não superior a dois anos."

redact_email = pii.step(pii.PiiConfig(kinds=("email",)))


def document(text: str, declared: str = "fr") -> Document:
    return Document(id="d", text=text, row=3, language=declared, declared=declared)


def outcome(step: Step, text: str) -> tuple[list[Document], Notes]:
    notes = Notes(shard=7)
    return list(step([document(text)], notes)), notes


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("x" * 9, "length.min"),
        ("x" * 10, None),
        ("  " + "x" * 9 + "\n\n", "length.min"),
        ("x" * 20, None),
        ("x" * 21, "length.max"),
        ("", "length.min"),
    ],
)
def test_length_counts_characters_without_white_space_at_the_ends(text: str, rule: str | None) -> None:
    kept, notes = outcome(length(LengthConfig(min_chars=10, max_chars=20)), text)
    assert (len(kept), list(notes.removed)) == ((1, []) if rule is None else (0, [rule]))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (FRENCH, None),
        (FRENCH.upper(), None),
        (f"##### **Article 12**\n\n{FRENCH}", None),
        (GERMAN, "language.other"),
        (SPANISH, "language.other"),
        ("12 + 30 = 42 %", "language.none"),
    ],
)
def test_french_stays_whatever_its_case_and_markup(text: str, rule: str | None) -> None:
    kept, notes = outcome(language(LanguageConfig(languages=("fr",), min_confidence=0.5)), text)
    assert (len(kept), list(notes.removed)) == ((1, []) if rule is None else (0, [rule]))


def test_spanish_and_portuguese_are_told_apart() -> None:
    step = language(LanguageConfig(languages=("es",), min_confidence=0.5))
    assert outcome(step, SPANISH)[0][0].language == "es"
    [annotation] = outcome(step, PORTUGUESE)[1].annotations
    assert annotation.value.startswith("pt ")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("hi", "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।"),
        ("mr", "सर्व मानवी व्यक्ति जन्मतःच स्वतंत्र आहेत व त्यांना समान प्रतिष्ठा व समान अधिकार आहेत."),
        ("ne", "सबै व्यक्तिहरू जन्मजात स्वतन्त्र हुन् ती सबैको समान अधिकार र महत्व छ।"),
    ],
)
def test_languages_of_one_script_are_told_apart_by_their_vowel_signs(code: str, text: str) -> None:
    kept, notes = outcome(language(LanguageConfig(languages=("hi", "mr", "ne"), min_confidence=0.8)), text)
    assert [one.language for one in kept] == [code], notes.annotations


def test_marks_on_no_letter_are_no_text() -> None:
    kept, notes = outcome(
        language(LanguageConfig(languages=("hi",), min_confidence=0.5)), "❤\ufe0f 1\ufe0f\u20e3 👩\u200d👧"
    )
    assert (kept, list(notes.removed)) == ([], ["language.none"])


def test_an_uncertain_language_goes_with_value_and_threshold() -> None:
    kept, notes = outcome(
        language(LanguageConfig(languages=("fr",), min_confidence=0.999_999)), "Dispositions diverses"
    )
    assert not kept
    [annotation] = notes.annotations
    assert (annotation.rule, annotation.threshold) == ("language.confidence", "0.999999")
    assert float(annotation.value) < 1


def test_what_stays_carries_the_language_found_and_counts_by_the_one_declared() -> None:
    notes = Notes(shard=0)
    step = language(LanguageConfig(languages=("de", "fr"), min_confidence=0.5))
    [kept] = step([document(GERMAN, declared="fr")], notes)
    assert (kept.language, kept.declared) == ("de", "fr")


def test_many_texts_at_once_are_told_as_py3langid_tells_them_one_by_one() -> None:
    asked = ("de", "en", "es", "fr", "it", "nl", "pt", "sr", "zh")
    reference: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    reference.set_languages(asked)
    texts = [
        FRENCH,
        GERMAN,
        SPANISH,
        PORTUGUESE,
        "",
        "x",
        "日本語の文章",
        "e\u0301te\u0301",
        "\ud800",
        "закон о држави",  # noqa: RUF001  Serbian
    ]
    texts += [(FRENCH + GERMAN)[at : at + at % 97] for at in range(150)]
    found = identifier(asked)([text.lower() for text in texts])
    assert len(found) == len(texts)
    for text, (language_found, probability) in zip(texts, found, strict=True):
        expected, chance = reference.classify(text.lower())
        assert probability == pytest.approx(chance, abs=1e-5)
        assert language_found == expected or probability == pytest.approx(1 / len(asked), abs=0.01)
    for text, alone in zip(texts, found, strict=True):
        assert identifier(asked)([text.lower()]) == [alone]  # whatever stands beside it


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to a.b+c@mail.example.org.", "write to [EMAIL]."),
        ("jean_dupont@exemple.fr, marie@exemple.fr", "[EMAIL], [EMAIL]"),
        ("<anna@beispiel.de>", "<[EMAIL]>"),
        ("müller@straße.de", "[EMAIL]"),
        ("user@host", "user@host"),
        ("at @ sign, 3@4.5, @mention", "at @ sign, 3@4.5, @mention"),
        ("no address", "no address"),
        ("[EMAIL]", "[EMAIL]"),
    ],
)
def test_addresses_become_placeholders_and_nothing_else_changes(text: str, redacted: str) -> None:
    assert outcome(redact_email, text)[0][0].text == redacted


def test_an_edit_is_noted_with_its_span_and_without_the_address() -> None:
    _, notes = outcome(redact_email, "to a@b.org and c@d.org")
    assert [(note.rule, note.value, note.start, note.end) for note in notes.annotations] == [
        ("redact.email", "[EMAIL]", 3, 10),
        ("redact.email", "[EMAIL]", 15, 22),
    ]
    assert notes.edits == {"redact.email": 2}
