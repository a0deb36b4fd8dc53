"""Which language a text is in: py3langid's model, asked about many texts at once.

The model is naive Bayes over byte n-grams that one automaton finds. py3langid walks it text by text in Python; here
every step moves a thousand texts by one byte, which gives the same features and counts and takes a tenth of the time.
Scores are summed in one order in double precision, so they are the same on every machine; beside py3langid's own they
differ in the sixth place.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from consortium.data.documents import UNKNOWN
from consortium.data.languages import described
from consortium.errors import UsageError

BATCH = 1024
"""Texts that are asked about together, at the most: some 30 MB for passages of 300 characters."""

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
_TAG = re.compile(r"([A-Za-z]{2,3})([-_][A-Za-z0-9]{2,8}){0,3}")
"""A language tag as BCP 47 has it, roughly; anything else is none, and would leave home with a description."""
_OF_THE_MODEL = {"bik": "bcl", "fil": "tl", "gn": "gug", "ki": "kik", "kok": "gom", "nb": "no"}
"""What the model calls otherwise than CLDR."""


@lru_cache(maxsize=4096)
def code_of(tag: str) -> str:
    """Return the language that a tag names, as the model calls it: `fr` for FR, fr-CA, fr_CA, fra and fre.

    ISO 639-1 where it has one, else ISO 639-3, whether the model knows it or not; `und` for what is no tag. Script and
    region are passed over. Older and longer codes are those of Unicode's CLDR.
    """
    found = _TAG.fullmatch(tag.strip())
    if found is None:
        return UNKNOWN
    from babel.core import get_global

    name = found[1].lower()
    name = str(get_global("language_aliases").get(name, name)).partition("_")[0]
    return _OF_THE_MODEL.get(name, name)


def codes_of(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the languages that a person names, sorted. Raises UsageError for what is no language tag."""
    codes = {tag: code_of(tag) for tag in tags}
    wrong = sorted(tag for tag, code in codes.items() if code == UNKNOWN)
    if wrong:
        raise UsageError(
            f"no language tag: {', '.join(map(repr, wrong))}", where="languages", fix="ISO 639-1, such as fr for French"
        )
    return tuple(sorted(set(codes.values())))


@lru_cache(maxsize=1)
def known_languages() -> frozenset[str]:
    """Return the languages the model knows: ISO 639-1, and ISO 639-3 for those that have no such code."""
    return frozenset(_model().labels)


def unknown_among(codes: Iterable[str]) -> list[str]:
    """Return those that the model does not know, sorted; it is loaded only where one has no rules of its own."""
    rest = set(codes) - set(described())
    return sorted(rest - known_languages()) if rest else []


@lru_cache(maxsize=8)
def identifier(languages: tuple[str, ...]) -> Identifier:
    """Return the identifier that chooses among `languages`."""
    return Identifier(languages)


class Identifier:
    """Chooses among some of the model's languages."""

    def __init__(self, languages: Sequence[str]) -> None:
        model = _model()
        wanted = frozenset(languages)
        columns = [column for column, label in enumerate(model.nb_classes) if label in wanted]
        self.labels = sorted({model.nb_classes[column] for column in columns})
        self._label_of = [self.labels.index(model.nb_classes[column]) for column in columns]
        self._table = np.ascontiguousarray(model.nb_ptc[:, columns].T, dtype=np.float64)
        self._prior = model.nb_pc[columns].astype(np.float64)

    def __call__(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """Return each text's most probable language and its probability among those asked; at most `BATCH` texts.

        A text without any known n-gram gets the first language, with the probability of a mere guess.
        """
        data = [unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass") for text in texts]
        lengths = np.array([len(each) for each in data], dtype=np.int64)
        scores = self._scores(_features(data, lengths), len(data))
        scores /= np.sqrt(np.maximum(lengths, 1))[:, None]  # keeps probabilities comparable across lengths
        scores -= scores.max(axis=1, keepdims=True)
        np.exp(scores, out=scores)
        chances = np.zeros((len(data), len(self.labels)))
        for column, label in enumerate(self._label_of):  # a language in two scripts has two columns
            chances[:, label] += scores[:, column]
        chances /= chances.sum(axis=1, keepdims=True)
        best = chances.argmax(axis=1)
        return [
            (self.labels[at], chance) for at, chance in zip(best.tolist(), chances.max(axis=1).tolist(), strict=True)
        ]

    def _scores(self, found: tuple[I64, I64, I64], texts: int) -> F64:
        """Return scores [texts, columns] from features, each with its text and how often it stands there."""
        owner, feature, times = found
        weights = np.log1p(times)
        scores = np.empty((texts, len(self._prior)))
        for column, line in enumerate(self._table):
            scores[:, column] = np.bincount(owner, weights * line[feature], minlength=texts)
        some = np.bincount(owner, minlength=texts) > 0
        scores[some] += self._prior
        return scores


def _features(data: Sequence[bytes], lengths: I64) -> tuple[I64, I64, I64]:
    """Return the features that stand in texts: whose, which, how often. In the texts' order, then by number."""
    moves, rows, outputs = _automaton()
    order = np.argsort(-lengths, kind="stable")
    width = int(lengths.max(initial=0))
    bytes_at = np.zeros((width, len(data)), dtype=np.uint8)  # by place, so that a step reads what lies together
    for column, text in enumerate(order.tolist()):
        bytes_at[: len(data[text]), column] = np.frombuffer(data[text], dtype=np.uint8)
    alive = np.searchsorted(-lengths[order], -np.arange(width), side="left")
    state = np.zeros(len(data), dtype=np.uint32)
    seen = np.full((len(data), width), -1, dtype=np.int32)
    for step, count in enumerate(alive.tolist()):
        state = moves[(rows[state[:count]] << 8) + bytes_at[step, :count]]
        seen[:count, step] = outputs[state]
    seen.sort(axis=1)
    begins = seen >= 0
    begins[:, 1:] &= seen[:, 1:] != seen[:, :-1]
    at = np.flatnonzero(begins.ravel())
    place = at // max(width, 1)
    times = np.minimum(np.append(at[1:], len(data) * width), (place + 1) * width) - at  # to the next, or the row's end
    return order[place], seen.ravel()[at].astype(np.int64), times


@lru_cache(maxsize=1)
def _automaton() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32], npt.NDArray[np.int32]]:
    """Return the next state by row and byte, the row of each state, and the feature a state ends (or -1)."""
    model = _model()
    return (
        np.frombuffer(model.tk_nextmove, dtype=np.uint32),
        np.array(model.tk_row, dtype=np.uint32),
        np.array(model.tk_output, dtype=np.int32),
    )


@lru_cache(maxsize=1)
def _model() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
