"""The quality rules of `clean` and their thresholds, as configs and legs both read them. Defaults are as published.

A share is a fraction from 0 to 1. What each rule measures stands in `consortium.data.gopher` and `consortium.data.web`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

RuleSet = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]
LineRule = Literal["boilerplate", "repeated"]

_STRICT: dict[str, str] = {"extra": "forbid"}


class _Checked:
    """Thresholds are finite and not negative."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # its subclasses are dataclasses
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, bool) and not (math.isfinite(number) and number >= 0):
                    raise ValueError(f"{field.name} must be a finite number of at least 0, got {number:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GopherQuality(_Checked):
    """Rae et al. 2021, arXiv:2112.11446, appendix A1.1, quality filtering."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_chars: float = 3
    max_mean_word_chars: float = 10
    max_symbols_per_word: float = 0.1
    """For `#`, and for ellipses."""
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alpha_words: float = 0.8
    """Share of the words with at least one letter."""
    min_stop_words: int = 2
    """Different ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GopherRepetition(_Checked):
    """Rae et al. 2021, arXiv:2112.11446, table A1."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    max_duplicate_lines: float = 0.3
    max_duplicate_paragraphs: float = 0.3
    max_duplicate_line_chars: float = 0.2
    max_duplicate_paragraph_chars: float = 0.2
    max_top_ngram_chars: tuple[float, float, float] = (0.2, 0.18, 0.16)
    """For 2, 3 and 4 words."""
    max_duplicate_ngram_chars: tuple[float, float, float, float, float, float] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)
    """For 5 to 10 words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class C4(_Checked):
    """Raffel et al. 2020, JMLR 21(140), section 2.2. All but the terminal punctuation is on, as in FineWeb."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    min_sentences: int = 5
    min_line_words: int = 3
    """Lines with fewer go."""
    max_word_chars: int = 1000
    """Lines with a longer word go."""
    unterminated_lines_go: bool = False
    """Lines that end in no terminal punctuation go. C4 did so; FineWeb (arXiv:2406.17557, 3.5) did not: it cost 30%."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FineWeb(_Checked):
    """Penedo et al. 2024, arXiv:2406.17557, section 3.6."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    min_terminal_lines: float = 0.12
    max_short_lines: float = 0.67
    short_line_chars: int = 30
    max_duplicate_line_chars: float = 0.01
    max_newlines_per_word: float = 0.3
