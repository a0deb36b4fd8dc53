"""What a quality rule is: something measured in a text, and a bound on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from consortium.data.documents import Outcome
from consortium.data.parts import Parts


class Rule(NamedTuple):
    """A document goes where `measure` is below `limit` (where `least`) or above it.

    `bound` costs less and is never above `measure` (where `least`) or never below it: where it breaks no rule,
    `measure` is not asked.
    """

    name: str
    measure: Callable[[Parts], float]
    limit: float
    least: bool = False
    bound: Callable[[Parts], float] | None = None

    def breaks(self, value: float) -> bool:
        """Tell whether a document with this value goes."""
        return value < self.limit if self.least else value > self.limit

    def removal(self, value: float) -> Outcome:
        """Return the outcome for a document that goes."""
        return Outcome(False, self.name, shown(value), shown(self.limit))


def judge(rules: Sequence[Rule], parts: Parts) -> Outcome | None:
    """Return why the document goes: the first rule it breaks, or None where it stays."""
    for rule in rules:
        if rule.bound is not None and not rule.breaks(rule.bound(parts)):
            continue
        value = rule.measure(parts)
        if value < rule.limit if rule.least else value > rule.limit:
            return rule.removal(value)
    return None


def shown(value: float) -> str:
    """Return a value as annotations have it: whole numbers as they are, others to six digits."""
    return str(value) if isinstance(value, int) else f"{value:.6g}"
