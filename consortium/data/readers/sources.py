"""Files to read: found in folders and below `s3://bucket/prefix`, opened as streams of bytes.

Symbolic links below a folder are not followed: a contributor's folder could lead to files that nobody wants to
register. A link that is named itself is. Files and folders whose names begin with a dot are left out.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, cast

from consortium.errors import ConflictError, NotFoundError, UsageError
from consortium.storage.objects import ObjectStore

_S3 = "s3://"
_PIECE_BYTES = 4 << 20
"""Bytes of an S3 object that are asked for at a time."""
Stores = Callable[[str], ObjectStore]
"""From a bucket's name to the store that holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file, or something in its place that is not read (then `problem` says why: reason and detail)."""

    name: str
    """As people see it: its path below the folder that was given."""
    path: str
    """Its whole path, or its `s3://` address."""
    size_bytes: int = 0
    stamp: str = ""
    """What changes when the content does: time of modification in ns, or the object's ETag."""
    problem: tuple[str, str] | None = None
    store: ObjectStore | None = None
    key: str = ""

    def open(self) -> BinaryIO:
        """Open it for reading bytes; seekable. Raises OSError."""
        if self.store is not None:
            return cast(BinaryIO, io.BufferedReader(_Object(self.store, self.key, self.size_bytes), _PIECE_BYTES))
        return open(self.path, "rb", opener=_regular)

    def check(self) -> None:
        """Raise ConflictError where its content is no longer the one that was found."""
        try:
            if self.store is not None:
                size, stamp = self.store.state(self.key)
            else:
                size, stamp = _state(os.stat(self.path))
        except (OSError, NotFoundError):
            size, stamp = -1, ""
        if self.problem is None and (size, stamp) != (self.size_bytes, self.stamp):
            raise ConflictError(
                f"{self.name} changed while it was read", where=self.path, fix="run it again when nobody writes there"
            )


def find(paths: Iterable[str | Path], stores: Stores | None = None) -> list[Source]:
    """Return all files named by `paths` and below folders and prefixes among them, sorted by name.

    One that several of them lead to is found once, under the longest of its names.
    `stores` opens buckets (default: with what the AWS command line would use). Raises NotFoundError for a path that is
    not there and UsageError where no file of a known kind is found. About 0.5 kB of memory per file.
    """
    from consortium.data.readers.formats import PLAIN, SUFFIXES

    given = [str(path) for path in paths]
    lying: dict[str, Source] = {}
    for place in given:
        for source in _objects(place, stores or ObjectStore.ambient) if place.startswith(_S3) else _files(place):
            known = lying.get(source.path, source)
            lying[source.path] = max(known, source, key=lambda each: len(each.name))
    found: dict[str, Source] = {}
    for source in lying.values():
        if source.name in found:
            source = replace(source, name=source.path)
        found[source.name] = source
    if not any(source.name.lower().endswith(SUFFIXES) for source in found.values() if source.problem is None):
        kinds = sorted({source.problem[0] for source in found.values() if source.problem is not None})
        seen = f" ({len(found)} seen: {', '.join(kinds) or 'other kinds'})" if found else ""
        raise UsageError(
            f"no collection found: no file of a known kind{seen}",
            where=", ".join(given),
            fix=f"give files or folders with {', '.join(PLAIN)}; packed (.gz, .zst) or not; no links in folders",
        )
    return [found[name] for name in sorted(found)]


def _files(given: str) -> Iterator[Source]:
    if not os.path.exists(given):
        raise NotFoundError("no such file or folder", where=given, fix="check the path of the collection")
    if not os.path.isdir(given):
        yield _file(_shown(os.path.basename(given)), os.path.realpath(given))
        return
    troubles: list[OSError] = []
    base = os.path.realpath(given)
    for folder, folders, files in os.walk(base, onerror=troubles.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in sorted([*linked, *files]):
            if not name.startswith("."):
                path = os.path.join(folder, name)
                yield _file(_shown(os.path.relpath(path, base).replace(os.sep, "/")), path)
    for fault in troubles:
        path = str(fault.filename or base)
        name = _shown(os.path.relpath(path, base))
        yield Source(name=name, path=path, problem=("read", f"the folder cannot be read: {fault.strerror}"))


def _file(name: str, path: str) -> Source:
    try:
        found = os.lstat(path)
    except OSError as fault:
        return Source(name=name, path=path, problem=("read", str(fault.strerror)))
    if stat.S_ISLNK(found.st_mode):
        return Source(name=name, path=path, problem=("symlink", "a link below a folder; name its target instead"))
    if not stat.S_ISREG(found.st_mode):
        return Source(name=name, path=path, problem=("format", "not a regular file"))
    size, stamp = _state(found)
    return Source(name=name, path=path, size_bytes=size, stamp=stamp)


def _state(found: os.stat_result) -> tuple[int, str]:
    return found.st_size, str(found.st_mtime_ns)


def _regular(path: str, flags: int) -> int:
    """Open a file that was no link when it was found; a pipe put in its place does not make us wait."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _shown(name: str) -> str:
    """Return a file name as UTF-8 text: file systems allow any bytes."""
    return os.fsencode(name).decode("utf-8", "replace")


def _objects(given: str, stores: Stores) -> Iterator[Source]:
    bucket, _, prefix = given.removeprefix(_S3).partition("/")
    if not bucket:
        raise UsageError("no bucket is named", where=given, fix="write s3://bucket/prefix")
    store = stores(bucket)
    seen = False
    for entry in store.entries(prefix):
        inside = prefix == "" or prefix.endswith("/") or entry.key == prefix or entry.key[len(prefix)] == "/"
        if not inside:  # `laws` is a folder or an object, and not the beginning of `laws-old`
            continue
        seen = True
        folder = prefix if entry.key != prefix else prefix.rpartition("/")[0]
        name = entry.key[len(folder) :].lstrip("/")
        if name and not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
            path = f"{_S3}{bucket}/{entry.key}"
            if any(part in ("", ".", "..") for part in entry.key.split("/")):
                yield Source(name=name, path=path, problem=("format", "a key with empty or dot segments"))
                continue
            yield Source(name=name, path=path, size_bytes=entry.size, stamp=entry.etag, store=store, key=entry.key)
    if not seen:
        raise NotFoundError("no such object or prefix", where=given, fix="check bucket, prefix and --endpoint")


class _Object(io.RawIOBase):
    """An S3 object as a seekable stream; every read asks for a range of it."""

    def __init__(self, store: ObjectStore, key: str, size: int) -> None:
        self._store, self._key, self._size, self._at = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader hands in
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = self._store.get_range(self._key, self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
