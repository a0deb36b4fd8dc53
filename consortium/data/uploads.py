"""How far the upload of a collection is: a journal beside the dataset's shards, so that a killed run goes on.

`datasets/NAME/uploads/WHERE-WHAT/NNNNNNNN.json` is written after shard N. WHERE stands for the paths that were given,
WHAT for what lies there (names, sizes, times of modification or ETags) and for the code that reads it. The same
input gives the same entries, so two runs at once write the same objects. Another WHAT behind the same
WHERE is a changed input.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import consortium
from consortium.data import markers
from consortium.data.readers import Source
from consortium.keys.canonical import digest, digest_json
from consortium.storage.objects import ObjectStore

_LIBRARIES = ("babel", "pyarrow", "trafilatura", "lxml", "htmldate", "justext", "fastwarc", "brotli")
_CODE = (
    "data/readers/*.py",
    "data/documents.py",
    "data/language.py",
    "data/register.py",
    "data/uploads.py",
    "storage/shards.py",
)
"""With the libraries, what decides which bytes the shards of an input have."""


class Journal:
    """The entries of one upload."""

    def __init__(
        self, store: ObjectStore, name: str, paths: Sequence[str], sources: Sequence[Source], how: Any
    ) -> None:
        self._store = store
        where = digest_json({"paths": sorted(paths), "how": how})
        found = [[source.name, source.path, source.size_bytes, source.stamp, source.problem] for source in sources]
        what = digest_json({"found": found, "code": _code()})
        self._where = f"datasets/{name}/uploads/{_short(where)}-"
        self._prefix = f"{self._where}{_short(what)}/"

    def entries(self) -> list[dict[str, Any]]:
        """Return what earlier runs left, in order, as far as it is whole and its shards are still there."""
        found: list[dict[str, Any]] = []
        while (entry := markers.recall(self._store, self._key(len(found)))) is not None:
            found.append(entry)
        return found

    def add(self, number: int, entry: dict[str, Any]) -> None:
        """Write entry `number`."""
        shard = entry["shard"]
        markers.remember(self._store, self._key(number), entry, [(shard["key"], shard["size_bytes"])] if shard else [])

    def drop_older(self) -> bool:
        """Delete the journals of the same paths with other content; True where there were any."""
        older = [key for key in self._store.list(self._where) if not key.startswith(self._prefix)]
        for key in older:
            self._store.delete(key)
        return bool(older)

    def forget(self) -> None:
        """Delete the journal: the dataset is registered."""
        for key in list(self._store.list(self._prefix)):
            self._store.delete(key)

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:08d}.json"


def _code() -> list[str]:
    root = Path(consortium.__file__).parent
    files = sorted(path for pattern in _CODE for path in root.glob(pattern))
    own = [f"{path.relative_to(root).as_posix()} {digest(path.read_bytes())}" for path in files]
    return own + [f"{library} {version(library)}" for library in _LIBRARIES]


def _short(whole: str) -> str:
    return whole.removeprefix("sha256:")[:16]
