"""Cleaning of one shard, purely: from its table to what stays, what goes and why.

Two passes, because what goes because of other documents is only known when all shards have been screened. `screen`
runs the rules that look at one document; `settle` drops what `grouping` found over the whole dataset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa

from consortium.data import dedup, pii, profile, steps
from consortium.data.counts import Counts
from consortium.data.decontaminate import RULE as NOTED
from consortium.data.decontaminate import EvaluationSets, decontaminate
from consortium.data.documents import (
    Annotation,
    Document,
    Notes,
    annotation_table,
    from_table,
    text_digest,
    to_columns,
)
from consortium.data.grouping import Reason
from consortium.data.language import known_languages
from consortium.data.lines import Lines, LinesConfig
from consortium.data.profile import Profile
from consortium.data.quality import Quality, QualityConfig
from consortium.data.repair import repair
from consortium.data.shingles import I64
from consortium.data.steps import LanguageConfig, LengthConfig, Step
from consortium.domain.cleaning import MAX_CHARS, PII_STATES, CleanConfig
from consortium.errors import ConfigError
from consortium.storage.shards import TEXT_SCHEMA

CANDIDATE_SCHEMA = TEXT_SCHEMA.append(pa.field("declared", pa.string())).append(pa.field("row", pa.int64()))
ARRIVAL_SCHEMA = pa.schema([("document", pa.string()), ("rule", pa.string())])
INDEX_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("row", pa.int64()),
        ("rule", pa.string()),
        ("clean", pa.string()),
        ("clean_row", pa.int64()),
    ]
)
"""What became of each document of a shard, in order: its digest (`text_digest`) as it came, the rule that removed it
or nothing, and where it stays, the clean text's digest and row (-1 where removed)."""


def edits(config: CleanConfig) -> tuple[Step, ...]:
    """Return the steps that change documents and drop none, in order."""
    c4 = config.c4 if "c4" in config.filters else None
    cuts = LinesConfig(c4=c4, rules=config.lines, min_repeated_chars=config.min_repeated_line_chars)
    personal = pii.PiiConfig(kinds=config.redact, states=config.redact_states or PII_STATES)
    return (
        *((repair,) if config.repair == "unicode" else ()),
        *((Lines(cuts),) if config.lines or c4 else ()),
        *((pii.step(personal),) if config.redact else ()),  # last: changes little, so little goes again
    )


def judges(config: CleanConfig, evaluation: EvaluationSets | None = None) -> tuple[Step, ...]:
    """Return the steps that drop documents and change no text. Raises ConfigError for an unknown language."""
    unknown = sorted(set(config.languages) - known_languages())
    if unknown or not config.languages:
        raise ConfigError(
            f"the language model does not know {', '.join(unknown)}" if unknown else "no language to keep is given",
            where="languages",
            fix=f"name those to keep in `languages`: one or more of {', '.join(sorted(known_languages()))}",
        )
    quality = QualityConfig(**{each.name: getattr(config, each.name) for each in fields(QualityConfig)})
    return (
        steps.length(LengthConfig(min_chars=config.min_chars, max_chars=config.max_chars)),
        steps.language(LanguageConfig(languages=config.languages, min_confidence=config.min_language_confidence)),
        *((Quality(quality),) if config.filters else ()),
        *((decontaminate(evaluation),) if evaluation is not None else ()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Screened:
    """A shard after the first pass.

    `keys` holds 16 bytes per candidate, in order; `arrivals` one row per document that came, in order.
    """

    candidates: pa.Table
    keys: bytes
    arrivals: pa.Table
    annotations: pa.Table
    counts: Counts
    before: Profile


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What `grouping.decide` says of one shard's candidates, with survivors as people find them.

    `why` [candidates] are places in `reasons`, -1 for what stays; `standing` [candidates, 2] is the shard and the row
    of the document that stands for each.
    """

    why: I64
    standing: I64
    reasons: Sequence[Reason]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """A shard after the second pass: its clean table and index, and the annotations and removals of what went."""

    table: pa.Table
    index: pa.Table
    annotations: pa.Table
    removed: dict[str, dict[str, int]]
    documents_out: dict[str, int]
    chars_out: int
    after: Profile


def screen(table: pa.Table, index: int, config: CleanConfig, evaluation: EvaluationSets | None = None) -> Screened:
    """Run the rules that look at one document at a time over shard number `index`."""
    notes = Notes(index)
    documents = list(from_table(table))
    digests = [text_digest(document.text) for document in documents]
    came = Counter(document.declared for document in documents)
    chars = sum(len(document.text) for document in documents)
    before = profile.of(documents)
    bounded = list(steps.length(LengthConfig(min_chars=0, max_chars=MAX_CHARS))(documents, notes))  # before any edit
    kept = sorted(_settled(config, evaluation, bounded, notes), key=lambda document: document.row)
    columns = {**to_columns(kept), "declared": [d.declared for d in kept], "row": [d.row for d in kept]}
    gone = [notes.gone.get(row, "") for row in range(len(digests))]
    return Screened(
        candidates=pa.table([pa.array(columns[f.name], f.type) for f in CANDIDATE_SCHEMA], CANDIDATE_SCHEMA),
        keys=b"".join(dedup.key(document.text) for document in kept),
        arrivals=pa.table([pa.array(digests, pa.string()), pa.array(gone, pa.string())], ARRIVAL_SCHEMA),
        annotations=annotation_table(notes.annotations),
        counts=Counts(
            documents_in=dict(came),
            documents_out=dict(Counter(document.declared for document in kept)),
            removed=notes.removed,
            edits=notes.edits,
            chars_in=chars,
            chars_out=sum(len(document.text) for document in kept),
        ),
        before=before,
    )


def _settled(
    config: CleanConfig, evaluation: EvaluationSets | None, documents: list[Document], notes: Notes
) -> Iterator[Document]:
    """Yield what stays, as it would be left by a second run: edits until nothing changes, then the judges.

    A document that turns out to be in another language than declared is edited again as what it is, and judged again
    where that changed it.
    """
    editing, judging = edits(config), judges(config, evaluation)
    for round in range(steps.MAX_ROUNDS):
        came = {document.row: document.language for document in documents}
        if round:  # judged again: what judges noted of a document that stays is noted again
            notes.annotations = [note for note in notes.annotations if note.rule != NOTED or note.row not in came]
        kept = list(steps.chain(judging, steps.edited(editing, documents, notes), notes))
        yield from (document for document in kept if document.language == came[document.row])
        others = [document for document in kept if document.language != came[document.row]]
        documents = []
        for before, after in zip(others, steps.edited(editing, others, notes), strict=True):
            if after.text == before.text:
                yield after
            else:
                documents.append(after)
    yield from documents


def settle(candidates: pa.Table, arrivals: pa.Table, index: int, fate: Fate) -> Settled:
    """Drop those candidates of shard `index` that go because of others. `arrivals` is what `screen` made of it."""
    gone = np.flatnonzero(fate.why >= 0)
    names = ("id", "row", "declared")
    annotations: list[Annotation] = []
    removed: dict[str, dict[str, int]] = {}
    rules = arrivals.column("rule").to_pylist()
    for at, id_, row, declared in zip(
        gone.tolist(), *(candidates.column(name).take(gone).to_pylist() for name in names), strict=True
    ):
        reason = fate.reasons[fate.why[at]]
        value = reason.value or "shard {} row {}".format(*fate.standing[at].tolist())
        annotations.append(Annotation(id_, index, row, reason.rule, value, reason.threshold, -1, -1))
        by_language = removed.setdefault(reason.rule, {})
        by_language[declared] = by_language.get(declared, 0) + 1
        rules[row] = reason.rule
    kept = candidates.filter(pa.array(fate.why < 0))
    texts = kept.column("text").to_pylist()
    digests, places = [""] * len(rules), [-1] * len(rules)
    for clean_row, (row, text) in enumerate(zip(kept.column("row").to_pylist(), texts, strict=True)):
        digests[row], places[row] = text_digest(text), clean_row
    columns = [arrivals.column("document").to_pylist(), range(len(rules)), rules, digests, places]
    return Settled(
        table=kept.select(TEXT_SCHEMA.names),
        index=pa.table([pa.array(c, f.type) for c, f in zip(columns, INDEX_SCHEMA, strict=True)], INDEX_SCHEMA),
        annotations=annotation_table(annotations),
        removed=removed,
        documents_out=dict(Counter(kept.column("declared").to_pylist())),
        chars_out=sum(len(text) for text in texts),
        after=profile.of(from_table(kept)),
    )
