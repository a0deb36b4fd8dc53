"""Parquet, JSONL, text and Markdown, and which reader takes which file; all but Parquet also as `.gz` and `.zst`.

| reads               | one document is                                       | memory                                 |
|---------------------|-------------------------------------------------------|----------------------------------------|
| Parquet             | a row with `text` (or `content`, `body`)              | a page of each column, 64 rows         |
| JSONL               | a line                                                | a line of at most 32 MiB               |
| text, Markdown      | a file                                                | a file of at most 32 MiB               |
| HTML                | a page's main text (`pages`)                          | a page of at most 8 MiB, and its tree  |
| WARC                | a record with a page or plain text (`warc`)           | a record of which 8 MiB are read       |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from consortium.data.readers import streams
from consortium.data.readers.items import (
    FIELDS,
    MAX_TEXT_BYTES,
    TEXT_NAMES,
    Item,
    Later,
    Quarantined,
    document,
    first_line,
)
from consortium.data.readers.sources import Source

_BATCH_ROWS = 64
_MAX_BLANK_LINES = 1_000_000
_BOM = b"\xef\xbb\xbf"
Reader = Callable[[str, BinaryIO], Iterator[Later]]


def read_file(source: Source, start: int = 0, moved: Callable[[int], None] = lambda _: None) -> Iterator[Item]:
    """Yield one file's documents, and what of it could not be read, from item `start` on.

    Item n is the same whenever the file is: a run that was stopped goes on where it was. `moved` is told how many bytes
    of the file were read. Raises errors of the store (they are not the file's fault) and nothing else.
    """
    for number, item in enumerate(later(source, moved)):
        if number >= start:
            yield item()


def later(source: Source, moved: Callable[[int], None]) -> Iterator[Later]:
    """Yield one file's items, each to be made, or passed over, before the next is asked for."""
    if source.problem is not None:
        reason, detail = source.problem
        yield _stopped(source.name, reason, detail)
        return
    inner = streams.inner_name(source.name)
    reader = next((reader for suffixes, reader in _READERS if inner.endswith(suffixes)), None)
    if reader is None or (reader is _parquet and inner != source.name.lower()):
        yield _stopped(source.name, "format", "not a known kind of file")
        return
    try:
        with streams.Counted(source.open(), moved) as raw:
            yield from reader(source.name, streams.unpacked(source.name, raw))
    except streams.FAULTS as fault:  # what a reader does not catch itself: opening, and closing
        yield _stopped(source.name, "read", first_line(fault))


def _parquet(name: str, file: BinaryIO) -> Iterator[Later]:
    row = 0
    try:
        with pq.ParquetFile(pa.PythonFile(file, mode="r"), buffer_size=1 << 20, pre_buffer=False) as table:
            names = table.schema_arrow.names
            wanted = [column for column in (*TEXT_NAMES, *sum(FIELDS.values(), ())) if column in names]
            if not any(column in TEXT_NAMES for column in wanted):
                detail = f"no column named {' or '.join(TEXT_NAMES)}; it has {', '.join(names[:20])}"
                yield _stopped(name, "no_text_column", detail[:300])
                return
            twice = [column for column in wanted if names.count(column) > 1]
            if twice:
                detail = f"more than one column is named {' and '.join(twice)}: which is meant cannot be told"
                yield _stopped(name, "duplicate_column", detail)
                return
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=wanted, use_threads=False):
                rows = _rows(batch)
                for at in range(batch.num_rows):
                    yield partial(document, rows[at], name, row) if rows else partial(_row, batch, at, name, row)
                    row += 1
    except (pa.ArrowException, OSError, MemoryError, ValueError) as fault:
        yield _stopped(name, "parquet", f"unreadable from row {row} on: {first_line(fault)}")


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return a batch's rows; nothing where one of them cannot be, and each must be looked at alone."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        return []
    return rows


def _row(batch: pa.RecordBatch, at: int, name: str, row: int) -> Item:
    """Return a row's document; one whose values are no UTF-8, or no dates that there are, is quarantined."""
    try:
        values = batch.slice(at, 1).to_pylist()[0]
    except UnicodeDecodeError as fault:
        return Quarantined(file=name, row=row, reason="utf8", detail=first_line(fault))
    except (pa.ArrowException, ValueError, OverflowError) as fault:
        return Quarantined(file=name, row=row, reason="value", detail=first_line(fault))
    return document(values, name, row)


def _jsonl(name: str, file: BinaryIO) -> Iterator[Later]:
    row = blank = 0
    try:
        while line := file.readline(MAX_TEXT_BYTES + 1):
            blank = 0 if line.strip() else blank + 1
            if blank > _MAX_BLANK_LINES:
                raise streams.BombError(f"{blank} empty lines in a row")
            if row == 0:
                line = line.removeprefix(_BOM)
            if len(line) > MAX_TEXT_BYTES:
                detail = f"the line is longer than {MAX_TEXT_BYTES} bytes"
                yield _later(Quarantined(file=name, row=row, reason="too_large", detail=detail))
                while line and not line.endswith(b"\n"):
                    line = file.readline(1 << 20)
            elif not blank and line.strip():
                yield partial(_parsed, line, name, row)
            row += 1
    except streams.FAULTS as fault:
        yield _stopped(name, reason_of(fault), f"unreadable from line {row + 1} on: {first_line(fault)}")


def _parsed(line: bytes, name: str, row: int) -> Item:
    try:
        values = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as fault:
        return Quarantined(file=name, row=row, reason="utf8", detail=first_line(fault))
    except (ValueError, RecursionError, MemoryError) as fault:  # ValueError: also numbers of too many digits
        return Quarantined(file=name, row=row, reason="json", detail=first_line(fault))
    if not isinstance(values, dict):
        return Quarantined(file=name, row=row, reason="json", detail="the line is not a JSON object")
    return document(values, name, row)


def _text(name: str, file: BinaryIO) -> Iterator[Later]:
    yield _later(whole(name, file, MAX_TEXT_BYTES, lambda data: document(_decoded(name, data), name, 0)))


def _html(name: str, file: BinaryIO) -> Iterator[Later]:
    from consortium.data.readers import pages

    yield partial(whole, name, file, pages.MAX_PAGE_BYTES, lambda data: pages.page(data, name, 0, {"id": name}))


def _warc(name: str, file: BinaryIO) -> Iterator[Later]:
    from consortium.data.readers import warc

    return warc.records(name, file)


def whole(name: str, file: BinaryIO, limit: int, made: Callable[[bytes], Item]) -> Item:
    """Return what `made` makes of a file of at most `limit` bytes, or why it is not read."""
    try:
        data = file.read(limit + 1)
        if len(data) > limit:
            detail = f"more than {limit} bytes; a text has at most that many"
            return Quarantined(file=name, row=-1, reason="too_large", detail=detail)
        return made(data)
    except UnicodeDecodeError as fault:
        return Quarantined(file=name, row=-1, reason="utf8", detail=first_line(fault))
    except streams.FAULTS as fault:
        return Quarantined(file=name, row=-1, reason=reason_of(fault), detail=first_line(fault))


def _decoded(name: str, data: bytes) -> dict[str, Any]:
    return {"id": name, "text": data.decode("utf-8-sig")}


def reason_of(fault: BaseException) -> str:
    """Return the reason that a fault of reading stands for."""
    return "bomb" if isinstance(fault, streams.BombError) else "read"


def _stopped(name: str, reason: str, detail: str) -> Later:
    return _later(Quarantined(file=name, row=-1, reason=reason, detail=detail))


def _later(item: Item) -> Later:
    return lambda: item


_READERS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    ((".parquet",), _parquet),
    ((".jsonl", ".ndjson"), _jsonl),
    ((".txt", ".md", ".markdown"), _text),
    ((".html", ".htm", ".xhtml"), _html),
    ((".warc", ".wet"), _warc),
)
PLAIN = tuple(suffix for suffixes, _ in _READERS for suffix in suffixes)
SUFFIXES = tuple(
    f"{suffix}{packed}"
    for suffixes, reader in _READERS
    for suffix in suffixes
    for packed in (("",) if reader is _parquet else ("", *streams.PACKED))
)
"""How the names of files end that can be read."""
SLOW = (".html", ".htm", ".xhtml", ".warc", ".wet")
"""How the names of files end, packed or not, whose items take long enough to be timed one by one."""
