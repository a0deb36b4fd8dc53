"""A document on its way through the steps, and the notes the steps leave about it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa

UNKNOWN = "und"
"""ISO 639-2 for a language nobody declared or recognised."""


def text_digest(text: str) -> str:
    """Return what a text is known by at home: 32 hex digits, the first half of the SHA-256 of its UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One text. `row` is its place in its input shard; `declared` its language as its collector has it."""

    id: str
    text: str
    row: int
    language: str
    declared: str
    licence: str = ""
    source: str = ""
    published: str = ""
    contributor: str = ""

    def edited(self, text: str) -> Document:
        """Return the document with another text; `dataclasses.replace` costs twice as much."""
        return Document(
            id=self.id, text=text, row=self.row, language=self.language, declared=self.declared,
            licence=self.licence, source=self.source, published=self.published, contributor=self.contributor,
        )  # fmt: skip


class Outcome(NamedTuple):
    """What a filter says of a document: whether it stays, else by which rule, which value and which threshold."""

    keep: bool
    rule: str = ""
    value: str = ""
    threshold: str = ""


KEEP = Outcome(keep=True)


class Annotation(NamedTuple):
    """One removed document, or one edit (then `start` and `end` are its characters in the text before the step)."""

    id: str
    shard: int
    row: int
    rule: str
    value: str
    threshold: str
    start: int
    end: int


ANNOTATION_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("shard", pa.int64()),
        ("row", pa.int64()),
        ("rule", pa.string()),
        ("value", pa.string()),
        ("threshold", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
    ]
)


def annotation_table(annotations: list[Annotation]) -> pa.Table:
    """Return annotations as a table, in their order."""
    columns = list(zip(*annotations, strict=True)) if annotations else [()] * len(ANNOTATION_SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, ANNOTATION_SCHEMA, strict=True)], ANNOTATION_SCHEMA)


@dataclass(slots=True)
class Notes:
    """What steps leave behind for one shard: annotations, and counts by rule (and declared language)."""

    shard: int
    annotations: list[Annotation] = field(default_factory=list)
    removed: dict[str, dict[str, int]] = field(default_factory=dict)
    edits: dict[str, int] = field(default_factory=dict)
    gone: dict[int, str] = field(default_factory=dict)
    """By row of what was removed: the rule."""

    def remove(self, document: Document, outcome: Outcome) -> None:
        """Note that `document` goes, and why."""
        by_language = self.removed.setdefault(outcome.rule, {})
        by_language[document.declared] = by_language.get(document.declared, 0) + 1
        self.gone[document.row] = outcome.rule
        self.annotations.append(Annotation(document.id, self.shard, document.row, *outcome[1:], -1, -1))

    def edit(self, document: Document, rule: str, placeholder: str, start: int, end: int) -> None:
        """Note that the characters [start, end) were replaced."""
        self.edits[rule] = self.edits.get(rule, 0) + 1
        self.annotations.append(Annotation(document.id, self.shard, document.row, rule, placeholder, "", start, end))


def from_table(table: pa.Table) -> Iterator[Document]:
    """Yield the documents of a text shard."""
    columns = (table.column(name).to_pylist() for name in ("id", "text", "language", "licence", "source", "published"))
    contributors = table.column("contributor").to_pylist()
    for row, (id_, text, language, licence, source, published) in enumerate(zip(*columns, strict=True)):
        yield Document(
            id=id_,
            text=text,
            row=row,
            language=language or UNKNOWN,
            declared=language or UNKNOWN,
            licence=licence,
            source=source,
            published=published,
            contributor=contributors[row],
        )


def to_columns(documents: list[Document]) -> dict[str, list[str]]:
    """Return documents as the columns of a text shard."""
    names = ("id", "text", "language", "licence", "source", "published", "contributor")
    return {name: [getattr(document, name) for document in documents] for name in names}
