"""What the text rules know of each language: one YAML file per language in this folder, named by its ISO 639-1 code.

To add a language, write `xx.yaml` here:

    name: Examplish
    stop_words: [the, of]            # frequent words in lower case, for `gopher.stop_words`
    terminal_punctuation: [".", "!"] # what a finished line ends in
    policy: [privacy policy]         # C4's rule: a line with one of these, in any case, goes
    boilerplate: [read more]         # a line of at most 120 characters with one of these goes
    thresholds:                      # optional: per rule set, what replaces its thresholds in this language
      gopher_quality: {max_mean_word_chars: 14}

A language without a file falls back to `und.yaml`: every language's punctuation, no phrases, and no stop words, so
that `gopher.stop_words` is not asked of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from typing import Any, TypeVar

import yaml

from consortium.data.documents import UNKNOWN
from consortium.domain.cleaning import FineWeb, GopherQuality, GopherRepetition
from consortium.errors import ConfigError

Thresholds = GopherQuality | GopherRepetition | FineWeb
_T = TypeVar("_T", GopherQuality, GopherRepetition, FineWeb)
_SETS: dict[str, type[Thresholds]] = {
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "fineweb": FineWeb,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """One language's words and signs. `thresholds` holds, per rule set, the thresholds that replace the config's."""

    code: str
    name: str
    stop_words: frozenset[str]
    terminal_punctuation: tuple[str, ...]
    policy: tuple[str, ...]
    boilerplate: tuple[str, ...]
    thresholds: dict[str, dict[str, Any]] = field(default_factory=dict)

    def adapt(self, thresholds: _T) -> _T:
        """Return `thresholds` with this language's own values in their place."""
        own = self.thresholds.get(next(name for name, kind in _SETS.items() if isinstance(thresholds, kind)), {})
        return replace(thresholds, **own)


@lru_cache(maxsize=1)
def described() -> tuple[str, ...]:
    """Return the languages that have a file of their own."""
    names = (entry.name for entry in resources.files(__name__).iterdir())
    return tuple(sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml") and n != f"{UNKNOWN}.yaml"))


@lru_cache(maxsize=256)
def language(code: str) -> Language:
    """Return the language called `code`, or the fallback. Raises ConfigError where its file says nonsense."""
    name = code if code in described() else UNKNOWN
    return read(code, (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8"))


def read(code: str, text: str) -> Language:
    """Return the language that a file's text describes. Raises ConfigError."""
    where = f"consortium/data/languages/{code}.yaml"
    try:
        data = yaml.safe_load(text)
        found = Language(
            code=code,
            name=data.pop("name"),
            stop_words=frozenset(_words(data.pop("stop_words"))),
            terminal_punctuation=_words(data.pop("terminal_punctuation")),
            policy=_words(data.pop("policy")),
            boilerplate=_words(data.pop("boilerplate")),
            thresholds={
                rules: {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
                for rules, own in data.pop("thresholds", {}).items()
            },
        )
        for rules, own in found.thresholds.items():
            _SETS[rules](**own)
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as fault:
        raise ConfigError(f"not a language's rules: {fault}", where=where, fix="write it like en.yaml") from fault
    if data:
        raise ConfigError(f"unknown keys {', '.join(sorted(data))}", where=where, fix="see its neighbours")
    return found


def _words(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"a list of quoted words is wanted, got {values!r}")
    return tuple(values)
