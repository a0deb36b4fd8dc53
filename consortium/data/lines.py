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
from dataclasses import dataclass, replace

from consortium.data import languages
from consortium.data.documents import Document, Notes
from consortium.domain.cleaning import C4, LineRule

CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
BOILERPLATE_CHARS = 120
_ASCII = re.compile(rb"[\x00-\x7f]*")
_GAP = re.compile(r"\n(?:[^\S\n]*\n){2,}")

Cut = tuple[str, int, int]
"""A rule, and the characters it takes out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinesConfig:
    """Which line rules are asked: C4's where `c4` is set, and those of `rules`."""

    c4: C4 | None
    rules: tuple[LineRule, ...]
    min_repeated_chars: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What one language's lines are asked. `named` finds phrases, by rule; `phrases` are their longest ASCII parts."""

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

    def clear(self, lines: list[str]) -> bool:
        """Tell whether no line goes for its words, its end or its like; False where that takes a closer look."""
        if self.terminal or any(self.long_word(line) for line in lines if len(line) > self.word_chars):
            return False
        if self.few_words:
            words = self.few_words
            short = [line for line in lines if line and len(line.split(None, words)) < words]
            if short and not all(map(str.isspace, short)):
                return False
        if self.repeated_chars:
            long = [line for line in lines if len(line) >= self.repeated_chars]
            if len(long) > 1 and len(set(map(str.strip, long))) < len(long):
                return False
        return True

    def long_word(self, line: str) -> bool:
        """Tell whether a line has a word that is too long."""
        return len(line) > self.word_chars and max(map(len, line.split()), default=0) > self.word_chars

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
        for document in documents:
            if self.config.c4 is not None and "[" in document.text:
                document = _without_citations(document, notes)
            asked = known.get(document.language) or known.setdefault(
                document.language, _asked(self.config, document.language)
            )
            lines = document.text.split("\n")
            risky = asked.risky(document.text)
            if risky or not asked.clear(lines):
                cuts, kept = _cut(asked, lines, len(document.text), risky)
                for rule, start, end in cuts:
                    notes.edit(document, rule, "", start, end)
                if cuts:
                    document = replace(document, text=_GAP.sub("\n\n", "\n".join(kept)).strip("\n"))
            yield document


def _cut(asked: _Asked, lines: list[str], chars: int, risky: bool) -> tuple[list[Cut], list[str]]:
    """Return what goes, the newline behind it included, and the lines that stay."""
    cuts: list[Cut] = []
    kept: list[str] = []
    seen: set[str] = set()
    at = 0
    for line in lines:
        bare = line.strip()
        rule = asked.rule(bare, seen, risky) if bare else ""
        if rule:
            cuts.append((rule, at, min(at + len(line) + 1, chars)))
        else:
            kept.append(line)
        at += len(line) + 1
    return cuts, kept


def _without_citations(document: Document, notes: Notes) -> Document:
    while spans := [match.span() for match in CITATION.finditer(document.text)]:
        for start, end in spans:
            notes.edit(document, "c4.citation", "", start, end)
        document = replace(document, text=CITATION.sub("", document.text))
    return document


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
        phrases=tuple(max(_ASCII.findall(word.encode()), key=len) for words in named.values() for word in words),
        named=re.compile("|".join(groups), re.IGNORECASE) if groups else None,
    )
