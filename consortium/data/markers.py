"""Markers: what an earlier run made under a key, so that the next one does not make it again.

A marker carries its own digest, and key and size of every object it stands for. One that was cut or changed, or of
whose objects one is gone or has another size, counts for nothing: what it stands for is made anew. Bytes that were
changed in their place are found by whoever reads them (`work_object`), who deletes the object: so the next run finds
the marker without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from consortium.errors import NotFoundError, VerificationError
from consortium.keys.canonical import canonical, digest_json
from consortium.storage.objects import Addressed, ObjectStore

Objects = Sequence[tuple[str, int]]
"""Key and size in bytes of each."""
_AGAIN = "run the job again: it is made anew"


class Made:
    """Where one entry's objects are written: the store, which notes key and size of each."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self.objects: list[tuple[str, int]] = []

    def put_addressed(self, prefix: str, data: bytes, suffix: str = "") -> Addressed:
        """Write `data` as `ObjectStore.put_addressed` does."""
        found = self._store.put_addressed(prefix, data, suffix)
        self.objects.append((found.key, len(data)))
        return found


def once(store: ObjectStore, key: str, make: Callable[[Made], dict[str, Any]]) -> dict[str, Any]:
    """Return what an earlier run remembered under `key`, as far as it is still whole, else make and remember it."""
    entry: dict[str, Any] | None = recall(store, key)
    if entry is None:
        made = Made(store)
        entry = make(made)
        remember(store, key, entry, made.objects)
        entry = json.loads(canonical(entry))
    return dict(entry)


def remember(store: ObjectStore, key: str, entry: Any, objects: Objects) -> None:
    """Write a marker: what was made, and the objects it stands for, which must have been written before."""
    told = {"entry": entry, "objects": [list(each) for each in objects]}
    store.put(key, canonical({**told, "digest": digest_json(told)}))


def recall(store: ObjectStore, key: str, *, look: bool = True) -> Any:
    """Return what a marker says; None where there is none that holds.

    `look` asks the store for every object it stands for; who has just been told that they are there may spare that.
    """
    try:
        told = json.loads(store.get(key))
        if told.pop("digest") != digest_json(told):
            return None
        entry, objects = told["entry"], told["objects"]
    except (NotFoundError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return entry if not look or all(store.holds(each, size) for each, size in objects) else None


def work_object(store: ObjectStore, key: str, digest: str) -> bytes:
    """Return an object that a marker stands for. Raises as `reading` does."""
    with reading(store, key):
        return store.get(key, digest=digest)


@contextmanager
def reading(store: ObjectStore, key: str) -> Iterator[None]:
    """Say of a work object that is gone or damaged that the next run makes it anew; a damaged one is deleted for that.

    Raises NotFoundError and VerificationError.
    """
    try:
        yield
    except NotFoundError as fault:
        raise NotFoundError(f"what an earlier step left is gone: {fault.what}", where=key, fix=_AGAIN) from fault
    except VerificationError as fault:
        store.delete(key)
        raise VerificationError(f"{fault.what}; the object was deleted", where=key, fix=_AGAIN) from fault
