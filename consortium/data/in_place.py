"""A dataset of shards that lie in the private store already: they are checked and named by digest, not copied."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from consortium.data.documents import UNKNOWN
from consortium.data.language import code_of, codes_of
from consortium.domain.data import ArtifactClass, Dataset, Description, Shard
from consortium.errors import NotFoundError, UsageError
from consortium.keys.canonical import digest
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import TEXT_SCHEMA

MAX_SHARD_BYTES = 256 << 20
"""Of an object, and of what its metadata says is in it: workers hold a shard as a whole."""
_FIX = "leave --no-upload out: then it is read, checked and written as shards"


def describe_in_place(
    paths: list[str],
    store: ObjectStore,
    name: str,
    site: str,
    *,
    dataset_id: str,
    territory: str,
    version: int,
    languages: tuple[str, ...] = (),
    licence: str = "",
    source: str = "",
    categories: tuple[str, ...] = (),
    about: Description | None = None,
) -> Dataset:
    """Return the dataset that the text shards below `paths` (`s3://` and the private store's own bucket) make.

    Every object is read once. Raises UsageError for one that is no text shard, NotFoundError where there is none.
    """
    keys = sorted({key for path in paths for key in _keys(path, store)})
    shards, seen, licences, text_bytes = [], set[str](), set[str](), 0
    for key in keys:
        where = f"s3://{store.bucket}/{key}"
        if store.size(key) > MAX_SHARD_BYTES:
            raise UsageError(f"the object has more than {MAX_SHARD_BYTES >> 20} MB", where=where, fix=_FIX)
        data = store.get(key)
        table = _table(data, where)
        shards.append(Shard(key=key, digest=digest(data), size_bytes=len(data), documents=table.num_rows))
        seen |= {value for value in table.column("language").unique().to_pylist() if value}
        licences |= {value for value in table.column("licence").unique().to_pylist() if value}
        text_bytes += table.column("text").nbytes
    return Dataset(
        id=dataset_id,
        name=name,
        version=version,
        site=site,
        territory=territory,
        artifact_class=ArtifactClass.RAW,
        languages=codes_of(languages) or tuple(sorted({*map(code_of, seen)} - {UNKNOWN})),
        licence=licence or "; ".join(sorted(licences)[:64]) or "unknown",
        source=source or ", ".join(paths),
        shards=tuple(shards),
        categories=categories,
        attributes={"text_bytes": str(text_bytes), "quarantined": "0"},
        about=about or Description(),
    )


def _keys(path: str, store: ObjectStore) -> list[str]:
    begin = f"s3://{store.bucket}/"
    if not path.startswith(begin):
        raise UsageError(f"{path} does not lie in the private store", where="--no-upload", fix=f"{_FIX}; or {begin}…")
    prefix = path.removeprefix(begin)
    exact = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    found = [entry.key for entry in store.entries(prefix) if entry.key == prefix or entry.key.startswith(exact)]
    if not found:
        raise NotFoundError("no such object or prefix", where=path, fix="check bucket and prefix")
    return found


def _table(data: bytes, where: str) -> pa.Table:
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            groups = [file.metadata.row_group(index).total_byte_size for index in range(file.metadata.num_row_groups)]
            if not file.schema_arrow.equals(TEXT_SCHEMA) or sum(groups) > MAX_SHARD_BYTES or not groups:
                wanted = ", ".join(TEXT_SCHEMA.names)
                raise UsageError(f"not a text shard (strings {wanted}; at most 256 MB)", where=where, fix=_FIX)
            table = file.read()
        table.validate(full=True)  # valid UTF-8, too
    except (pa.ArrowException, OSError) as fault:
        raise UsageError(f"not a readable Parquet object: {fault}", where=where, fix=_FIX) from fault
    if any(column.null_count for column in table.columns):
        raise UsageError("a text shard has no empty (null) values", where=where, fix=_FIX)
    return table
