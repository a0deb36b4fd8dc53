"""Cleaning of one shard, purely: from its table to what stays, what goes and why.

Two passes, because duplicates are only known when all shards have been screened. `screen` runs the rules that look at
one document; `settle` drops the duplicates that the whole dataset's keys showed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consortium.data import dedup, steps
from consortium.data.counts import Counts
from consortium.data.documents import Annotation, Document, Notes, annotation_table, from_table, to_columns
from consortium.data.lines import Lines, LinesConfig
from consortium.data.quality import Quality, QualityConfig
from consortium.data.repair import repair
from consortium.data.steps import LanguageConfig, LengthConfig, Step, known_languages
from consortium.domain.cleaning import C4, FineWeb, GopherQuality, GopherRepetition, LineRule, RuleSet
from consortium.errors import ConfigError
from consortium.storage.shards import TEXT_SCHEMA

CANDIDATE_SCHEMA = TEXT_SCHEMA.append(pa.field("declared", pa.string())).append(pa.field("row", pa.int64()))


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanConfig:
    """Rules of the `clean` job; the same names as its params. Empty `languages` means the dataset's own."""

    languages: tuple[str, ...]
    min_language_confidence: float
    min_chars: int
    max_chars: int
    dedup: Literal["exact", "none"] = "exact"
    redact: tuple[Literal["email"], ...] = ("email",)
    repair: Literal["unicode", "none"] = "unicode"
    lines: tuple[LineRule, ...] = ()
    min_repeated_line_chars: int = 20
    filters: tuple[RuleSet, ...] = ()
    language_thresholds: bool = False
    gopher_quality: GopherQuality = field(default_factory=GopherQuality)
    gopher_repetition: GopherRepetition = field(default_factory=GopherRepetition)
    c4: C4 = field(default_factory=C4)
    fineweb: FineWeb = field(default_factory=FineWeb)

    def edits(self) -> tuple[Step, ...]:
        """Return the steps that change documents and drop none, in order."""
        c4 = self.c4 if "c4" in self.filters else None
        cuts = LinesConfig(c4=c4, rules=self.lines, min_repeated_chars=self.min_repeated_line_chars)
        return (
            *((repair,) if self.repair == "unicode" else ()),
            *((Lines(cuts),) if self.lines or c4 else ()),
            *((steps.redact_email,) if "email" in self.redact else ()),  # last: changes little, so little goes again
        )

    def judges(self) -> tuple[Step, ...]:
        """Return the steps that drop documents and change no text. Raises ConfigError for an unknown language."""
        unknown = sorted(set(self.languages) - known_languages())
        if unknown or not self.languages:
            raise ConfigError(
                f"the language model does not know {', '.join(unknown)}" if unknown else "no language to keep is given",
                where="languages",
                fix=f"one or more of {', '.join(sorted(known_languages()))}",
            )
        return (
            steps.length(LengthConfig(min_chars=self.min_chars, max_chars=self.max_chars)),
            steps.language(LanguageConfig(languages=self.languages, min_confidence=self.min_language_confidence)),
            *((Quality(self.quality()),) if self.filters else ()),
        )

    def quality(self) -> QualityConfig:
        """Return the quality rules that are asked, with their thresholds."""
        return QualityConfig(**{each.name: getattr(self, each.name) for each in fields(QualityConfig)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """A shard after the first pass. `keys` holds 16 bytes per candidate, in order."""

    candidates: pa.Table
    keys: bytes
    annotations: pa.Table
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A shard after the second pass: its clean table, and the annotations and removals of the duplicates."""

    table: pa.Table
    annotations: pa.Table
    removed: dict[str, dict[str, int]]
    documents_out: dict[str, int]
    chars_out: int


def screen(table: pa.Table, index: int, config: CleanConfig) -> Screened:
    """Run the rules that look at one document at a time over shard number `index`."""
    notes = Notes(index)
    came: Counter[str] = Counter()
    chars = 0

    def counted() -> Iterator[Document]:
        nonlocal chars
        for document in from_table(table):
            came[document.declared] += 1
            chars += len(document.text)
            yield document

    kept = sorted(_settled(config, list(counted()), notes), key=lambda document: document.row)
    columns = {**to_columns(kept), "declared": [d.declared for d in kept], "row": [d.row for d in kept]}
    return Screened(
        candidates=pa.table([pa.array(columns[f.name], f.type) for f in CANDIDATE_SCHEMA], CANDIDATE_SCHEMA),
        keys=b"".join(dedup.key(document.text) for document in kept),
        annotations=annotation_table(notes.annotations),
        counts=Counts(
            documents_in=dict(came),
            documents_out=dict(Counter(document.declared for document in kept)),
            removed=notes.removed,
            edits=notes.edits,
            chars_in=chars,
            chars_out=sum(len(document.text) for document in kept),
        ),
    )


def _settled(config: CleanConfig, documents: list[Document], notes: Notes) -> Iterator[Document]:
    """Yield what stays, as it would be left by a second run: edits until nothing changes, then the judges.

    A document that turns out to be in another language than declared is edited again as what it is, and judged again
    where that changed it.
    """
    edits, judges = config.edits(), config.judges()
    for _ in range(steps.MAX_ROUNDS):
        came = {document.row: document.language for document in documents}
        kept = list(steps.chain(judges, steps.edited(edits, documents, notes), notes))
        yield from (document for document in kept if document.language == came[document.row])
        others = [document for document in kept if document.language != came[document.row]]
        documents = []
        for before, after in zip(others, steps.edited(edits, others, notes), strict=True):
            if after.text == before.text:
                yield after
            else:
                documents.append(after)
    yield from documents


def settle(candidates: pa.Table, index: int, own_start: int, survivors: npt.NDArray[np.int64]) -> Settled:
    """Drop the candidates of shard `index` that another document stands for.

    Candidates are numbered over the whole dataset; this shard's start at `own_start`, and `survivors[i]` is the number
    of the one that stands for the i-th of them. A duplicate's annotation names its survivor by that number.
    """
    own = np.arange(own_start, own_start + candidates.num_rows)
    gone = np.flatnonzero(survivors != own)
    ids, rows, declared = (candidates.column(name).take(gone).to_pylist() for name in ("id", "row", "declared"))
    annotations = [
        Annotation(id_, index, row, "dedup.exact", f"candidate {int(survivors[at])}", "", -1, -1)
        for at, id_, row in zip(gone, ids, rows, strict=True)
    ]
    kept = candidates.filter(pa.array(survivors == own))
    texts = kept.column("text").to_pylist()
    return Settled(
        table=kept.select(TEXT_SCHEMA.names),
        annotations=annotation_table(annotations),
        removed={"dedup.exact": dict(Counter(declared))} if ids else {},
        documents_out=dict(Counter(kept.column("declared").to_pylist())),
        chars_out=sum(len(text) for text in texts),
    )
