"""Readers of collections as people have them, from folders and S3: what is in them, and what could not be read.

| module    | what                                                                                                  |
|-----------|-------------------------------------------------------------------------------------------------------|
| `items`   | a document, or something quarantined with its reason; the limits                                      |
| `sources` | finding files in folders and below `s3://`, opening them, telling whether they changed                 |
| `streams` | gzip and zstd, unpacked piece by piece                                                                |
| `formats` | Parquet, JSONL, text and Markdown; which reader takes which file                                      |
| `pages`   | the main text of an HTML page                                                                         |
| `warc`    | web archives                                                                                          |
| `apart`   | the same readers in a process of its own, bounded in memory and time                                  |

Nothing raises because of a file's content, nothing is skipped in silence: every row, line, page or record of an archive
that holds content is one document or one quarantined item, and a file's unreadable rest is one more. Nothing that a
file names is fetched or executed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from consortium.data.readers.formats import read_file
from consortium.data.readers.items import Item, Quarantined
from consortium.data.readers.sources import Source, find

__all__ = ["Item", "Quarantined", "Source", "find", "read", "read_file"]


def read(paths: Iterable[str | Path]) -> Iterator[Item]:
    """Yield everything in the collections at `paths`, file by file in the order of their names, in this process.

    Raises NotFoundError for a path that is not there and UsageError where no file is found.
    """
    for source in find(list(paths)):
        yield from read_file(source)
