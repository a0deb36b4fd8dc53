"""Keeping evaluation sets out of training data: documents that hold a window of 13 words of one are dropped or noted.

| rule                  | drops or notes                                                                           |
|-----------------------|------------------------------------------------------------------------------------------|
| `decontaminate.ngram` | `words` words in a row, folded, without punctuation, that stand in an evaluation set     |

13 words are what GPT-3 was checked with (Brown and others, 2020, appendix C). An evaluation text of fewer words, but at
least `min_words` (there: 8), is looked for as a whole. A match of numbers is confirmed by comparing the words
themselves, so a hash collision drops nothing. The annotation names the set and its text; with `drop` off it also
carries the span of the first window found, and the document stays.

Known limits: translations and paraphrases are not found, nor is a question whose answer alone leaked. Law that an
evaluation set quotes is the law: look at the notes before dropping.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from consortium.data.documents import Annotation, Document, Notes, Outcome
from consortium.data.shingles import BLOCK_CHARS, I64, U64, Words, blocks, hashing, read, window_sums
from consortium.domain.cleaning import DecontaminateConfig

RULE = "decontaminate.ngram"


class EvaluationSets:
    """The windows of evaluation sets. Memory: about 300 bytes per window.

    `sets` gives the texts of each by its name: whatever must not be learnt by heart, questions and answers.
    """

    def __init__(self, sets: Mapping[str, Sequence[str]], config: DecontaminateConfig) -> None:
        self.config = config
        self._places: dict[str, str] = {}  # a window's words, and where they stand
        numbers: dict[int, list[U64]] = {}  # by words in a window
        for name in sorted(sets):
            for first, last in blocks(sets[name]):
                words = read(sets[name][first:last], hashing())
                for index, begin, end in zip(range(first, last), words.bounds[:-1], words.bounds[1:], strict=True):
                    self._learn(words, int(begin), int(end), f"{name} {index}", numbers)
        self._numbers = {length: np.unique(np.concatenate(parts)) for length, parts in sorted(numbers.items())}
        self._filters = {length: _filter(numbers) for length, numbers in self._numbers.items()}

    def find(self, words: Words) -> dict[int, tuple[int, int, str]]:
        """Return, for each text that holds a window, the first one: its first word, its length, where it stands."""
        found: dict[int, tuple[int, int, str]] = {}
        for length, sums in window_sums(words.hashes, tuple(self._numbers), hashing()):
            hits = _members(sums, self._numbers[length], self._filters[length])
            owners = np.searchsorted(words.bounds, hits, side="right") - 1
            inside = hits + length <= words.bounds[owners + 1]
            for hit, owner in zip(hits[inside].tolist(), owners[inside].tolist(), strict=True):
                if owner not in found or hit < found[owner][0]:
                    stands = self._places.get(words.spelled(hit, length))
                    if stands is not None:
                        found[owner] = (hit, length, stands)
        return found

    def _learn(self, words: Words, begin: int, end: int, stands: str, numbers: dict[int, list[U64]]) -> None:
        length = min(end - begin, self.config.words)
        if length < self.config.min_words:
            return
        spelled = words.spelled(begin, end - begin).split(" ")
        count = len(spelled) - length + 1
        for _, sums in window_sums(words.hashes[begin:end], (length,), hashing()):
            numbers.setdefault(length, []).append(sums[:count].copy())
        for first in range(count):
            self._places.setdefault(" ".join(spelled[first : first + length]), stands)


def decontaminate(sets: EvaluationSets) -> Callable[[Iterable[Document], Notes], Iterator[Document]]:
    """Drop or note documents that hold a window of an evaluation set; holds some 130,000 characters of documents."""
    config = sets.config

    def judge(held: list[Document], notes: Notes) -> Iterator[Document]:
        words = read([document.text for document in held], hashing())
        found = sets.find(words)
        for index, document in enumerate(held):
            if index not in found:
                yield document
                continue
            first, length, stands = found[index]
            if config.drop:
                notes.remove(document, Outcome(False, RULE, stands, f"{length} words"))
                continue
            span = _span(words, index, first, length, document.text)
            notes.annotations.append(
                Annotation(document.id, notes.shard, document.row, RULE, stands, f"{length} words", *span)
            )
            yield document

    def run(documents: Iterable[Document], notes: Notes) -> Iterator[Document]:
        held: list[Document] = []
        chars = 0
        for document in documents:
            held.append(document)
            chars += len(document.text) + 1
            if chars >= BLOCK_CHARS:
                yield from judge(held, notes)
                held, chars = [], 0
        if held:
            yield from judge(held, notes)

    return run


def _span(words: Words, index: int, first: int, length: int, text: str) -> tuple[int, int]:
    """Return the window's characters in the text, or (-1, -1) where NFC moved them."""
    if not unicodedata.is_normalized("NFC", text):
        return -1, -1
    start = int(words.texts[index])
    return int(words.begins[first]) - start, int(words.ends[first + length - 1]) - start


def _filter(numbers: U64) -> tuple[int, npt.NDArray[np.bool_]]:
    """Return a shift, and a table over what it leaves of numbers: at least 16 times as long as there are numbers."""
    bits = min(max(len(numbers).bit_length() + 5, 16), 26)
    table = np.zeros(1 << bits, dtype=bool)
    table[numbers >> np.uint64(64 - bits)] = True
    return 64 - bits, table


def _members(asked: U64, numbers: U64, table: tuple[int, npt.NDArray[np.bool_]]) -> I64:
    """Return the places of those asked that are among the sorted numbers."""
    shift, maybe = table
    places = np.flatnonzero(maybe.take((asked >> np.uint64(shift)).view(np.int64), mode="clip"))
    at = np.minimum(np.searchsorted(numbers, asked[places]), len(numbers) - 1)
    there: I64 = places[numbers[at] == asked[places]]
    return there
