"""Counts that add up: every document that goes in comes out or is removed by exactly one rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from consortium.errors import VerificationError

ByLanguage = dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Documents in and out, by the language their collector declared; removals by rule; edits by rule; characters."""

    documents_in: ByLanguage
    documents_out: ByLanguage
    removed: dict[str, ByLanguage]
    edits: dict[str, int] = field(default_factory=dict)
    chars_in: int = 0
    chars_out: int = 0

    @property
    def total_in(self) -> int:
        """All documents that came in."""
        return sum(self.documents_in.values())

    @property
    def total_out(self) -> int:
        """All documents that stay."""
        return sum(self.documents_out.values())

    def removed_by(self, rule: str) -> int:
        """Documents removed by a rule, over all languages."""
        return sum(self.removed.get(rule, {}).values())

    def check(self) -> Counts:
        """Return self; raises VerificationError unless, in every language, in = out + removed."""
        for language in sorted({*self.documents_in, *self.documents_out}):
            gone = sum(by_language.get(language, 0) for by_language in self.removed.values())
            came, stays = self.documents_in.get(language, 0), self.documents_out.get(language, 0)
            if came != stays + gone:
                raise VerificationError(
                    f"counts of {language} do not add up: {came} in, {stays} out, {gone} removed",
                    fix="this is a fault of the program; keep the store as it is and report it",
                )
        return self


def total(parts: Iterable[Counts]) -> Counts:
    """Return the sum of counts."""
    come: ByLanguage = {}
    stay: ByLanguage = {}
    removed: dict[str, ByLanguage] = {}
    edits: dict[str, int] = {}
    chars_in = chars_out = 0
    for part in parts:
        _add(come, part.documents_in)
        _add(stay, part.documents_out)
        _add(edits, part.edits)
        for rule, by_language in part.removed.items():
            _add(removed.setdefault(rule, {}), by_language)
        chars_in, chars_out = chars_in + part.chars_in, chars_out + part.chars_out
    return Counts(
        documents_in=_sorted(come),
        documents_out=_sorted(stay),
        removed={rule: _sorted(removed[rule]) for rule in sorted(removed)},
        edits=_sorted(edits),
        chars_in=chars_in,
        chars_out=chars_out,
    )


def _add(to: dict[str, int], more: dict[str, int]) -> None:
    for name, count in more.items():
        to[name] = to.get(name, 0) + count


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return {name: counts[name] for name in sorted(counts)}
