"""The steps of cleaning. A step is a generator from documents to documents; what it drops or changes it notes.

| rule                  | drops or changes                                                                  |
|-----------------------|-----------------------------------------------------------------------------------|
| `length.min`          | fewer characters than `min_chars`, white space at the ends not counted            |
| `length.max`          | more characters than `max_chars`                                                  |
| `language.none`       | no letters in the part that is looked at                                          |
| `language.other`      | the most probable language is not among `languages`                               |
| `language.confidence` | its probability is below `min_confidence`                                         |

Edits (`edited`) come first and judges (`chain`) last, so that a cleaned document is judged as it will stand: cleaning a
clean dataset drops nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from consortium.data.documents import KEEP, Document, Notes, Outcome
from consortium.data.language import BATCH, identifier

Step = Callable[[Iterable[Document], Notes], Iterator[Document]]

CONTRAST = ("de", "en", "es", "fr", "it", "nl", "pt")
"""Languages that a document may turn out to be in, besides the wanted ones: what our collections really contain."""
_LOOK_AT_CHARS = 300
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_MARKS = "".join(char for char in map(chr, range(0x300, 0x20000)) if unicodedata.category(char)[0] == "M")
_MAY_HAVE_MARKS = re.compile("[\u0300-\u036f\u0483-\u1fff\u20d0-\u20ff\u2c00-\U0001ffff]")
"""Not in texts in Latin, Greek and Cyrillic letters, which need a fraction of the time so."""
_MARKED = re.compile(rf"(?:[^\W\d_][{_MARKS}\u200c\u200d]*)+")
"""Letters with the marks on them, which in Indic scripts are the vowels, and with the joiners between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthConfig:
    """Bounds on a document's characters, both included."""

    min_chars: int
    max_chars: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageConfig:
    """Languages (ISO 639-1) a document may be in, and how sure the model must be (0 to 1)."""

    languages: tuple[str, ...]
    min_confidence: float


def length(config: LengthConfig) -> Step:
    """Drop documents that are too short or too long."""

    def judge(document: Document) -> Outcome:
        chars = len(document.text.strip())
        if chars < config.min_chars:
            return Outcome(False, "length.min", str(chars), str(config.min_chars))
        if chars > config.max_chars:
            return Outcome(False, "length.max", str(chars), str(config.max_chars))
        return KEEP

    return _filter(judge)


def language(config: LanguageConfig) -> Step:
    """Drop documents in other languages; those that stay carry the language found.

    The model is py3langid's naive Bayes over byte n-grams, restricted to `config.languages` and `CONTRAST`, on the
    first 300 characters without markup and digits, in lower case: upper-case headings of laws would else look foreign.
    """
    wanted = frozenset(config.languages)
    identify = identifier(tuple(sorted(wanted | set(CONTRAST))))
    wants, threshold = ",".join(sorted(wanted)), f"{config.min_confidence:g}"

    def run(documents: Iterable[Document], notes: Notes) -> Iterator[Document]:
        left = iter(documents)
        while held := list(islice(left, BATCH)):
            letters = [_letters(document.text[:_LOOK_AT_CHARS]) for document in held]
            for document, looked_at, (found, confidence) in zip(held, letters, identify(letters), strict=True):
                if not looked_at:
                    notes.remove(document, Outcome(False, "language.none", "0", "1"))
                elif found not in wanted:
                    notes.remove(document, Outcome(False, "language.other", f"{found} {confidence:.3f}", wants))
                elif confidence < config.min_confidence:
                    notes.remove(document, Outcome(False, "language.confidence", f"{confidence:.3f}", threshold))
                else:
                    yield document if document.language == found else replace(document, language=found)

    return run


def _letters(text: str) -> str:
    """Return the words of a text in lower case."""
    if _MAY_HAVE_MARKS.search(text) is None:
        return _NOT_LETTERS.sub(" ", text).strip().lower()
    return " ".join(_MARKED.findall(text)).lower()


def chain(steps: Sequence[Step], documents: Iterable[Document], notes: Notes) -> Iterator[Document]:
    """Run documents through the steps; a step holds back no more than it looks at together."""
    stream: Iterable[Document] = documents
    for step in steps:
        stream = step(stream, notes)
    yield from stream


MAX_ROUNDS = 5


def edited(steps: Sequence[Step], documents: Iterable[Document], notes: Notes) -> list[Document]:
    """Run documents through steps that change and never drop, again where something changed, until nothing does.

    Each step must find nothing more to do in its own output. What it leaves may call for another step, though: a cut
    may bring two lines together that look like a telephone number. So a document goes again through the steps before
    the last one that changed it, and a second run over the output finds nothing to do. Spans of a later round count
    characters of what the earlier one left.
    """
    result = list(documents)
    again = {at: len(steps) for at in range(len(result))}
    for turns in range(MAX_ROUNDS):
        changed: dict[int, int] = {}
        for number, step in enumerate(steps):
            turn = [at for at, until in again.items() if number < until]
            after = list(step([result[at] for at in turn], notes))
            for at, document in zip(turn, after, strict=True):
                if document.text != result[at].text:
                    changed[at] = len(steps) if turns else number
                result[at] = document
        again = changed
        if not any(again.values()):
            break
    return result


def _filter(judge: Callable[[Document], Outcome]) -> Step:
    def run(documents: Iterable[Document], notes: Notes) -> Iterator[Document]:
        for document in documents:
            outcome = judge(document)
            if outcome.keep:
                yield document
            else:
                notes.remove(document, outcome)

    return run
