"""A dataset's text, from the private store into one file at home: JSONL (also `.gz`, `.zst`) or Parquet."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from consortium.data.progress import Advance, Progress
from consortium.domain.data import CONSENT_FIX, ArtifactClass, Dataset
from consortium.errors import ForbiddenError, UsageError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import TEXT_SCHEMA, read_table

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
Write = Callable[[pa.Table], object]


def export_dataset(
    dataset: Dataset, store: ObjectStore, path: Path, *, now_ms: int, progress: Progress | None = None
) -> None:
    """Write all documents of a raw or clean dataset to `path`, in the order of its shards, readable by its owner only.

    The same dataset gives the same bytes (under one version of the libraries). Memory: one shard. The file is there
    whole or not at all. Raises UsageError for another class or ending and for a file that is there, ForbiddenError
    where consent has ended, and errors of the store: VerificationError for a shard that is not the registered one.
    """
    if dataset.artifact_class not in (ArtifactClass.RAW, ArtifactClass.CLEAN):
        raise UsageError(f"{dataset.name} is {dataset.artifact_class.value}, which is no text", where=dataset.id)
    over = dataset.consent_over(now_ms)
    if over:
        raise ForbiddenError(over, where=dataset.id, fix=CONSENT_FIX)
    if not path.name.lower().endswith(SUFFIXES):
        raise UsageError(f"no known kind of file: {path.name}", where=str(path), fix=f"end it in {', '.join(SUFFIXES)}")
    if path.exists():
        raise UsageError("the file is there already", where=str(path), fix="move it away, or name another")
    done = documents = text_bytes = 0
    with _written(path) as write:
        for shard in dataset.shards:
            table = read_table(store.get(shard.key, digest=shard.digest), where=shard.key)
            write(table)
            done, documents = done + shard.size_bytes, documents + table.num_rows
            text_bytes += table.column("text").nbytes
            if progress is not None:
                progress(Advance("export", done, dataset.size_bytes, documents, text_bytes))


@contextmanager
def _written(path: Path) -> Iterator[Write]:
    """Yield what writes tables into a file that gets its name when all of them are in it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with (
            os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
            _writer(path.name.lower(), file) as write,
        ):
            yield write
        os.link(part, path)  # unlike a rename it fails where somebody made the file meanwhile
    except FileNotFoundError as fault:
        raise UsageError("there is no such folder", where=str(path.parent), fix="make it first") from fault
    except FileExistsError as fault:
        raise UsageError("the file is there already", where=str(path), fix="move it away, or name another") from fault
    except OSError as fault:
        raise UsageError(
            f"cannot write: {fault.strerror or fault}", where=str(path), fix="check space and rights"
        ) from fault
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _writer(name: str, file: IO[bytes]) -> Iterator[Write]:
    if name.endswith(".parquet"):
        with pq.ParquetWriter(file, TEXT_SCHEMA, compression="zstd") as parquet:
            yield lambda table: parquet.write_table(table.cast(TEXT_SCHEMA))
    elif name.endswith(".gz"):
        with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0, compresslevel=6) as packed:
            yield lambda table: _lines(table, packed)
    elif name.endswith(".zst"):
        with pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), "zstd") as packed:
            yield lambda table: _lines(table, packed)
    else:
        yield lambda table: _lines(table, file)


def _lines(table: pa.Table, out: Any) -> None:
    for batch in table.select(TEXT_SCHEMA.names).to_batches(max_chunksize=512):
        out.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist()).encode())
