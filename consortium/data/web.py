"""The rules of C4 and FineWeb that look at a whole document; C4's rules on lines are edits and stand in `lines`.

C4: Raffel et al. 2020, JMLR 21(140), section 2.2. FineWeb: Penedo et al. 2024, arXiv:2406.17557, section 3.6.

| rule                           | drops a document                                                                  |
|--------------------------------|-----------------------------------------------------------------------------------|
| `c4.lorem_ipsum`               | that contains "lorem ipsum"                                                       |
| `c4.curly_bracket`             | that contains `{`                                                                 |
| `c4.min_sentences`             | with too few sentences                                                            |
| `fineweb.terminal_lines`       | with too small a share of lines that end in terminal punctuation                  |
| `fineweb.short_lines`          | with too large a share of lines of at most `short_line_chars` characters          |
| `fineweb.duplicate_line_chars` | with too large a share of its characters in lines that repeat an earlier one      |
| `fineweb.newlines`             | with too many newlines per word                                                   |
"""

from __future__ import annotations

import re
from collections.abc import Callable

from consortium.data.languages import Language
from consortium.data.parts import Parts, duplicates
from consortium.data.rules import Rule
from consortium.domain.cleaning import C4, FineWeb

SENTENCE_BREAK = re.compile(r"""[.!?…。！？؟۔।॥።։]["'»”’)\]]*[ \t\u00a0]+(?![a-zß-öø-ÿ\d\s])""")  # noqa: RUF001  signs of all scripts
"""Inside a line: terminal punctuation, closing signs, blanks, and no small letter or digit after them."""
_LOREM_IPSUM = "lorem ipsum"


def c4(limits: C4) -> tuple[Rule, ...]:
    """Return C4's rules on documents."""
    return (
        Rule("c4.lorem_ipsum", _lorem_ipsum, 0),
        Rule("c4.curly_bracket", lambda parts: parts.text.count("{"), 0),
        Rule("c4.min_sentences", _sentences, limits.min_sentences, True, bound=lambda parts: len(parts.full_lines)),
    )


def fineweb(limits: FineWeb, language: Language) -> tuple[Rule, ...]:
    """Return FineWeb's rules."""
    return (
        Rule("fineweb.terminal_lines", _terminal(language.terminal_punctuation), limits.min_terminal_lines, True),
        Rule("fineweb.short_lines", _short(limits.short_line_chars), limits.max_short_lines),
        Rule("fineweb.duplicate_line_chars", _duplicate_line_chars, limits.max_duplicate_line_chars),
        Rule("fineweb.newlines", _newlines, limits.max_newlines_per_word),
    )


def _sentences(parts: Parts) -> int:
    """Count the sentences in lines that are not blank; a line ends a sentence, and a blank one can hold no break."""
    text = parts.text if parts.text[-1:].strip() else "\n".join(parts.full_lines)
    return len(parts.full_lines) + len(SENTENCE_BREAK.findall(text))


def _lorem_ipsum(parts: Parts) -> int:
    if "psum" not in parts.text and "PSUM" not in parts.text:
        return 0  # lower case of the whole text costs more than all that is asked of it
    return parts.text.lower().count(_LOREM_IPSUM)


def _terminal(signs: tuple[str, ...]) -> Callable[[Parts], float]:
    return lambda parts: len([1 for line in parts.full_lines if line.endswith(signs)]) / (len(parts.full_lines) or 1)


def _short(chars: int) -> Callable[[Parts], float]:
    return lambda parts: len([1 for line in parts.full_lines if len(line) <= chars]) / (len(parts.full_lines) or 1)


def _duplicate_line_chars(parts: Parts) -> float:
    return duplicates(parts.full_lines)[1] / ((len(parts.text) - parts.text.count("\n")) or 1)


def _newlines(parts: Parts) -> float:
    return parts.text.count("\n") / (parts.counts.number or 1)
