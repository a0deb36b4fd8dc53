"""From a token back to its document, and from a document to its tokens: indexes that lie beside token shards at home.

The index of a token shard is a Parquet object `<prefix>/index/<sha256>.parquet` with one row per document, in their
order. `<prefix>` is what stands before `/manifests/` in the dataset attribute `manifest_key`; the manifest's `index`
names the indexes of each split, one per shard.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consortium.data.documents import text_digest
from consortium.domain.data import ArtifactClass, Dataset
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


def keep_index(store: ObjectStore, prefix: str, table: pa.Table) -> str:
    """Store an index and return its digest."""
    return store.put_addressed(f"{prefix}/index", write_table(table), ".parquet").digest


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
        key = dataset.attributes.get("manifest_key", "")
        self._prefix = key.partition("/manifests/")[0]
        self.manifest: Mapping[str, Any] = {}
        if key:
            self.manifest = json.loads(store.get(key, digest=dataset.manifest_digest or None))
        found = self.manifest.get("index") or []
        if dataset.artifact_class is ArtifactClass.TOKENS:
            found = dict(found).get("heldout" if dataset.held_out else "tokens", [])
        self.digests: list[str] = list(found)

    def index(self, number: int) -> pa.Table:
        """Read one index. Raises NotFoundError where the stage left none."""
        if number >= len(self.digests):
            raise NotFoundError(
                f"{self.dataset.name}@{self.dataset.version} has no index: it was made before there were any",
                where=self.dataset.id,
                fix="run the job that made it again",
            )
        digest = self.digests[number]
        key = f"{self._prefix}/index/{digest.removeprefix('sha256:')}.parquet"
        return read_table(self._store.get(key, digest=digest), where=key)

    def rows(self, names: Sequence[str], document: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the index rows, with the number of their index, in which a column of `names` is `document`."""
        for number in range(len(self.digests)):
            table = self.index(number)
            hit = pc.equal(table.column(names[0]), document)
            for name in names[1:]:
                hit = pc.or_(hit, pc.equal(table.column(name), document))
            for row in table.filter(hit).to_pylist():
                yield number, row


def find_document(document: str, datasets: Sequence[Dataset], store: ObjectStore) -> list[dict[str, Any]]:
    """Return all that one site's store knows of a document: a line per dataset, shard and row it stands in or left.

    `document` is `text_digest` of the text as it came in or as it was cleaned; `datasets` are the site's. A line has
    `dataset`, `name`, `class`, `shard`, `row`, `document`; of a raw dataset, where it was cleaned, also `cleaned_by`
    (the clean dataset), `rule` (why it was removed; empty where it stays) and `clean` (the digest after cleaning); of
    tokens `start` and `tokens`, and `source` and `row` are the clean shard and the row in it. Raw datasets that nobody
    cleaned are read whole.
    """
    found: list[dict[str, Any]] = []
    by_id = {dataset.id: dataset for dataset in datasets}
    wanted = {document}
    cleaned: set[str] = set()
    for dataset in datasets:
        if dataset.artifact_class is ArtifactClass.CLEAN:
            kept = _Kept(dataset, store)
            cleaned |= set(dataset.parents) if kept.digests else set()
            lines = [line for line in _cleaned(kept, document, by_id)]
            wanted |= {line["document"] for line in lines if line["class"] == ArtifactClass.CLEAN}
            found += lines
    for dataset in datasets:
        if dataset.artifact_class is ArtifactClass.TOKENS:
            found += _tokens(_Kept(dataset, store), sorted(wanted))
        elif dataset.artifact_class is ArtifactClass.RAW and dataset.id not in cleaned:
            found += _read_through(dataset, document, store)
    return found


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
    for document in wanted:
        for number, row in kept.rows(("document",), document):
            place = {"start": row["start"], "tokens": row["tokens"]}
            yield {**_line(kept.dataset, number, row["row"], document), "source": row["source"], **place}


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
