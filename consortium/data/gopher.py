"""Gopher's rules: Rae et al. 2021, arXiv:2112.11446, appendix A1.1. A share is of 1; characters are of the whole text.

| rule                                   | drops a document whose                                                    |
|----------------------------------------|---------------------------------------------------------------------------|
| `gopher.min_words`, `gopher.max_words` | words (not counting signs) are too few, too many                          |
| `gopher.min_mean_word_chars`, `max_`   | words are too short, too long on average                                  |
| `gopher.hashes`, `gopher.ellipses`     | `#`, or `...` and `…`, are too many per word                              |
| `gopher.bullet_lines`                  | lines begin with `•` or `-` too often                                     |
| `gopher.ellipsis_lines`                | lines end in an ellipsis too often                                        |
| `gopher.alpha_words`                   | words have a letter too seldom                                            |
| `gopher.stop_words`                    | different stop words are too few; not asked where the language has none   |
| `repetition.duplicate_lines`           | lines repeat earlier ones too often; `_line_chars`: too much text         |
| `repetition.duplicate_paragraphs`      | the same of paragraphs; `_paragraph_chars`                                |
| `repetition.top_N_gram`, N 2 to 4      | most frequent N words in a row hold too much of the text                  |
| `repetition.duplicate_N_gram`, 5 to 10 | N words in a row that stood before hold too much of the text              |
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from consortium.data.languages import Language
from consortium.data.parts import Parts, duplicate_ngram_chars, top_ngram_chars
from consortium.data.rules import Rule
from consortium.domain.cleaning import GopherQuality, GopherRepetition

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)
_BEGINNING_CHARS = 200
"""Enough to meet two stop words in most texts."""


def quality(limits: GopherQuality, language: Language) -> tuple[Rule, ...]:
    """Return the quality rules; cheap ones first."""
    measure, bound = _stop_words(language.stop_words)
    stop_words = (Rule("gopher.stop_words", measure, limits.min_stop_words, True, bound),)
    return (
        Rule("gopher.min_words", lambda parts: parts.real_words, limits.min_words, True),
        Rule("gopher.max_words", lambda parts: parts.real_words, limits.max_words),
        Rule("gopher.min_mean_word_chars", lambda parts: parts.mean_word_chars, limits.min_mean_word_chars, True),
        Rule("gopher.max_mean_word_chars", lambda parts: parts.mean_word_chars, limits.max_mean_word_chars),
        Rule("gopher.hashes", _hashes, limits.max_symbols_per_word),
        Rule("gopher.ellipses", _ellipses, limits.max_symbols_per_word),
        Rule("gopher.bullet_lines", _bullet_lines, limits.max_bullet_lines, bound=_bullets_per_line),
        Rule("gopher.ellipsis_lines", _ellipsis_lines, limits.max_ellipsis_lines),
        Rule("gopher.alpha_words", _alpha_words, limits.min_alpha_words, True),
        *(stop_words if language.stop_words else ()),
    )


def repetition(limits: GopherRepetition) -> tuple[Rule, ...]:
    """Return the rules on repeated lines and paragraphs."""
    return (
        Rule(
            "repetition.duplicate_paragraphs",
            lambda parts: parts.paragraph_duplicates[0],
            limits.max_duplicate_paragraphs,
        ),
        Rule(
            "repetition.duplicate_paragraph_chars",
            lambda parts: parts.paragraph_duplicates[1] / parts.chars,
            limits.max_duplicate_paragraph_chars,
        ),
        Rule("repetition.duplicate_lines", lambda parts: parts.line_duplicates[0], limits.max_duplicate_lines),
        Rule(
            "repetition.duplicate_line_chars",
            lambda parts: parts.line_duplicates[1] / parts.chars,
            limits.max_duplicate_line_chars,
        ),
    )


def ngrams(limits: GopherRepetition) -> tuple[Rule, ...]:
    """Return the rules on repeated n-grams: `TOP_NGRAMS`, then `DUPLICATE_NGRAMS`. They cost most; see `ngrams`."""
    return (
        *(
            Rule(f"repetition.top_{n}_gram", partial(top_ngram_share, n=n), limit)
            for n, limit in zip(TOP_NGRAMS, limits.max_top_ngram_chars, strict=True)
        ),
        *(
            Rule(f"repetition.duplicate_{n}_gram", partial(duplicate_ngram_share, n=n), limit)
            for n, limit in zip(DUPLICATE_NGRAMS, limits.max_duplicate_ngram_chars, strict=True)
        ),
    )


def top_ngram_share(parts: Parts, n: int) -> float:
    """Return the share of the text's characters that its most frequent n-gram holds."""
    return top_ngram_chars(parts.words, n) / parts.chars


def duplicate_ngram_share(parts: Parts, n: int) -> float:
    """Return the share of the text's characters in n-grams that stood before."""
    return duplicate_ngram_chars(parts.words, n) / parts.chars


def _stop_words(stop_words: frozenset[str]) -> tuple[Callable[[Parts], int], Callable[[Parts], int]]:
    """Return how many there are, and how many at the text's beginning, whose last word may be cut in two."""
    return (
        lambda parts: len(stop_words.intersection(parts.words)),
        lambda parts: len(stop_words.intersection(parts.text[:_BEGINNING_CHARS].split()[:-1])),
    )


def _hashes(parts: Parts) -> float:
    return parts.text.count("#") / (parts.counts.number or 1)


def _ellipses(parts: Parts) -> float:
    return (parts.text.count("...") + parts.text.count("…")) / (parts.counts.number or 1)


def _bullets_per_line(parts: Parts) -> float:
    return (parts.text.count("-") + parts.text.count("•")) / (parts.text.count("\n") or 1)


def _bullet_lines(parts: Parts) -> float:
    lines = parts.lines
    return len([1 for line in lines if line.lstrip().startswith(("•", "-"))]) / len(lines)


def _ellipsis_lines(parts: Parts) -> float:
    if "..." not in parts.text and "…" not in parts.text:
        return 0.0
    lines = parts.lines
    return len([1 for line in lines if line.rstrip().endswith(("...", "…"))]) / len(lines)


def _alpha_words(parts: Parts) -> float:
    return parts.counts.alpha / (parts.counts.number or 1)
