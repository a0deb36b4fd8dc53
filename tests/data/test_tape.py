"""Many texts at once: what a tape finds in them is what each text alone says of itself."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.data.documents import Document, Notes
from consortium.data.lines import Lines, LinesConfig
from consortium.data.parts import Words, counted
from consortium.data.pii import PiiConfig, step
from consortium.data.repair import needs_repair, repair, suspects
from consortium.data.tape import LONG_CHARS, SIGNS, batches
from consortium.domain.cleaning import C4


def test_what_nfc_joins_is_suspected() -> None:
    both = [
        chr(int(parts[0], 16)) + chr(int(parts[1], 16))
        for parts in (unicodedata.decomposition(chr(code)).split() for code in range(0x110000))
        if len(parts) == 2 and not parts[0].startswith("<")
    ]
    hangul = ["\u1100\u1161", "\uac00\u11a8"]
    assert suspects([*both, *hangul]) == list(range(len(both) + 2))


some = st.sampled_from(
    ["Ã©", "l'été", "\xc2", " ", "e\u0301", "&", "& Co", "&amp;", "\r", "“", "é“", "ß“", "ÃÂ", "\ud800", "x"]
)


@given(st.lists(st.one_of(st.text(max_size=20), st.lists(some, max_size=4).map("".join)), max_size=12))
@settings(max_examples=300, deadline=None)
def test_of_many_texts_those_that_need_repair_are_suspected(texts: list[str]) -> None:
    assert {at for at, text in enumerate(texts) if needs_repair(text)} <= set(suspects(texts))


pieces = st.sampled_from(
    ["mot", "été", "12", "3a", "§", "...", "«", "—", " ", "\n", "\x1c", "\u3000", "\x85", "\U0001d518", "😀", "字"]
)


@given(st.lists(st.one_of(st.text(max_size=20), st.lists(pieces, max_size=9).map("".join)), max_size=8))
@settings(max_examples=300, deadline=None)
def test_words_of_many_texts_are_counted_as_python_splits_them(texts: list[str]) -> None:
    assert counted(texts) == [words_of(text) for text in texts]


def words_of(text: str) -> Words:
    words = text.split()
    signs = [word for word in words if not word.strip(SIGNS)]
    letters = [word for word in words if any(map(str.isalpha, word))]
    return Words(len(words), sum(map(len, words)), len(signs), sum(map(len, signs)), len(letters))


def test_a_text_too_long_for_a_tape_is_looked_at_by_itself() -> None:
    begin = "é " * (LONG_CHARS // 2 + 1)
    long = f"{begin}deux mots\n \nL'Ã©tat répond, Tél. 01 42 76 40 40.\n\nmot — {'x' * LONG_CHARS} fin"
    documents = [
        Document(id=str(at), text=text, row=at, language="fr", declared="fr")
        for at, text in enumerate(["a b", long, "c"])
    ]
    assert [len(batch) for batch in batches(documents)] == [1, 1, 1]
    assert counted([long]) == [words_of(long)]
    notes = Notes(0)
    edited = list(step(PiiConfig())(WEB(repair(documents, notes), notes), notes))
    assert [each.text for each in edited] == ["", f"{begin}deux mots\n \nL'état répond, Tél. [PHONE].", ""]
    assert notes.edits == {
        "repair.unicode": 1, "c4.line_few_words": 2, "c4.line_long_word": 1, "redact.phone": 1,
    }  # fmt: skip


WEB = Lines(LinesConfig(c4=C4(), rules=("boilerplate", "repeated"), min_repeated_chars=20))
LONG = "Une ligne assez longue pour compter."
lines = st.sampled_from(
    [
        LONG,
        f"  {LONG}\u2003",
        "ganz kurz",
        "\u3000",
        "\x1c",
        "Une autre ligne, assez longue.",
        "Tous droits réservés",
        "a b",
        "",
        "  ",
        "JavaScript ici même",
        "Lire la suite de l'article",
        "# x",
    ]
)


def cut(text: str) -> tuple[str, list[tuple[str, int, int]]]:
    """Cut as the rules' table says, line by line."""
    cuts: list[tuple[str, int, int]] = []
    kept: list[str] = []
    for at, line in enumerate(text.split("\n")):
        bare, begin = line.strip(), len("\n".join(["", *text.split("\n")[:at]]))
        phrase = "tous droits" in bare.lower() or "lire la suite" in bare.lower()
        goes = (
            ("c4.line_few_words", bare and len(bare.split()) < 3), ("c4.line_javascript", "javascript" in bare.lower()),
            ("lines.boilerplate", phrase), ("lines.repeated", len(bare) >= 20 and bare in [x.strip() for x in kept]),
        )  # fmt: skip
        rule = next((name for name, is_so in goes if is_so), "")
        cuts += [(rule, begin, min(begin + len(line) + 1, len(text)))] if rule else []
        kept += [] if rule else [line]
    return (re.sub(r"\n(?:[^\S\n]*\n){2,}", "\n\n", "\n".join(kept)).strip("\n") if cuts else text), cuts


@given(st.lists(st.lists(lines, max_size=8).map("\n".join), max_size=6))
@settings(max_examples=300, deadline=None)
def test_many_texts_are_cut_at_once_as_each_would_be_alone(texts: list[str]) -> None:
    documents = [Document(id=str(i), text=text, row=i, language="fr", declared="fr") for i, text in enumerate(texts)]
    notes = Notes(0)
    left = [document.text for document in WEB(documents, notes)]
    noted = [[(a.rule, a.start, a.end) for a in notes.annotations if a.row == row] for row in range(len(texts))]
    assert list(zip(left, noted, strict=True)) == [cut(text) for text in texts]


def test_documents_come_out_of_batches_as_they_went_in() -> None:
    texts = ["x" * chars for chars in (1, 1 << 20, 0, 3, 1 << 16, 1 << 16, 1 << 16, 5)]
    given = [Document(id=str(i), text=text, row=i, language="fr", declared="fr") for i, text in enumerate(texts)]
    found = list(batches(given))
    assert [document for batch in found for document in batch] == given
    assert len(found) > 1


def test_notes_stand_in_the_order_of_the_documents() -> None:
    texts = ["deux mots", "Une ligne [1] citée.\ndeux mots", "x\ny", "Une [2] autre [[3]] ligne."]
    given = [Document(id=str(i), text=text, row=i, language="fr", declared="fr") for i, text in enumerate(texts)]
    notes = Notes(0)
    list(WEB(given, notes))
    assert [(note.row, note.rule.removeprefix("c4."), note.start) for note in notes.annotations] == [
        (0, "line_few_words", 0), (1, "citation", 10), (1, "line_few_words", 18), (2, "line_few_words", 0),
        (2, "line_few_words", 2), (3, "citation", 4), (3, "citation", 15), (3, "citation", 11),
    ]  # fmt: skip
