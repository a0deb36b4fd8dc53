"""Rules on the lines of a document. They edit: a line goes, the rest stays. Blank lines stay; two never follow a cut.

| rule                   | a line goes                                                                             |
|------------------------|-----------------------------------------------------------------------------------------|
| `c4.line_long_word`    | with a word of more than `max_word_chars` characters                                    |
| `c4.line_unterminated` | that ends in no terminal punctuation of its language, or in an ellipsis; off by default |
| `c4.line_few_words`    | with fewer than `min_line_words` words                                                  |
| `c4.line_javascript`   | that mentions JavaScript                                                                |
| `c4.line_policy`       | that has one of the language's (or English) policy phrases                              |
| `lines.boilerplate`    | of at most 120 characters that has one of the language's boilerplate phrases            |
| `lines.repeated`       | of at least `min_repeated_line_chars` characters that stands earlier in the document    |

`c4.citation` takes citation marks (`[1]`, `[edit]`, `[citation needed]`) out of the text before its lines are judged.
Whether a line goes depends on it alone, but for `lines.repeated`, which keeps the first: a second run changes nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from consortium.data import languages
from consortium.data.documents import Document, Notes
from consortium.data.tape import Tape, batches, is_long
from consortium.domain.cleaning import C4, LineRule

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_CITED = re.compile(r"\d*|edit|citation needed")
_BRACKET = re.compile(r"([\[\]])")
BOILERPLATE_CHARS = 120
_ASCII = re.compile(rb"[\x00-\x7f]*")
_LONG_WORD = re.compile(rb"[a-z]{6,}")
_GAP = re.compile(r"\n(?:[^\S\n]*\n){2,}")

Line = tuple[int, int]
"""Where a line, or a part of one, begins in its text, and where it ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesConfig:
    """Which line rules are asked: C4's where `c4` is set, and those of `rules`."""

    c4: C4 | None
    rules: tuple[LineRule, ...]
    min_repeated_chars: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What one language's lines are asked. `named` finds phrases, by rule; each has one of `phrases` in it."""

    few_words: int
    word_chars: int
    terminal: tuple[str, ...]
    """Empty: lines need no end."""
    repeated_chars: int
    """0: lines may stand again."""
    phrases: tuple[bytes, ...]
    named: re.Pattern[str] | None

    def risky(self, text: str) -> bool:
        """Tell whether a text may have one of the phrases. Bytes in lower case cost a fraction of what text costs."""
        lower = text.encode("utf-8", "surrogatepass").lower()
        return any(phrase in lower for phrase in self.phrases)

    def long_word(self, line: str) -> bool:
        """Tell whether a line has a word that is too long."""
        return len(line) > self.word_chars and max(map(len, line.split())) > self.word_chars

    def rule(self, bare: str, seen: set[str], risky: bool) -> str:
        """Return the rule by which a line, without white space at its ends, goes, or nothing."""
        if self.long_word(bare):
            return "c4.line_long_word"
        if self.terminal and (not bare.endswith(self.terminal) or bare.endswith("...")):
            return "c4.line_unterminated"
        if len(bare.split(None, self.few_words)) < self.few_words:
            return "c4.line_few_words"
        for match in self.named.finditer(bare) if risky and self.named is not None else ():
            if match.lastgroup != "boilerplate":
                return f"c4.line_{match.lastgroup}"
            if len(bare) <= BOILERPLATE_CHARS:
                return "lines.boilerplate"
        if self.repeated_chars and len(bare) >= self.repeated_chars:
            if bare in seen:
                return "lines.repeated"
            seen.add(bare)
        return ""


class Lines:
    """The step: every cut is noted with its span in the text before the cut."""

    def __init__(self, config: LinesConfig) -> None:
        self.config = config

    def __call__(self, documents: Iterable[Document], notes: Notes) -> Iterator[Document]:
        """Yield all documents, cut where a rule says so."""
        known: dict[str, _Asked] = {}
        for batch in batches(documents):
            marks: dict[int, list[Line]] = {}
            for at, document in enumerate(batch if self.config.c4 is not None else ()):
                if "[" in document.text:
                    text, marks[at] = without_citations(document.text)
                    batch[at] = document.edited(text) if marks[at] else document
            for code in {document.language for document in batch}.difference(known):
                known[code] = _asked(self.config, code)
            suspects = {at: (risky, lines) for at, risky, lines in _suspects(batch, known)}
            for at in sorted(marks.keys() | suspects.keys()):  # notes stand in the order of the documents
                for start, end in marks.get(at, ()):
                    notes.edit(batch[at], "c4.citation", "", start, end)
                if at in suspects:
                    batch[at] = _cut(batch[at], known[batch[at].language], *suspects[at], notes)
            yield from batch


def _suspects(batch: list[Document], known: dict[str, _Asked]) -> Iterator[tuple[int, bool, list[Line]]]:
    """Yield which documents may lose a line, whether for a phrase, and which lines; no other goes."""
    asked = [known[code] for code in sorted({document.language for document in batch})]
    texts = [document.text for document in batch]
    if is_long(texts):
        yield 0, asked[0].risky(texts[0]), list(_lines(texts[0]))
        return
    tape = Tape(texts)
    begins, ends = tape.newlines[:-1] + 1, tape.newlines[1:]
    number = np.searchsorted(tape.ends, begins)
    chars, words = ends - begins, np.diff(np.searchsorted(tape.words, tape.newlines))
    go = (words < asked[0].few_words) | (chars > asked[0].word_chars)  # languages differ in phrases and ends only
    if asked[0].repeated_chars:
        long = np.flatnonzero(chars >= asked[0].repeated_chars)
        sums = np.add.reduceat(tape.codes * ~tape.blanks, tape.newlines, dtype=np.uint64)
        keys = (number[long].astype(np.uint64) << np.uint64(44)) + sums[long]
        order = np.argsort(keys)
        alike = np.flatnonzero(keys[order[1:]] == keys[order[:-1]])
        go[long[order[alike]]] = go[long[order[alike + 1]]] = True
    if any(each.terminal for each in asked):
        go[:] = True
    risky = [False] * len(batch)
    if any(each.risky(tape.text) for each in asked):
        risky = [known[document.language].risky(document.text) for document in batch]
        go |= np.array(risky)[number]
    found = np.flatnonzero(go & (words > 0))
    at = number[found]
    begin = tape.begins[at]
    rows = zip(at.tolist(), (begins[found] - begin).tolist(), (ends[found] - begin).tolist(), strict=True)
    for text, lines in groupby(rows, key=itemgetter(0)):
        yield text, risky[text], [(start, end) for _, start, end in lines]


def _lines(text: str) -> Iterator[Line]:
    """Yield the lines that are not blank."""
    begin = 0
    for line in text.split("\n"):
        end = begin + len(line)
        if line and not line.isspace():
            yield begin, end
        begin = end + 1


def _cut(document: Document, asked: _Asked, risky: bool, lines: list[Line], notes: Notes) -> Document:
    """Return a document without those of `lines` that go, the newline behind each included."""
    text = document.text
    kept: list[str] = []
    seen: set[str] = set()
    at = 0
    for start, end in lines:
        rule = asked.rule(text[start:end].strip(), seen, risky)
        if rule:
            notes.edit(document, rule, "", start, min(end + 1, len(text)))
            kept.append(text[at:start])
            at = end + 1
    if not at:
        return document
    left = "".join((*kept, text[at:])) if at <= len(text) else "".join(kept).removesuffix("\n")
    return document.edited(_GAP.sub("\n\n", left).strip("\n"))


def without_citations(text: str) -> tuple[str, list[Line]]:
    """Return a text without citation marks, and where they stood.

    A mark may show only when those within it are gone (`[[1]]`). So marks go in rounds: first all that hold none, then
    those that held these, and so on, each at its place in the text that the rounds before left.
    """
    spans = [match.span() for match in CITATION.finditer(text)]
    if not spans:
        return text, spans
    left = CITATION.sub("", text)
    if CITATION.search(left) is None:
        return left, spans
    pieces: list[str] = []
    opened: list[_Opened] = []
    marks: list[_Mark] = []
    at = 0
    for piece in _BRACKET.split(text):
        if not piece:
            continue
        at += len(piece)
        pieces.append(piece)
        if piece == "[":
            opened.append(_Opened(at - 1, len(pieces), len(marks)))
        elif piece == "]" and opened:
            last = opened.pop()
            held = "".join(pieces[last.pieces : -1])
            if _CITED.fullmatch(held):
                del pieces[last.pieces - 1 :]
                marks.append(_Mark(last.round, last.start, len(held) + 2, last.marks))
                if opened:
                    opened[-1].round = max(opened[-1].round, last.round + 1)
            else:
                opened.clear()  # what holds brackets that stay is no mark
    return "".join(pieces), _in_rounds(marks)


@dataclass(slots=True)
class _Opened:
    """An opening bracket: its place, how many pieces end with it, how many marks before it; the round it may go in."""

    start: int
    pieces: int
    marks: int
    round: int = 0


class _Mark(NamedTuple):
    """A citation mark, in the order of closing brackets: what is left of it in its round, how many closed before it."""

    round: int
    start: int
    chars: int
    before: int


def _in_rounds(marks: list[_Mark]) -> list[Line]:
    """Return marks by round, each where it stands when what went in earlier rounds is gone."""
    gone = [0] * (len(marks) + 1)  # a Fenwick tree (1994) of the characters gone, over marks as they closed
    counted = 0
    spans: list[Line] = []
    order = sorted(range(len(marks)), key=marks.__getitem__)
    for turn, start, chars, number in map(marks.__getitem__, order):
        while number and (earlier := marks[order[counted]]).round < turn:
            place = order[counted] + 1
            while place < len(gone):
                gone[place] += earlier.chars
                place += place & -place
            counted += 1
        while number:
            start -= gone[number]
            number &= number - 1
        spans.append((start, start + chars))
    return spans


def _asked(config: LinesConfig, code: str) -> _Asked:
    own, english, c4 = languages.language(code), languages.language("en"), config.c4
    named = {
        "javascript": ("javascript",) if c4 else (),
        "policy": tuple(dict.fromkeys(english.policy + own.policy)) if c4 else (),
        "boilerplate": own.boilerplate if "boilerplate" in config.rules else (),
    }
    groups = [f"(?P<{name}>{'|'.join(map(re.escape, words))})" for name, words in named.items() if words]
    return _Asked(
        few_words=c4.min_line_words if c4 else 0,
        word_chars=c4.max_word_chars if c4 else sys.maxsize,
        terminal=own.terminal_punctuation if c4 and c4.unterminated_lines_go else (),
        repeated_chars=config.min_repeated_chars if "repeated" in config.rules else 0,
        phrases=_probes([max(_ASCII.findall(word.encode()), key=len) for words in named.values() for word in words]),
        named=re.compile("|".join(groups), re.IGNORECASE) if groups else None,
    )


def _probes(parts: list[bytes]) -> tuple[bytes, ...]:
    """Return the fewest things to search for, so that each part has one in it: `cookie` for most of the policies."""
    shared = {word for part in parts for word in _LONG_WORD.findall(part)}
    probes: list[bytes] = []
    while parts:
        word = max(sorted(shared), key=lambda word: sum(word in part for part in parts), default=b"")
        covered = [part for part in parts if word in part]
        probes += [word] if len(covered) > 2 else parts
        parts = [part for part in parts if part not in covered] if len(covered) > 2 else []
    return tuple(probes)
