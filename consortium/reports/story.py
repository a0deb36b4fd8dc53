"""The story of one document, for a person at home: what a clean stage did to it, and its full score vector."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

from consortium.data import steps
from consortium.data.documents import Annotation, Document, from_table, text_digest
from consortium.data.parts import Parts
from consortium.data.quality import EVERY_RULE, QualityConfig, rules_of
from consortium.domain.cleaning import CleanConfig
from consortium.domain.data import ArtifactClass, Dataset
from consortium.errors import NotFoundError, UsageError
from consortium.reports.dataset import CleanStage, manifest_of
from consortium.reports.history import language_of, replay
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table

_HASH = re.compile(r"[0-9a-f]{32}")
_SETS = {"gopher": "gopher_quality", "repetition": "gopher_repetition", "c4": "c4", "fineweb": "fineweb"}
MAX_STORIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a rule measures in a document, its limit (`least`: the least allowed, else the most) and its verdict."""

    rule: str
    value: float
    limit: float
    least: bool
    asked: bool
    """Whether the stage's configuration asks this rule."""
    breaks: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One document: where it lay, what became of it, each annotation, and the scores.

    `as_judged` says which text was scored: as the judges saw it, after all edits, or as it came (a raw dataset, or a
    stage whose edits this program makes otherwise).
    """

    document: str
    id: str
    dataset: str
    shard: int
    row: int
    declared: str
    language: str
    confidence: float
    chars: int
    kept: bool
    rule: str
    """Why it was removed; empty where it stays, or nothing was done yet."""
    clean: str
    """The clean text's hash; empty where there is none."""
    clean_row: int
    annotations: tuple[Annotation, ...]
    as_judged: bool
    scores: tuple[Score, ...]


def stories(
    dataset: Dataset, wanted: str, store: ObjectStore, dataset_of: Callable[[str], Dataset]
) -> tuple[Story, ...]:
    """Return the stories of the documents of a raw or clean dataset with this id or hash (before or after cleaning).

    The same text may stand there several times; at most `MAX_STORIES` are returned. Raises NotFoundError where there is
    none, UsageError for a dataset that is not text.
    """
    if dataset.artifact_class not in (ArtifactClass.RAW, ArtifactClass.CLEAN):
        raise UsageError(
            f"{dataset.name} is {dataset.artifact_class.value}, not text",
            where=dataset.id,
            fix="name the clean or raw dataset it was made from; `consortium data trace` shows it",
        )
    manifest = manifest_of(dataset, store)
    cleaned = manifest.get("stage") == "clean"
    found = (
        _of_stage(CleanStage(dataset, manifest, store, dataset_of), wanted)
        if cleaned
        else _of_collection(dataset, wanted, store)
    )
    told = tuple(story for story, _ in zip(found, range(MAX_STORIES), strict=False))
    if not told:
        raise NotFoundError(
            f"no document {wanted!r} came into {dataset.name}" if cleaned else f"no document {wanted!r}",
            where=dataset.id,
            fix="give a document's id, or its hash: 32 hexadecimal digits of the SHA-256 of its text",
        )
    return told


def scores(text: str, language: str, config: CleanConfig | None) -> tuple[Score, ...]:
    """Return every quality rule with what it measures in a text; limits are the config's, else the published ones."""
    if config is None:
        asked: tuple[str, ...] = ()
        quality = QualityConfig(filters=EVERY_RULE)
    else:
        asked = config.filters
        named = [each.name for each in fields(QualityConfig) if each.name != "filters"]
        quality = QualityConfig(filters=EVERY_RULE, **{name: getattr(config, name) for name in named})
    rules, parts = rules_of(quality, language), Parts(text)
    found = []
    for rule in (*rules.single, *rules.ngrams):
        value = rule.measure(parts)
        found.append(
            Score(
                rule=rule.name,
                value=value,
                limit=rule.limit,
                least=rule.least,
                asked=_SETS[rule.name.partition(".")[0]] in asked,
                breaks=rule.breaks(value),
            )
        )
    return (*_lengths(text, config), *found)


def _lengths(text: str, config: CleanConfig | None) -> tuple[Score, ...]:
    if config is None:
        return ()
    chars = len(text.strip())
    return tuple(
        Score(rule=rule, value=chars, limit=limit, least=least, asked=True, breaks=breaks)
        for rule, limit, least, breaks in (
            ("length.min", config.min_chars, True, chars < config.min_chars),
            ("length.max", config.max_chars, False, chars > config.max_chars),
        )
    )


def _of_stage(stage: CleanStage, wanted: str) -> Iterator[Story]:
    by_hash = _with_hash(stage, wanted) if _HASH.fullmatch(wanted) else {}
    for shard in by_hash or range(stage.shards):  # an id may look like a hash: MD5 has 32 digits, too
        index, documents = stage.index(shard), stage.documents(shard)
        rows = by_hash.get(shard) or [document.row for document in documents if document.id == wanted]
        notes = stage.annotations(shard) if rows else []
        for row in rows:
            own = [note for note in notes if note.row == row]
            history = replay(documents[row], stage.config, own)
            yield Story(
                document=index["document"][row],
                id=documents[row].id,
                dataset=f"{stage.input.name}@{stage.input.version}",
                shard=shard,
                row=row,
                declared=documents[row].declared,
                language=history.language,
                confidence=history.confidence,
                chars=len(documents[row].text),
                kept=not index["rule"][row],
                rule=index["rule"][row],
                clean=index["clean"][row],
                clean_row=index["clean_row"][row],
                annotations=tuple(own),
                as_judged=history.exact,
                scores=scores(history.text, history.language or documents[row].declared, stage.config),
            )


def _with_hash(stage: CleanStage, wanted: str) -> dict[int, list[int]]:
    """Return, by shard, the rows of documents with this hash before or after cleaning, for shards that have some."""
    found = {}
    for shard in range(stage.shards):
        index = stage.index(shard)
        hashes = zip(index["document"], index["clean"], strict=True)
        if rows := [row for row, both in enumerate(hashes) if wanted in both]:
            found[shard] = rows
    return found


def _of_collection(dataset: Dataset, wanted: str, store: ObjectStore) -> Iterator[Story]:
    hashed = _HASH.fullmatch(wanted) is not None
    for number, shard in enumerate(dataset.shards):
        table = read_table(store.get(shard.key, digest=shard.digest), where=shard.key)
        for document in from_table(table):
            digest = text_digest(document.text) if hashed else ""
            if wanted in (document.id, digest):
                yield _untouched(dataset, number, document)


def _untouched(dataset: Dataset, shard: int, document: Document) -> Story:
    language, confidence = language_of(document, steps.CONTRAST)
    return Story(
        document=text_digest(document.text),
        id=document.id,
        dataset=f"{dataset.name}@{dataset.version}",
        shard=shard,
        row=document.row,
        declared=document.declared,
        language=language,
        confidence=confidence,
        chars=len(document.text),
        kept=True,
        rule="",
        clean="",
        clean_row=-1,
        annotations=(),
        as_judged=False,
        scores=scores(document.text, language or document.declared, None),
    )
