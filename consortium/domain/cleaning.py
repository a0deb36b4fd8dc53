"""The params of `clean`: its rules and their thresholds, as configs and legs both read them. Defaults are as published.

A share is a fraction from 0 to 1. What each rule measures stands in the module of `consortium.data` that applies it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from consortium.domain.bounds import FieldError, within

RuleSet = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]
LineRule = Literal["boilerplate", "repeated"]
PiiKind = Literal["secret", "email", "iban", "credit_card", "national_id", "ip", "phone"]
PII_STATES = (
    "ar", "at", "be", "bg", "br", "ca", "ch", "cl", "cz", "de", "dk", "ee", "es", "fi", "fr", "gb", "gr", "hr", "ie",
    "it", "lt", "lv", "mx", "nl", "no", "pl", "pt", "ro", "se", "si", "sk", "us", "uy",
)  # fmt: skip
"""States (ISO 3166 alpha-2, lower case) whose identifiers are known."""
MAX_NGRAM = 64
MAX_CHARS = 8_000_000
"""Of a document that stays: looking for near-duplicates takes 60 bytes per character, and a worker has a gigabyte."""
_MOST_MINIMA = 4096
LEAST_NGRAM_ACROSS, LEAST_ROWS_ACROSS, LEAST_WORDS_ACROSS, MOST_MINIMA_ACROSS = 5, 8, 50, 256
"""Of what sites tell each other with `across`, whoever submits: see `check_exchange`."""

_STRICT: dict[str, str] = {"extra": "forbid"}


class _Checked:
    """Thresholds are finite and not negative."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # its subclasses are dataclasses
            value = getattr(self, each.name)
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, bool | str) and not (math.isfinite(number) and number >= 0):
                    raise FieldError(f"{each.name} must be a finite number of at least 0, got {number:,}", each.name)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class NearConfig:
    """Words per n-gram, bands, minima per band, and the Jaccard similarity from which two texts are near-duplicates."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    ngram: int = 5
    bands: int = 14
    rows: int = 8
    threshold: float = 0.8

    def __post_init__(self) -> None:
        within(self, ngram=(1, MAX_NGRAM), bands=(1, 512), rows=(1, 64))
        if self.minima > _MOST_MINIMA:
            what = f"bands times rows must be at most {_MOST_MINIMA:,}, got {self.bands} times {self.rows}"
            raise FieldError(what, "bands", "rows")
        if not 0 < self.threshold <= 1:
            raise FieldError(f"threshold must be above 0 and at most 1, got {self.threshold}", "threshold")

    @property
    def minima(self) -> int:
        """Minima per document."""
        return self.bands * self.rows

    def chance(self, similarity: float) -> float:
        """Return the probability that two texts of this Jaccard similarity become candidates."""
        return 1 - (1 - similarity**self.rows) ** self.bands


@dataclass(frozen=True, slots=True, kw_only=True)
class DecontaminateConfig:
    """Words in a row that make a match; fewest words of a whole evaluation text; whether matching documents go."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    against: tuple[str, ...] = ()
    """Which of the job's inputs are evaluation sets: names, name@version or ids. They are read and not cleaned."""
    words: int = 13
    min_words: int = 8
    drop: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_words <= self.words <= MAX_NGRAM:
            raise FieldError(
                f"1 <= min_words <= words <= {MAX_NGRAM} must hold, got min_words {self.min_words}, words {self.words}",
                "min_words", "words",
            )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class PoisoningConfig(_Checked):
    """Thresholds of the screens; shares are of the contributor's documents. `cleared` contributors stay."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    burst_documents: int = 50
    burst_share: float = 0.05
    trigger_documents: int = 20
    trigger_share: float = 0.05
    outlier_sigmas: float = 6.0
    outlier_share: float = 0.05
    outlier_documents: int = 10
    divergence: float = 0.2
    min_documents: int = 20
    cleared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AcrossConfig:
    """Near-duplicates between the sites of one job: whose copies stay, in which order. An empty order: none is sought.

    `keeper`: the first partner in `order`, or who published first (`order` decides between equal or unknown dates).
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    order: tuple[str, ...] = ()
    """Partners."""
    keeper: Literal["order", "published"] = "order"
    min_words: int = 50
    """Shorter documents are not offered."""

    def __post_init__(self) -> None:
        if len(set(self.order)) != len(self.order):
            raise FieldError(f"across.order names partners, each once, got {list(self.order)}", "order")
        if self.min_words < 1:
            raise FieldError(f"across.min_words must be at least 1, got {self.min_words:,}", "min_words")


def check_exchange(near: NearConfig, across: AcrossConfig) -> None:
    """Raise FieldError where what sites tell each other under these settings would let its readers spell out texts.

    A partner in the exchange can sign any n-gram. One number per single n-gram (few words, few minima in a band) is
    looked up like a word in a dictionary; a band of several minima meets only what is alike as a whole. Many numbers
    per document, or few words in it, make the same possible by trying.
    """
    for key, value, least in (
        ("near.ngram", near.ngram, LEAST_NGRAM_ACROSS),
        ("near.rows", near.rows, LEAST_ROWS_ACROSS),
        ("across.min_words", across.min_words, LEAST_WORDS_ACROSS),
    ):
        if value < least:
            raise FieldError(
                f"{key} must be at least {least} between sites, or others could read words out of signatures,"
                f" got {value:,}",
                key, "across.order",
                fix=f"{key}={least}, or no across.order",
            )  # fmt: skip
    if near.minima > MOST_MINIMA_ACROSS:
        raise FieldError(
            f"near.bands times near.rows must be at most {MOST_MINIMA_ACROSS} between sites, or others could read words"
            f" out of signatures, got {near.bands} times {near.rows}",
            "near.bands", "near.rows", "across.order",
            fix="the defaults are 14 and 8",
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanConfig:
    """Params of `clean`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    languages: tuple[str, ...]
    """Codes to keep (ISO 639-1, or 639-3 where there is none); empty: those the dataset was registered with."""
    min_language_confidence: float
    min_chars: int
    max_chars: int
    dedup: Literal["near", "exact", "none"] = "exact"
    """`near` finds exact duplicates, too."""
    near: NearConfig = field(default_factory=NearConfig)
    redact: tuple[PiiKind, ...] = ()
    redact_states: tuple[str, ...] = ()
    """Whose identifiers and telephone layouts to know (ISO 3166 alpha-2, lower case); empty: all that are known."""
    repair: Literal["unicode", "none"] = "unicode"
    lines: tuple[LineRule, ...] = ()
    min_repeated_line_chars: int = 20
    filters: tuple[RuleSet, ...] = ()
    language_thresholds: bool = False
    """Where a language has thresholds of its own, they replace those below."""
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    c4: C4 = field(default_factory=C4)
    fineweb: FineWeb = field(default_factory=FineWeb)
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    quarantine: bool = False
    """Whether a contributor that a screen for poisoning finds is set aside."""
    poisoning: PoisoningConfig = field(default_factory=PoisoningConfig)
    across: AcrossConfig = field(default_factory=AcrossConfig)

    def __post_init__(self) -> None:
        within(self, min_language_confidence=(0, 1), min_chars=(0, 1_000_000))
        within(self, max_chars=(1, MAX_CHARS), min_repeated_line_chars=(1, 1_000_000))
        if self.min_chars > self.max_chars:
            what = f"min_chars ({self.min_chars:,}) must be at most max_chars ({self.max_chars:,})"
            raise FieldError(what, "min_chars", "max_chars")
        for index, language in enumerate(self.languages):
            if len(language) not in (2, 3) or not (language.isascii() and language.isalpha() and language.islower()):
                raise FieldError(
                    f"languages: {language!r} is not an ISO 639 code",
                    f"languages.{index}",
                    fix="two lower-case letters, such as fr for French; three for languages that have no such two",
                )
        unknown = sorted(set(self.redact_states) - set(PII_STATES))
        if unknown:
            raise FieldError(
                f"redact_states: nothing is known of {', '.join(unknown)}",
                "redact_states",
                fix=f"known are {', '.join(PII_STATES)}",
            )
        if self.across.order and self.dedup != "near":
            raise FieldError(
                f"across needs dedup near, which finds the near-duplicates at home first, got {self.dedup}",
                "dedup", "across.order",
                fix="dedup=near, or no across.order",
            )  # fmt: skip
        if self.across.order:
            check_exchange(self.near, self.across)
