from __future__ import annotations

import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.data.shingles import BLOCK_CHARS, blocks, grams, hashing, read
from consortium.errors import ConfigError

WORD = re.compile(r"[^\W_]+")
NUMBER_OF_DER = 7674271226560081419
LATIN = st.text(st.sampled_from("abzÀéßŒñ019 ,.-_'\u2019«»\n\t"), max_size=60)


def spelled(text: str) -> list[str]:
    words = read([text], hashing())
    return words.spelled(0, len(words.hashes)).split(" ") if len(words.hashes) else []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("L'État, c\u2019est «moi» !", ["l", "état", "c", "est", "moi"]),
        ("§ 12a Abs._3_", ["12a", "abs", "3"]),
        ("E\u0301TE\u0301 été", ["été", "été"]),
        ("ΛΌΓΟΣ λόγος", ["λόγο\u03c3"] * 2),
        ("第一条 法律", ["第", "一", "条", "法", "律"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("\ud800 x", ["x"]),
        ("", []),
        (" .,\n", []),
    ],
)
def test_a_word_is_a_run_of_letters_digits_and_marks_folded(text: str, words: list[str]) -> None:
    assert spelled(text) == words


@given(st.lists(LATIN, max_size=8))
def test_words_are_those_of_the_plain_way_and_numbers_agree_exactly_where_words_do(texts: list[str]) -> None:
    found = read(texts, hashing(b"k"))
    plain = [
        ["".join(c if len(c.casefold()) > 1 else c.casefold() for c in word) for word in WORD.findall(normal)]
        for normal in (unicodedata.normalize("NFC", text) for text in texts)
    ]
    assert np.diff(found.bounds).tolist() == [len(words) for words in plain]
    flat = [word for words in plain for word in words]
    assert [found.spelled(at, 1) for at in range(len(flat))] == flat
    assert len(set(found.hashes.tolist())) == len(set(flat))
    assert len(set(zip(found.hashes.tolist(), flat, strict=True))) == len(set(flat))


@given(st.lists(LATIN, max_size=8), st.integers(1, 6))
def test_ngrams_agree_exactly_where_their_words_do(texts: list[str], size: int) -> None:
    found = grams(read(texts, hashing()), size, hashing())
    plain = []
    for text in texts:
        words = spelled(text)
        plain.append([tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))] if words else [])
    assert np.diff(found.bounds).tolist() == [len(part) for part in plain]
    flat = [gram for part in plain for gram in part]
    assert len(set(zip(found.hashes.tolist(), flat, strict=True))) == len(set(flat)) == len(set(found.hashes.tolist()))


@given(st.lists(st.integers(0, 3 * BLOCK_CHARS), max_size=6))
@settings(max_examples=30)
def test_blocks_hold_every_text_once_and_no_more_than_fits(lengths: list[int]) -> None:
    texts = ["x" * length for length in lengths]
    runs = list(blocks(texts))
    assert [at for first, last in runs for at in range(first, last)] == list(range(len(texts)))
    assert all(last - first == 1 or sum(lengths[first:last]) <= BLOCK_CHARS for first, last in runs)


def test_a_text_gives_the_same_numbers_alone_in_company_and_in_a_long_document() -> None:
    alone = read(["Un texte court."], hashing()).hashes
    company = read(["avant", "Un texte court.", "après"], hashing())
    assert company.hashes[company.bounds[1] : company.bounds[2]].tolist() == alone.tolist()
    long = read(["x " * 3 * BLOCK_CHARS + "Un texte court."], hashing())
    assert long.hashes[-3:].tolist() == alone.tolist()


def test_another_key_gives_other_numbers_and_another_process_the_same() -> None:
    text = "Der Bundestag hat das folgende Gesetz beschlossen"
    numbers = read([text], hashing(b"secret")).hashes.tolist()
    assert not set(numbers) & set(read([text], hashing()).hashes.tolist())
    code = f"from consortium.data.shingles import *; print(read([{text!r}], hashing(b'secret')).hashes.tolist())"
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(numbers)
    assert numbers[0] == NUMBER_OF_DER, (
        "a change of these numbers makes stored signatures useless: change the magic too"
    )
    with pytest.raises(ConfigError, match="64 bytes"):
        hashing(b"x" * 65)
