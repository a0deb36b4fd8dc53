"""Many texts on one tape of characters, so that numpy asks a question once for all of them and not once for each.

Most texts need no edit; a tape finds those that may, and only they are looked at one by one, by the rules' own words.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from consortium.data.documents import Document

Codes = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_BATCH_CHARS = 1 << 17
"""So that a tape and what is made of it stay in a core's cache."""
LONG_CHARS = 1 << 20
"""A longer text is no matter for a tape, which takes some twenty bytes per character: it is looked at by itself."""
BLANK, LETTER, NO_SIGN = (np.uint8(1 << bit) for bit in range(3))
"""What a character is: white space (`str.isspace`), a letter (`str.isalpha`), neither white space nor a sign."""
SIGNS = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»" + "".join(  # noqa: RUF001  signs of all scripts
    map(chr, (*range(9), *range(11, 32), *range(127, 160)))
)
"""A word of nothing but these is a sign: datatrove's list (`utils/text.py`)."""


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents in their order, as many at once as make a tape; a long one alone."""
    batch: list[Document] = []
    chars = 0
    for document in documents:
        if batch and len(document.text) > LONG_CHARS:
            yield batch
            batch, chars = [], 0
        batch.append(document)
        chars += len(document.text)
        if chars >= _BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def is_long(texts: Sequence[str]) -> bool:
    """Tell whether these are one text that is too long for a tape."""
    return len(texts) == 1 and len(texts[0]) > LONG_CHARS


class Tape:
    """Texts, each between two newlines, as their code points."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.text = "\n".join(("", *texts, ""))
        self.codes: Codes = np.frombuffer(self.text.encode("utf-32-le", "surrogatepass"), "<u4")
        """Of `text`."""
        sizes = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
        self.ends: Ints = np.cumsum(sizes)
        """Where the newline behind each text stands."""
        self.begins: Ints = self.ends - sizes + 1
        """Where each text begins."""

    def texts_at(self, places: Ints) -> list[int]:
        """Return the numbers of the texts in which `places` lie, each once, in order."""
        found: list[int] = np.unique(np.searchsorted(self.ends, places)).tolist()
        return found

    @cached_property
    def special(self) -> Ints:
        """Places of all that is not printable ASCII: newlines, controls, other scripts."""
        return np.flatnonzero(self.codes - np.uint32(0x20) > 0x5E)

    @cached_property
    def low_bytes(self) -> bytes:
        """The lower byte of each character: Latin-1 is itself, what lies beyond looks like it."""
        return self.codes.astype(np.uint8).tobytes()

    @cached_property
    def newlines(self) -> Ints:
        """Places of newlines, from the one before the first text to the one behind the last."""
        found: Ints = self.special[self.codes[self.special] == 0x0A]
        return found

    @cached_property
    def kinds(self) -> npt.NDArray[np.uint8]:
        """What each character is: `BLANK`, `LETTER`, `NO_SIGN`."""
        table = _kinds()
        kinds = np.frombuffer(bytearray(self.low_bytes.translate(table[:256].tobytes())), np.uint8)
        kinds[self.special] = table[self.codes[self.special]]
        return kinds

    @cached_property
    def blanks(self) -> Flags:
        """Which characters are white space."""
        found: Flags = self.kinds == BLANK
        return found

    @cached_property
    def words(self) -> Ints:
        """Where words begin, as `str.split` finds them."""
        return np.flatnonzero(self.blanks[:-1] > self.blanks[1:]) + 1

    @cached_property
    def word_ends(self) -> Ints:
        """Where they end."""
        return np.flatnonzero(self.blanks[:-1] < self.blanks[1:]) + 1


@lru_cache(maxsize=1)
def _kinds() -> npt.NDArray[np.uint8]:
    """Return what every character is."""
    number = sys.maxunicode + 1
    signs = [code for code in map(ord, SIGNS) if not chr(code).isspace()]
    kinds = np.full(number, NO_SIGN)
    kinds[np.fromiter(map(str.isalpha, map(chr, range(number))), np.bool_, number)] |= LETTER
    kinds[signs] ^= NO_SIGN
    kinds[[code for code in range(0x3001) if chr(code).isspace()]] = BLANK
    return kinds
