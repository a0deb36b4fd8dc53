from __future__ import annotations

import time
import unicodedata
from dataclasses import replace

import ftfy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consortium.data import languages
from consortium.data.documents import UNKNOWN, Document, Notes
from consortium.data.lines import CITATION, Lines, LinesConfig, without_citations
from consortium.data.repair import CONFIG, needs_repair, repair, repaired
from consortium.data.screening import screen
from consortium.data.steps import Step
from consortium.domain.cleaning import C4, CleanConfig
from consortium.errors import ConfigError
from consortium.storage.shards import read_table, write_text

LAW = {
    "fr": "Le préfet peut, à l'issue de l'enquête, autoriser « l'exploitation » des œuvres — sauf opposition d’État.",  # noqa: RUF001  as in print
    "de": "Die Behörde kann nach Anhörung „der Gemeinde“ die Übertragung gemäß § 3 größtenteils beschränken.",
    "es": "¿Qué año? El Poder Ejecutivo podrá, según el artículo 5º, autorizar la explotación del niño pequeño.",
}


def run(step: Step, text: str, language: str = "fr") -> tuple[str, Notes]:
    notes = Notes(0)
    [kept] = step([Document(id="d", text=text, row=0, language=language, declared=language)], notes)
    return kept.text, notes


@pytest.mark.parametrize("text", LAW.values())
def test_good_text_is_left_alone_without_a_closer_look(text: str) -> None:
    assert not needs_repair(text)
    assert ftfy.fix_text(text, CONFIG) == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1250", "cp1254", "mac_roman", "cp437"])
@pytest.mark.parametrize(
    "text", ["l'état major à été créé", "größere Übertragung", "el niño pequeño", "déjà “vu” — oui"]
)
def test_whatever_ftfy_can_read_back_is_repaired(text: str, encoding: str) -> None:
    broken = text.encode().decode(encoding, "replace")
    assert needs_repair(broken)
    assert repaired(broken) == unicodedata.normalize("NFC", ftfy.fix_text(broken, CONFIG)).replace("\u00ad", "")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("l'Ã©tat", "l'état"),
        ("e\u0301te\u0301", "été"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("x\x00y\x07z\x1b[31m!", "xyz!"),
        ("\ufeffvor\u00adteil\u200b", "vorteil"),
        ("R&eacute;publique &amp;amp; lois", "République & lois"),
        ("<b>A &amp; B</b>", "<b>A &amp; B</b>"),
        ("oﬃce", "office"),
        ("Ｗｅｂ ２０２４ ﾊﾞｽ", "Web 2024 バス"),  # noqa: RUF001  as in print
        ("ａ．ｂ＠ｅｘａｍｐｌｅ．ｏｒｇ", "a.b@example.org"),  # noqa: RUF001  as in print
        ("＋８１－３－１２３４", "+81-3-1234"),  # noqa: RUF001  as in print
        ("a\u200b, \u200bb", "a, b"),
        ("plain ascii\n\twith a tab", "plain ascii\n\twith a tab"),
        ("« guillemets » et l’apostrophe", "« guillemets » et l’apostrophe"),  # noqa: RUF001  as in print
    ],
)
def test_repair(text: str, good: str) -> None:
    assert run(repair, text)[0] == good
    assert run(repair, good)[0] == good


@pytest.mark.parametrize(
    "text",
    [
        "他来了，我走了！你好吗？（是的）：１",  # noqa: RUF001  as in print
        "これはテストです！「はい」\u3000次の文。～￥",  # noqa: RUF001  as in print
        "1．第一条",  # noqa: RUF001  as in print
        "สวัสดีครับ\u200bประเทศไทย",
        "ភាសា\u200bខ្មែរ\u200b។",
        "ພາສາ\u200bລາວ",
        "မြန်မာ\u200bဘာသာ",
        "می\u200cخواهم",  # noqa: RUF001  as in print
    ],
)
def test_the_signs_of_other_scripts_are_left_alone(text: str) -> None:
    assert run(repair, text)[0] == text.replace("１", "1")  # noqa: RUF001  as in print


def test_personal_data_in_full_width_signs_is_found() -> None:
    config = CleanConfig(
        languages=("ja",), min_language_confidence=0, min_chars=1, max_chars=10_000, redact=("email", "secret")
    )
    text = "連絡先はこちらです。ａｂｃ＠ｅｘａｍｐｌｅ．ｏｒｇまで。Password：Xk29pQ7vR4tz 以上です。"  # noqa: RUF001  as in print
    found = screen(read_table(write_text({"id": ["a"], "text": [text], "language": ["ja"]})), 0, config)
    [left] = found.candidates.column("text").to_pylist()
    assert ("[EMAIL]" in left, "[SECRET] 以上" in left) == (True, True)


def test_a_repair_is_noted_once_with_the_span_of_what_differs() -> None:
    _, notes = run(repair, "avant l'Ã©tat et lâ€™abri après")
    [note] = notes.annotations
    assert (note.rule, note.value) == ("repair.unicode", "")
    assert "avant l'Ã©tat et lâ€™abri après"[note.start : note.end] == "Ã©tat et lâ€™"


@given(st.text(max_size=60))
@example("Á¢ß")  # Mac Roman
@example("\u03b3\u00ae\u00aa\u0131")  # Windows-1253, with a byte that it leaves undefined
@example("a\uff20b \uff0b1 1\uff0e2 \u0e01\u200b\u200b\u200b\u0e01 \u200b\ufeff\u0e01")
@example("\u0107\u00a1\u02db")  # ISO 8859-2
@settings(max_examples=400, deadline=None)
def test_what_needs_no_repair_is_not_changed_by_it_and_repair_is_final(text: str) -> None:
    once = run(repair, text)[0]
    assert run(repair, once)[0] == once
    if not needs_repair(text):
        assert repaired(text) == text
        assert ftfy.fix_text(text, CONFIG) == text


WEB = Lines(LinesConfig(c4=C4(), rules=("boilerplate", "repeated"), min_repeated_chars=20))
LONG = "Une ligne assez longue pour compter."


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("Tous droits réservés 2024", "lines.boilerplate"),
        ("deux mots", "c4.line_few_words"),
        ("Activez JavaScript pour lire.", "c4.line_javascript"),
        ("Voir notre Politique de Confidentialité.", "c4.line_policy"),
        ("See our PRIVACY POLICY for more.", "c4.line_policy"),
        (LONG, "lines.repeated"),
        ("un mot " + "x" * 1001, "c4.line_long_word"),
        ("Une autre ligne [1] citée.", "c4.citation"),
        ("Rien à redire ici", None),
        ("", None),
    ],
)
def test_a_line_goes_with_its_rule_and_span(line: str, rule: str | None) -> None:
    text = f"{LONG}\n{line}\nEt voici la fin."
    left, notes = run(WEB, text)
    assert list(notes.edits) == ([rule] if rule else [])
    for note in notes.annotations:
        assert text[note.start : note.end] == ("[1]" if rule == "c4.citation" else line + "\n")
    if rule and rule != "c4.citation":
        assert left == f"{LONG}\nEt voici la fin."


@pytest.mark.parametrize("language", [*languages.described(), "fi"])
def test_every_phrase_of_a_language_is_found_in_any_case(language: str) -> None:
    own = languages.language(language)
    for phrase in (*own.policy, *own.boilerplate, "cookie policy", "JavaScript"):
        for said in (phrase, phrase.upper(), phrase.title()):
            assert run(WEB, f"Eins zwei drei.\nxx {said} yy", language)[0] == "Eins zwei drei."


marked = st.lists(st.sampled_from(["[", "[", "]", "]", "1", "23", "edit", "citation needed", " ", "x"]), max_size=30)


def round_by_round(text: str) -> tuple[str, list[tuple[int, int]]]:
    marks: list[tuple[int, int]] = []
    while spans := [match.span() for match in CITATION.finditer(text)]:
        marks += spans
        text = CITATION.sub("", text)
    return text, marks


@given(marked.map("".join))
@example("[[1][ed[2]it]][cit[]ation [[]] needed] [x [1]] [[3]] ]")
@settings(max_examples=2000, deadline=None)
def test_citations_within_citations_go_round_by_round(text: str) -> None:
    assert without_citations(text) == round_by_round(text)


@pytest.mark.parametrize("inner", ["[", "[ed", "[1[", "[]["])
def test_a_page_of_brackets_takes_seconds(inner: str) -> None:
    number = (1 << 19) // len(inner)
    text = inner * number + ("it]" if inner == "[ed" else "]") * number
    started = time.process_time()
    without_citations(text)
    assert time.process_time() - started < 20


def test_a_cut_leaves_no_gap_and_paragraphs_stay() -> None:
    assert run(WEB, f"{LONG}\n\nTous droits réservés\n\nEt voici la fin.\n")[0] == f"{LONG}\n\nEt voici la fin."
    assert run(WEB, f"{LONG}\n\n\nEt voici la fin.\n")[0] == f"{LONG}\n\n\nEt voici la fin.\n"


def test_lines_without_an_end_go_where_the_config_says_so() -> None:
    step = Lines(LinesConfig(c4=C4(unterminated_lines_go=True), rules=(), min_repeated_chars=20))
    left, notes = run(step, "Elle dit « non ».\nElle dit « oui »\nSans fin ici\nEt cetera, etc...")
    assert left == "Elle dit « non ».\nElle dit « oui »"
    assert notes.edits == {"c4.line_unterminated": 2}


lines = st.sampled_from(
    [LONG, "[1] [[2]] note", "a b", "", "  ", "JavaScript ici même", "Lire la suite de l'article", "# x"]
)


@given(st.lists(lines, max_size=12).map("\n".join))
@settings(max_examples=300, deadline=None)
def test_a_second_cut_finds_nothing(text: str) -> None:
    once = run(WEB, text)[0]
    again, notes = run(WEB, once)
    assert (again, notes.annotations) == (once, [])


PROFILE = CleanConfig(
    languages=("de", "fr"),
    min_language_confidence=0.5,
    min_chars=30,
    max_chars=10_000,
    lines=("boilerplate", "repeated"),
    filters=("gopher_repetition", "c4", "fineweb"),
    c4=C4(min_sentences=1),
    language_thresholds=True,
)
pieces = st.sampled_from(
    [*LAW.values(), LONG, "l'Ã©tat est crÃ©Ã© par dÃ©cret.", "e\u0301crire a@b.org", "Weiterlesen", "x y", ""]
)


@given(
    st.lists(st.lists(pieces, max_size=6).map("\n".join), min_size=1, max_size=6), st.sampled_from(["fr", "de", "und"])
)
@settings(max_examples=60, deadline=None)
def test_cleaning_what_is_clean_drops_and_changes_nothing(texts: list[str], declared: str) -> None:
    rows = {"id": [str(i) for i in range(len(texts))], "text": texts, "language": [declared] * len(texts)}
    first = screen(read_table(write_text(rows)), 0, PROFILE)
    first.counts.check()
    kept = {name: first.candidates.column(name).to_pylist() for name in ("id", "text", "language")}
    again = screen(read_table(write_text(kept)), 0, PROFILE)
    assert again.annotations.num_rows == 0
    assert again.candidates.column("text").to_pylist() == kept["text"]


def test_every_language_file_reads_and_the_promised_ones_are_there() -> None:
    assert set(languages.described()) >= {"de", "en", "es", "fr", "it", "nl", "pt"}
    for code in languages.described():
        found = languages.language(code)
        assert found.stop_words
        assert found.terminal_punctuation
        assert found.policy
        assert all(phrase == phrase.lower() for phrase in (*found.policy, *found.boilerplate, *found.stop_words))
    fallback = languages.language("fi")
    assert (fallback.code, fallback.stop_words) == ("fi", frozenset())
    assert languages.language(UNKNOWN).terminal_punctuation == fallback.terminal_punctuation


@pytest.mark.parametrize(
    "change",
    [
        ("name: English", "nam: English"),
        ('stop_words: ["the"', "stop_words: [1"),
        ("boilerplate:", "boilerplate: []\nthresholds: {gopher_quality: {min_wrds: 3}}\nmore:"),
    ],
)
def test_a_language_file_that_says_nonsense_is_a_config_error(change: tuple[str, str]) -> None:
    path = next(p for p in languages.__path__)
    with open(f"{path}/en.yaml", encoding="utf-8") as file:
        text = file.read()
    assert change[0] in text
    with pytest.raises(ConfigError, match=r"en\.yaml"):
        languages.read("en", text.replace(*change))


def test_thresholds_of_a_rule_are_finite_and_not_negative() -> None:
    with pytest.raises(ValueError, match="min_sentences"):
        replace(C4(), min_sentences=-1)
