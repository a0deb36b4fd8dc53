"""All quality rules as one step: a text is split once, cheap rules come first, n-grams are weighed in batches.

A document is removed by the first rule it breaks, in this order, whatever the order in the config: Gopher's quality,
C4, FineWeb, Gopher's repeated paragraphs and lines, Gopher's n-grams. The rules change nothing, so which documents
stay does not depend on the order; only under which rule one goes does.

To add a rule: a function of `Parts` and a `Rule` in one of the rule sets, its threshold in `domain.cleaning`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from consortium.data import gopher, languages, ngrams, web
from consortium.data.documents import Document, Notes, Outcome
from consortium.data.parts import Parts, counted
from consortium.data.rules import Rule, judge
from consortium.data.tape import batches
from consortium.domain.cleaning import C4, FineWeb, GopherQuality, GopherRepetition, RuleSet

_BATCH_WORDS = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
    """Which rule sets are asked, and their thresholds; `language_thresholds` puts a language's own in their place."""

    filters: tuple[RuleSet, ...]
    language_thresholds: bool = False
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    c4: C4 = field(default_factory=C4)
    fineweb: FineWeb = field(default_factory=FineWeb)


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesOf:
    """The rules for one language: those on one document, those on n-grams and the thresholds of these."""

    single: tuple[Rule, ...]
    ngrams: tuple[Rule, ...]
    repetition: GopherRepetition


@lru_cache(maxsize=512)
def rules_of(config: QualityConfig, code: str) -> RulesOf:
    """Return the rules for documents in the language `code`."""
    language = languages.language(code)
    sets = config.gopher_quality, config.gopher_repetition, config.fineweb
    if config.language_thresholds:
        sets = language.adapt(sets[0]), language.adapt(sets[1]), language.adapt(sets[2])
    quality, repetition, fineweb = sets
    asked = config.filters
    return RulesOf(
        single=(
            *(gopher.quality(quality, language) if "gopher_quality" in asked else ()),
            *(web.c4(config.c4) if "c4" in asked else ()),
            *(web.fineweb(fineweb, language) if "fineweb" in asked else ()),
            *(gopher.repetition(repetition) if "gopher_repetition" in asked else ()),
        ),
        ngrams=gopher.ngrams(repetition) if "gopher_repetition" in asked else (),
        repetition=repetition,
    )


class Quality:
    """The step. Holds back at most `_BATCH_WORDS` words and one document; what stays comes out in its order."""

    def __init__(self, config: QualityConfig) -> None:
        self.config = config

    def __call__(self, documents: Iterable[Document], notes: Notes) -> Iterator[Document]:
        """Yield the documents that break no rule."""
        waiting: list[tuple[Document, Parts, RulesOf]] = []
        words = 0
        known: dict[str, RulesOf] = {}
        for batch in batches(documents):
            for document, counts in zip(batch, counted([document.text for document in batch]), strict=True):
                rules = known.get(document.language) or known.setdefault(
                    document.language, rules_of(self.config, document.language)
                )
                parts = Parts(document.text, counts)
                outcome = judge(rules.single, parts)
                if outcome is not None:
                    notes.remove(document, outcome)
                elif not rules.ngrams:
                    yield document
                else:
                    if waiting and words + counts.number > _BATCH_WORDS:
                        yield from self._weigh(waiting, notes)
                        waiting, words = [], 0
                    waiting.append((document, parts, rules))
                    words += counts.number
        yield from self._weigh(waiting, notes)

    def _weigh(self, waiting: list[tuple[Document, Parts, RulesOf]], notes: Notes) -> Iterator[Document]:
        suspected = ngrams.suspects(
            [parts.words for _, parts, _ in waiting],
            [parts.chars for _, parts, _ in waiting],
            [rules.repetition for _, _, rules in waiting],
        )
        for (document, parts, rules), suspect in zip(waiting, suspected, strict=True):
            outcome: Outcome | None = None
            if any(suspect):
                outcome = judge([rule for rule, asked in zip(rules.ngrams, suspect, strict=True) if asked], parts)
            if outcome is None:
                yield document
            else:
                notes.remove(document, outcome)


EVERY_RULE: tuple[RuleSet, ...] = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
