"""A text in words, lines and paragraphs, split once for all quality rules, and what they count in them.

Words are what stands between white space (`str.split`), in every language. A language written without spaces has few
and long words by this, so the word rules do not fit it (docs/data.md says so). Everything is left to operations that
run in C, and computed when a rule first asks for it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import filterfalse

SIGNS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»" + "".join(  # noqa: RUF001  signs of all scripts
    map(chr, (*range(9), *range(11, 32), *range(127, 160)))
)
"""A word of nothing but these is a sign: datatrove's list (`utils/text.py`)."""
_PARAGRAPHS = re.compile(r"\n{2,}")


class Parts:
    """One text, split. Attributes that cost something are computed on first use and kept."""

    __slots__ = ("_alpha_words", "_full_lines", "_lines", "_signs", "_text_lines", "text", "words")

    def __init__(self, text: str) -> None:
        self.text = text
        self.words: list[str] = text.split()
        self._lines: list[str] | None = None
        self._full_lines: list[str] | None = None
        self._text_lines: list[str] | None = None
        self._signs: tuple[int, int] | None = None
        self._alpha_words = 0

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
    def text_lines(self) -> list[str]:
        """What runs of newlines divide, an empty piece at either end included."""
        if self._text_lines is None:
            text = self.text
            lines = [line for line in text.split("\n") if line]
            self._text_lines = [*[""] * text.startswith("\n"), *lines, *[""] * text.endswith("\n")] or [""]
        return self._text_lines

    @property
    def paragraphs(self) -> list[str]:
        """What blank lines divide."""
        text = self.text.strip()
        return _PARAGRAPHS.split(text) if "\n\n\n" in text else text.split("\n\n")

    @property
    def signs(self) -> tuple[int, int]:
        """How many words are signs only, and the characters in them."""
        if self._signs is None:
            mixed = [word for word in filterfalse(str.isalpha, self.words) if not word[0].isalpha()]
            found = [word for word in mixed if not word.strip(SIGNS)]
            self._signs = len(found), sum(map(len, found))
            self._alpha_words = len(self.words) - len([1 for word in mixed if not _has_letter(word)])
        return self._signs

    @property
    def real_words(self) -> int:
        """Words that are more than signs."""
        return len(self.words) - self.signs[0]

    @property
    def alpha_words(self) -> int:
        """Words with at least one letter."""
        return self._alpha_words if self.signs else 0

    @property
    def mean_word_chars(self) -> float:
        """Characters per word that is more than signs; 0 without any."""
        signs, chars = self.signs
        words = len(self.words) - signs
        return (sum(map(len, self.words)) - chars) / words if words else 0.0


def _has_letter(word: str) -> bool:
    return any(map(str.isalpha, word))


def duplicates(pieces: Sequence[str]) -> tuple[int, int]:
    """Return how many pieces equal an earlier one, and the characters in those."""
    if len(set(pieces)) == len(pieces):
        return 0, 0
    counts = Counter(pieces)
    return len(pieces) - len(counts), sum((number - 1) * len(piece) for piece, number in counts.items())


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
