"""Readers of collections as people have them: Parquet, JSONL (also gzipped), text and Markdown files, and folders.

What cannot be read is yielded as `Quarantined` with a reason, row by row where the rest of the file is readable, else
for the file's remainder. Nothing raises because of a file's content, nothing is skipped in silence. Memory is bounded
by one Parquet batch of 512 rows, one line, or one text file of at most 32 MiB.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from consortium.data.documents import UNKNOWN, Document
from consortium.errors import NotFoundError, UsageError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".txt", ".md", ".markdown")
MAX_TEXT_BYTES = 32 << 20
_TEXT_NAMES = ("text", "content", "body")
_FIELDS = {
    "id": ("id", "_id", "doc_id", "url"),
    "language": ("language", "lang"),
    "licence": ("licence", "license"),
    "source": ("source",),
    "published": ("published", "date"),
    "contributor": ("contributor",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """Something that could not become a document. `row` is -1 for a whole file or its remainder."""

    file: str
    row: int
    reason: str
    detail: str


Item = Document | Quarantined


def find(paths: Iterable[str | Path]) -> list[tuple[str, Path]]:
    """Return all files named by `paths` and below folders among them, with their display names, sorted.

    Raises NotFoundError for a path that is not there and UsageError where no file is found.
    """
    found: dict[str, Path] = {}
    for given in map(Path, paths):
        if not given.exists():
            raise NotFoundError("no such file or folder", where=str(given), fix="check the path of the collection")
        inside = (path for path in given.rglob("*") if path.is_file()) if given.is_dir() else [given]
        base = given if given.is_dir() else given.parent
        for path in inside:
            relative = path.relative_to(base)
            if not any(part.startswith(".") for part in relative.parts):
                name = relative.as_posix()
                found[name if found.get(name, path) == path else str(path)] = path
    if not any(name.lower().endswith(SUFFIXES) for name in found):
        raise UsageError(
            "no collection found: no file of a known kind",
            where=", ".join(str(path) for path in paths),
            fix=f"give files or folders with {', '.join(SUFFIXES)}",
        )
    return sorted(found.items())


def read(paths: Iterable[str | Path]) -> Iterator[Item]:
    """Yield everything in the collections at `paths`, file by file in the order of their names."""
    for name, path in find(list(paths)):
        yield from read_file(name, path)


def read_file(name: str, path: Path) -> Iterator[Item]:
    """Yield one file's documents, and what of it could not be read."""
    lower = name.lower()
    if lower.endswith(".parquet"):
        yield from _parquet(name, path)
    elif lower.endswith((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")):
        yield from _jsonl(name, path)
    elif lower.endswith((".txt", ".md", ".markdown")):
        yield from _text(name, path)
    else:
        yield Quarantined(file=name, row=-1, reason="format", detail="not a known kind of file")


def _parquet(name: str, path: Path) -> Iterator[Item]:
    row = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [column for column in (*_TEXT_NAMES, *sum(_FIELDS.values(), ())) if column in names]
            if not any(column in _TEXT_NAMES for column in wanted):
                detail = f"no column named {' or '.join(_TEXT_NAMES)}; it has {', '.join(names[:20])}"
                yield Quarantined(file=name, row=-1, reason="no_text_column", detail=detail)
                return
            for batch in file.iter_batches(batch_size=512, columns=wanted):
                for values in _rows(batch):
                    yield _document(values, name, row)
                    row += 1
    except (pa.ArrowException, OSError) as fault:
        yield Quarantined(file=name, row=-1, reason="parquet", detail=f"unreadable from row {row} on: {_first(fault)}")


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield a batch's rows; where a value is no valid UTF-8, that row alone carries the fault."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist()[0]
            except UnicodeDecodeError as fault:
                yield {"text": fault}


def _jsonl(name: str, path: Path) -> Iterator[Item]:
    row = 0
    try:
        with gzip.open(path, "rb") if name.lower().endswith(".gz") else path.open("rb") as file:
            while line := file.readline(MAX_TEXT_BYTES + 1):
                if len(line) > MAX_TEXT_BYTES:
                    detail = f"the line is longer than {MAX_TEXT_BYTES} bytes"
                    yield Quarantined(file=name, row=row, reason="too_large", detail=detail)
                    while line and not line.endswith(b"\n"):
                        line = file.readline(MAX_TEXT_BYTES)
                elif line.strip():
                    yield _parsed(line, name, row)
                row += 1
    except (OSError, EOFError, zlib.error) as fault:
        yield Quarantined(
            file=name, row=-1, reason="read", detail=f"unreadable from line {row + 1} on: {_first(fault)}"
        )


def _parsed(line: bytes, name: str, row: int) -> Item:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as fault:
        return Quarantined(file=name, row=row, reason="utf8", detail=_first(fault))
    except (json.JSONDecodeError, RecursionError) as fault:
        return Quarantined(file=name, row=row, reason="json", detail=_first(fault))
    if not isinstance(values, dict):
        return Quarantined(file=name, row=row, reason="json", detail="the line is not a JSON object")
    return _document(values, name, row)


def _text(name: str, path: Path) -> Iterator[Item]:
    try:
        size = path.stat().st_size
        if size > MAX_TEXT_BYTES:
            yield Quarantined(file=name, row=-1, reason="too_large", detail=f"{size} bytes, at most {MAX_TEXT_BYTES}")
            return
        yield _document({"id": name, "text": path.read_text(encoding="utf-8-sig")}, name, 0)
    except UnicodeDecodeError as fault:
        yield Quarantined(file=name, row=-1, reason="utf8", detail=_first(fault))
    except OSError as fault:
        yield Quarantined(file=name, row=-1, reason="read", detail=_first(fault))


def _document(values: dict[str, Any], file: str, row: int) -> Item:
    text = next((values[name] for name in _TEXT_NAMES if values.get(name) is not None), None)
    if isinstance(text, UnicodeDecodeError):
        return Quarantined(file=file, row=row, reason="utf8", detail=_first(text))
    if not isinstance(text, str):
        return Quarantined(file=file, row=row, reason="no_text", detail=f"the text is {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as fault:
        return Quarantined(file=file, row=row, reason="utf8", detail=_first(fault))
    found = {field: _string(values, names) for field, names in _FIELDS.items()}
    language = found.pop("language") or UNKNOWN
    return Document(
        **{**found, "id": found["id"] or f"{file}#{row}"}, text=text, row=row, language=language, declared=language
    )


def _string(values: dict[str, Any], names: tuple[str, ...]) -> str:
    value = next((values[name] for name in names if values.get(name) is not None), "")
    return str(value).encode("utf-8", "replace").decode()


def _first(fault: BaseException) -> str:
    return (str(fault) or type(fault).__name__).splitlines()[0][:300]
