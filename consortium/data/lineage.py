"""From a token back to its document, and from a document to its tokens: indexes that lie beside token shards at home.

The index of a token shard is a Parquet object `<prefix>/index/<sha256>.parquet` with one row per document, in their
order. `<prefix>` is what stands before `/manifests/` in the dataset attribute `manifest_key`; the manifest's `index`
names the indexes of each split, one per shard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consortium.data.documents import text_digest
from consortium.data.markers import Made
from consortium.domain.data import NEVER_CROSS, ArtifactClass, Dataset
from consortium.errors import NotFoundError, UsageError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table, write_table

INDEX_SCHEMA = pa.schema(
    [
        ("document", pa.string()),
        ("id", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("licence", pa.string()),
        ("contributor", pa.string()),
        ("language", pa.string()),
        ("start", pa.int64()),
        ("tokens", pa.int64()),
    ]
)
"""`document` is `text_digest` of the text; `source` and `row` are the clean shard's digest and the row in it, `start`
the document's first token in the token shard, `tokens` how many it has, the mark of its end counted."""


def index_table(documents: pa.Table, lengths: npt.NDArray[np.int64], sources: Sequence[str]) -> pa.Table:
    """Return the index of a token shard that holds `documents` (columns of a run) in this order; `sources` are the text
    shards' digests by number."""
    numbers = documents.column("shard").to_numpy()
    columns = {name: documents.column(name) for name in documents.column_names}
    columns["source"] = pa.array([sources[number] for number in numbers], pa.string())
    columns["start"] = pa.array(np.cumsum(lengths) - lengths, pa.int64())
    columns["tokens"] = pa.array(lengths, pa.int64())
    return pa.table([columns[name] for name in INDEX_SCHEMA.names], schema=INDEX_SCHEMA)


def keep_index(made: Made, prefix: str, table: pa.Table) -> str:
    """Store an index and return its digest."""
    return made.put_addressed(f"{prefix}/index", write_table(table), ".parquet").digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a token stands: in which document of which shard of which dataset of which state."""

    dataset: str
    name: str
    site: str
    territory: str
    shard: str
    """Digest of the token shard."""
    position: int
    """The token's number in the shard."""
    offset: int
    """And in its document."""
    document: str
    id: str
    source: str
    """Digest of the clean shard that holds the text, and the row there."""
    row: int
    licence: str
    """The document's own, else the dataset's."""
    contributor: str
    language: str


def locate(dataset: Dataset, shard: str, position: int, store: ObjectStore) -> Place:
    """Return where token number `position` of a dataset's token shard comes from; `shard` is the shard's digest.

    Reads the index alone, not the tokens. Raises UsageError for a position outside of the shard, NotFoundError where
    the dataset has no such shard or no index.
    """
    numbers = [number for number, one in enumerate(dataset.shards) if one.digest == shard]
    if not numbers:
        raise NotFoundError(f"{dataset.name}@{dataset.version} has no shard {shard}", where=dataset.id)
    tokens = dataset.shards[numbers[0]].tokens
    if not 0 <= position < tokens:
        raise UsageError(f"the shard has tokens 0 to {tokens - 1}, not {position}", where=shard)
    table = _Kept(dataset, store).index(numbers[0])
    starts = table.column("start").to_numpy()
    at = int(np.searchsorted(starts, position, side="right")) - 1
    found = table.slice(at, 1).to_pylist()[0]
    return Place(
        dataset=dataset.id,
        name=f"{dataset.name}@{dataset.version}",
        site=dataset.site,
        territory=dataset.territory,
        shard=shard,
        position=position,
        offset=position - int(found["start"]),
        licence=found["licence"] or dataset.licence,
        **{name: found[name] for name in ("document", "id", "source", "row", "contributor", "language")},
    )


class _Kept:
    """What a stage left at home beside a dataset's shards."""

    def __init__(self, dataset: Dataset, store: ObjectStore) -> None:
        self.dataset = dataset
        self._store = store
        self._key = dataset.attributes.get("manifest_key", "")

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The stage's manifest; empty for what was registered."""
        if not self._key:
            return {}
        found: dict[str, Any] = json.loads(self._store.get(self._key, digest=self.dataset.manifest_digest or None))
        return found

    @cached_property
    def digests(self) -> list[str]:
        """The indexes' digests, in the order of the stage's input shards or, of tokens, of the dataset's shards."""
        found = self.manifest.get("index") or []
        if self.dataset.artifact_class is ArtifactClass.TOKENS:
            # By its shards: of a held-out dataset both splits are held out.
            mine = [shard.digest for shard in self.dataset.shards]
            splits = {
                name: [line["digest"] for line in lines] for name, lines in self.manifest.get("outputs", {}).items()
            }
            found = next((found[name] for name, digests in splits.items() if digests == mine and name in found), [])
        return [str(digest) for digest in found]

    def index(self, number: int) -> pa.Table:
        """Read one index. Raises NotFoundError where the stage left none."""
        if number >= len(self.digests):
            raise NotFoundError(
                f"{self.dataset.name}@{self.dataset.version} has no index: it was made before there were any",
                where=self.dataset.id,
                fix="run the job that made it again",
            )
        digest = self.digests[number]
        key = f"{self._key.partition('/manifests/')[0]}/index/{digest.removeprefix('sha256:')}.parquet"
        return read_table(self._store.get(key, digest=digest), where=key)


def find_document(
    document: str, datasets: Sequence[Dataset], store: ObjectStore
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return all that one site's store knows of a document, and the datasets that could not be looked in, with why.

    `document` is `text_digest` of the text as it came in or as it was cleaned; `datasets` are the site's. A line stands
    for a dataset, shard and row that the document stands in or left: `dataset`, `name`, `class`, `shard`, `row`,
    `document`; of what was cleaned also `cleaned_by` (the clean dataset), `rule` (why it was removed; empty where it
    stays) and `clean` (the digest after cleaning); of tokens `start` and `tokens`, and `source` and `row` are the clean
    shard and the row in it. Texts that no index covers are read whole.
    """
    found: list[dict[str, Any]] = []
    unread: dict[str, str] = {}
    covered: set[str] = set()
    by_id = {dataset.id: dataset for dataset in datasets}

    def look(dataset: Dataset, lines: Callable[[], Iterator[dict[str, Any]]]) -> bool:
        try:
            found.extend(list(lines()))
        except NotFoundError as fault:
            unread[dataset.id] = fault.what
        return dataset.id not in unread

    kept = {dataset.id: _Kept(dataset, store) for dataset in datasets}
    for dataset in datasets:
        one = kept[dataset.id]
        if (
            dataset.artifact_class is ArtifactClass.CLEAN
            and look(dataset, partial(_cleaned, one, document, by_id))
            and one.digests
        ):
            covered |= {dataset.id, *dataset.parents}
    wanted = sorted({document, *(str(line["clean"]) for line in found if line.get("clean"))})
    for dataset in datasets:
        if dataset.artifact_class is ArtifactClass.TOKENS:
            look(dataset, partial(_tokens, kept[dataset.id], wanted))
        elif dataset.artifact_class in NEVER_CROSS and dataset.id not in covered:
            unread.pop(dataset.id, None)
            look(dataset, partial(_read_through, dataset, document, store))
    return found, unread


def _cleaned(kept: _Kept, document: str, by_id: Mapping[str, Dataset]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a clean dataset and of the one it was made of."""
    clean = kept.dataset
    sources = [str(source["id"]) for source in kept.manifest.get("inputs", ())] or [""]
    raw = by_id.get(sources[0])
    written = -1
    for number in range(len(kept.digests)):
        table = kept.index(number)
        stays = bool(pc.any(pc.greater_equal(table.column("clean_row"), 0)).as_py())
        written += stays
        hit = pc.or_(pc.equal(table.column("document"), document), pc.equal(table.column("clean"), document))
        for row in table.filter(hit).to_pylist():
            if raw is not None:
                yield {
                    **_line(raw, number, row["row"], row["document"]),
                    "cleaned_by": clean.id,
                    "rule": row["rule"],
                    "clean": row["clean"],
                }
            if row["clean_row"] >= 0:
                yield _line(clean, written, row["clean_row"], row["clean"])


def _tokens(kept: _Kept, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number in range(len(kept.dataset.shards)):
        table = kept.index(number)
        for row in table.filter(pc.is_in(table.column("document"), pa.array(wanted))).to_pylist():
            place = {name: row[name] for name in ("source", "start", "tokens")}
            yield {**_line(kept.dataset, number, row["row"], row["document"]), **place}


def _read_through(dataset: Dataset, document: str, store: ObjectStore) -> Iterator[dict[str, Any]]:
    for number, shard in enumerate(dataset.shards):
        texts = read_table(store.get(shard.key, digest=shard.digest), where=shard.key).column("text").to_pylist()
        for row, text in enumerate(texts):
            if text_digest(text) == document:
                yield _line(dataset, number, row, document)


def _line(dataset: Dataset, number: int, row: int, document: str) -> dict[str, Any]:
    return {
        "dataset": dataset.id,
        "name": f"{dataset.name}@{dataset.version}",
        "class": dataset.artifact_class.value,
        "shard": dataset.shards[number].digest if number < len(dataset.shards) else "",
        "row": row,
        "document": document,
    }
