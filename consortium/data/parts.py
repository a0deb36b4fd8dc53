"""A text in words, lines and paragraphs, split once for all quality rules, and what they count in them.

Words are what stands between white space (`str.split`), in every language. A language written without spaces has few
and long words by this, so the word rules do not fit it (docs/data.md says so). Everything is left to operations that
run in C, and computed when a rule first asks for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from consortium.data.tape import LETTER, LONG_CHARS, NO_SIGN, Tape, is_long

_BLANK = re.compile(r"\s")
_PARAGRAPHS = re.compile(r"\n{2,}")


class Words(NamedTuple):
    """How many words a text has and their characters; the same of those that are signs only; how many have a letter."""

    number: int
    chars: int
    signs: int
    sign_chars: int
    alpha: int


def counted(texts: Sequence[str]) -> list[Words]:
    """Count the words of many texts at once; a long one's in pieces, cut at white space."""
    if not is_long(texts):
        return _counted(texts)
    pieces = (_counted([piece])[0] for piece in _pieces(texts[0]))
    return [Words(*map(sum, zip(*pieces, strict=True)))]


def _pieces(text: str) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        blank = _BLANK.search(text, begin + LONG_CHARS)
        end = blank.start() if blank else len(text)
        yield text[begin:end]
        begin = end


def _counted(texts: Sequence[str]) -> list[Words]:
    tape = Tape(texts)
    kinds = np.bitwise_or.reduceat(tape.kinds, tape.words) if len(tape.words) else np.zeros(0, np.uint8)
    chars = tape.word_ends - tape.words
    signs = (kinds & NO_SIGN) == 0
    first, last = np.searchsorted(tape.words, (tape.begins, tape.ends))
    columns = [last - first]
    for each in (chars, signs, chars * signs, (kinds & LETTER) != 0):
        running = np.concatenate(([0], np.cumsum(each, dtype=np.int64)))
        columns.append(running[last] - running[first])
    return list(map(Words, *(column.tolist() for column in columns)))


class Parts:
    """One text, split. Attributes that cost something are computed on first use and kept."""

    __slots__ = ("_full_lines", "_line_duplicates", "_lines", "_paragraphs", "_words", "counts", "text")

    def __init__(self, text: str, counts: Words | None = None) -> None:
        self.text = text
        self.counts = counts or counted([text])[0]
        self._words: list[str] | None = None
        self._lines: list[str] | None = None
        self._full_lines: list[str] | None = None
        self._paragraphs: tuple[float, int] | None = None
        self._line_duplicates: tuple[float, int] | None = None

    @property
    def words(self) -> list[str]:
        """Words, in order."""
        if self._words is None:
            self._words = self.text.split()
        return self._words

    @property
    def chars(self) -> int:
        """Characters of the text; at least 1, to divide by."""
        return len(self.text) or 1

    @property
    def lines(self) -> list[str]:
        """Lines by any line break, blank ones too; at least one."""
        if self._lines is None:
            self._lines = self.text.splitlines() or [""]
        return self._lines

    @property
    def full_lines(self) -> list[str]:
        """Lines by newlines that are more than white space."""
        if self._full_lines is None:
            self._full_lines = [line for line in self.text.split("\n") if line and not line.isspace()]
        return self._full_lines

    @property
    def line_duplicates(self) -> tuple[float, int]:
        """Share of the lines, as runs of newlines divide them, that equal an earlier one, and the characters in those.

        Before a newline at the start and behind one at the end stands an empty line.
        """
        if self._line_duplicates is None:
            text = self.text
            lines = [line for line in text.split("\n") if line]
            pieces = [*[""] * text.startswith("\n"), *lines, *[""] * text.endswith("\n")] or [""]
            self._line_duplicates = duplicates(pieces)
        return self._line_duplicates

    @property
    def paragraph_duplicates(self) -> tuple[float, int]:
        """The same of what blank lines divide."""
        if self._paragraphs is None:
            text = self.text.strip()
            self._paragraphs = duplicates(_PARAGRAPHS.split(text) if "\n\n\n" in text else text.split("\n\n"))
        return self._paragraphs

    @property
    def real_words(self) -> int:
        """Words that are more than signs."""
        return self.counts.number - self.counts.signs

    @property
    def mean_word_chars(self) -> float:
        """Characters per word that is more than signs; 0 without any."""
        words = self.real_words
        return (self.counts.chars - self.counts.sign_chars) / words if words else 0.0


def duplicates(pieces: Sequence[str]) -> tuple[float, int]:
    """Return the share of the pieces that equal an earlier one, and the characters in those."""
    if len(set(pieces)) == len(pieces):
        return 0.0, 0
    counts = Counter(pieces)
    chars = sum((number - 1) * len(piece) for piece, number in counts.items())
    return (len(pieces) - len(counts)) / len(pieces), chars


def top_ngram_chars(words: Sequence[str], n: int) -> int:
    """Return the characters of the most frequent n-gram, joined by spaces, times its number; of equals the first."""
    grams = Counter(map(" ".join, zip(*(words[i:] for i in range(n)), strict=False)))
    if not grams:
        return 0
    gram, number = grams.most_common(1)[0]
    return len(gram) * number


def duplicate_ngram_chars(words: Sequence[str], n: int) -> int:
    """Return the characters, spaces not counted, of the n-grams that stood before; no word is counted twice.

    From left to right: an n-gram that was seen counts, and the search goes on behind it.
    """
    grams = list(zip(*(words[i:] for i in range(n)), strict=False))
    seen: set[tuple[str, ...]] = set()
    chars = at = 0
    while at < len(grams):
        gram = grams[at]
        if gram in seen:
            chars += sum(map(len, gram))
            at += n
        else:
            seen.add(gram)
            at += 1
    return chars
