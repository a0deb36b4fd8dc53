"""From a local collection to a dataset in the state's private store: content-addressed Parquet text shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from consortium.data.documents import UNKNOWN, Document, to_columns
from consortium.data.readers import Item, Quarantined, read
from consortium.domain.data import ArtifactClass, Dataset, Shard
from consortium.errors import UsageError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import write_text

SHARD_TEXT_BYTES = 8 << 20
"""Text per shard. Memory while registering stays below about ten times that."""
_MAX_KEPT_REASONS = 10_000


def register_collection(
    paths: Sequence[str | Path],
    store: ObjectStore,
    name: str,
    site: str,
    *,
    dataset_id: str,
    territory: str = "",
    version: int = 1,
    languages: Sequence[str] = (),
    licence: str = "",
    source: str = "",
    categories: Sequence[str] = (),
    shard_text_bytes: int = SHARD_TEXT_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Write the collections at `paths` into `store` and return the raw dataset they make.

    Empty `languages`, `licence` and `source` are taken from the documents. `territory` defaults to the site's partner.
    `progress` is called with documents and bytes of text so far, once per shard. What could not be read stands in the
    object that attribute `quarantine_key` names; `quarantined` counts it, by reason too.

    Raises NotFoundError for absent paths and UsageError where nothing in them can be read. Running it again on the
    same input writes nothing new.
    """
    seen = _Seen()
    shards: list[Shard] = []
    for batch in _batches(seen.watch(read(paths)), shard_text_bytes):
        data = write_text(to_columns(batch))
        key, digest = store.put_addressed(f"datasets/{name}", data, ".parquet")
        shards.append(Shard(key=key, digest=digest, size_bytes=len(data), documents=len(batch)))
        if progress is not None:
            progress(seen.documents, seen.text_bytes)
    if not shards:
        raise UsageError(
            f"no document could be read: {seen.summary() or 'the files are empty'}",
            where=", ".join(str(path) for path in paths),
            fix="each document needs a text in UTF-8 (column or key 'text', or a file of its own)",
        )
    return Dataset(
        id=dataset_id,
        name=name,
        version=version,
        site=site,
        territory=territory or site[:2],
        artifact_class=ArtifactClass.RAW,
        languages=tuple(languages) or tuple(sorted(seen.languages - {UNKNOWN})),
        licence=licence or "; ".join(sorted(seen.licences)) or "unknown",
        source=source or ", ".join(sorted({Path(path).name for path in paths})),
        shards=tuple(shards),
        categories=tuple(categories),
        attributes=seen.attributes(store, name),
    )


class _Seen:
    """What passed by while reading: counts, languages, licences and what was quarantined."""

    def __init__(self) -> None:
        self.documents = 0
        self.text_bytes = 0
        self.languages: set[str] = set()
        self.licences: set[str] = set()
        self.reasons: Counter[str] = Counter()
        self.kept: list[Quarantined] = []

    def watch(self, items: Iterable[Item]) -> Iterator[Document]:
        for item in items:
            if isinstance(item, Quarantined):
                self.reasons[item.reason] += 1
                if len(self.kept) < _MAX_KEPT_REASONS:
                    self.kept.append(item)
                continue
            self.documents += 1
            self.text_bytes += len(item.text.encode())
            self.languages.add(item.language)
            if item.licence and len(self.licences) < 16:
                self.licences.add(item.licence)
            yield item

    def summary(self) -> str:
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.reasons.items()))

    def attributes(self, store: ObjectStore, name: str) -> dict[str, str]:
        """Write what was quarantined beside the dataset and return its counts, all as strings."""
        found = {"text_bytes": str(self.text_bytes), "quarantined": str(self.reasons.total())}
        if self.kept:
            lines = [
                {"file": item.file, "row": item.row, "reason": item.reason, "detail": item.detail} for item in self.kept
            ]
            data = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines).encode()
            found["quarantine_key"] = store.put_addressed(f"datasets/{name}/quarantine", data, ".jsonl").key
            found["quarantine_reasons"] = self.summary()
        return found


def _batches(documents: Iterable[Document], text_bytes: int) -> Iterator[list[Document]]:
    """Cut a stream of documents into lists of about `text_bytes` of text; one larger document is a list alone."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        size = len(document.text.encode())
        if batch and held + size > text_bytes:
            yield batch
            batch, held = [], 0
        batch.append(document)
        held += size
    if batch:
        yield batch
