"""How vectors lie in the private store: under keys that hold their SHA-256, named by a JSON object written last.

So what a pointer names is there, and a vector whose bytes changed is found when it is read. Which pointers there are is
said in `consortium.train.keep`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from consortium.domain.codec import from_json, to_json
from consortium.errors import UsageError, VerificationError
from consortium.train.outer import Layout, Moments, Vector, from_bytes, to_bytes, vector_digest
from consortium.train.sharded import Each, Holding, Sharded, as_vector, cut, placed
from consortium.train.shared import Sharing

if TYPE_CHECKING:
    from consortium.storage.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class Blob:
    """A stored vector."""

    key: str
    """Empty where it is kept in parts."""
    digest: str
    """Of its bytes; empty where it is kept in parts and was not needed."""
    parts: tuple[Blob, ...] = ()
    """One behind the other they are the vector: each was written by one of the ranks that held it."""
    size: int = 0
    """Elements, of a part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a stored state belongs to, enough to rebuild the model from it."""

    model: dict[str, Any]
    vocab_size: int
    tokenizer_digest: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    document_end: int | None = None
    """The token at which attention stopped in training; None: it went on over the end of documents."""
    optimizer: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By vector of the inner optimiser's state the parameters that it is of, in order."""
    source: str = ""
    """Package, version and digest of the plug-in that computed it; empty: the decoder of this package."""

    @property
    def layout(self) -> Layout:
        """Where each parameter lies."""
        return Layout(self.names, self.shapes)

    @property
    def sharing(self) -> Sharing:
        """What crosses where sites share their inner optimisers' states."""
        return Sharing(self.layout, self.optimizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointer:
    """The JSON object that names the vectors of a state or a contribution."""

    round: int
    position: int
    tokens: int
    vector: Blob
    residual: Blob | None = None
    momentum: Blob | None = None
    local: Blob | None = None
    optimizer: dict[str, Blob] = field(default_factory=dict)
    """The optimiser's vectors by name, after `adam_steps` steps of it; empty where it took none."""
    adam_steps: int = 0
    first: Blob | None = None
    second: Blob | None = None
    """AdamW's vectors as they were named when there was no other optimiser: read, no longer written."""
    previous_outer: str = ""
    norm: str = ""
    loss: str = ""
    steps: int = 0
    train_ms: int = 0
    ahead_tokens: int = 0
    """Of an outer state: what the site did of the next round, beside `local`, `steps`, `train_ms` and `loss`."""
    ahead_position: int = 0
    thinned: bool = False
    """Whether there was more, which is no longer kept."""
    origin: Origin | None = None


class Shelf:
    """Pointers and vectors of one job in the private store."""

    def __init__(self, store: ObjectStore, job: str, holders: Holding | None = None) -> None:
        self._store = store
        self._root = f"jobs/{job}"
        self.holders = holders
        """Who holds vectors in slices, and writes and reads them; None where they are whole in this process."""

    def _put(self, prefix: str, data: bytes, suffix: str = ".f32", *, digest: str = "") -> Blob:
        stored = self._store.put_addressed(prefix, data, suffix, digest=digest)
        return Blob(stored.key, stored.digest)

    def _put_vector(self, prefix: str, vector: Vector, digest: str = "") -> Blob:
        if not isinstance(vector, Sharded):
            return self._put(prefix, to_bytes(vector), digest=digest)
        parts = vector.holders.map(_put_slice, self._store, prefix, vector)
        return Blob("", digest, tuple(part for part in parts if part.size))

    def _put_residual(self, prefix: str, residual: Vector | None) -> Blob | None:
        return None if residual is None else self._put_vector(prefix, residual)

    def _put_moments(self, prefix: str, moments: Moments | None) -> dict[str, Blob]:
        vectors = moments.vectors if moments is not None else {}
        return {name: self._put_vector(prefix, vectors[name]) for name in sorted(vectors)}

    def _vector(self, blob: Blob, size: int | None) -> Vector:
        """Return a stored vector of that size, or of any, each part held against its digest.

        Raises as the store does, or VerificationError.
        """
        if not blob.parts:
            data = self._store.get(blob.key, digest=blob.digest)
            return placed(from_bytes(data, len(data) // 4 if size is None else size, what=blob.key), self.holders)
        found, parts = sum(part.size for part in blob.parts), blob.parts
        if found != (size := found if size is None else size):
            raise VerificationError(f"the parts of a vector have {found} elements, the model needs {size}")
        if self.holders is None:
            vector = _read(self._store, parts, 0, size)
        else:
            edges = [one[0] if one else (size, size) for one in cut(size, self.holders.world)]
            firsts, lasts = (Each(values) for values in zip(*edges, strict=True))
            vector = as_vector(self.holders.map(_read, self._store, parts, firsts, lasts))
        if blob.digest and vector_digest(vector) != blob.digest:
            raise VerificationError(f"the parts of a vector do not hash to {blob.digest}", where=blob.parts[0].key)
        return vector

    def _moments(self, pointer: Pointer) -> Moments | None:
        """Return the optimiser's state; whether its vectors have the right lengths is the optimiser's to say."""
        named = pointer.optimizer or _old_names(pointer)
        if not named:
            return None
        return Moments({name: self._vector(blob, None) for name, blob in sorted(named.items())}, pointer.adam_steps)

    def _put_json(self, key: str, value: Any) -> None:
        self._store.put(key, json.dumps(to_json(value), sort_keys=True).encode())

    def _json(self, key: str) -> Any:
        try:
            return json.loads(self._store.get(key))
        except ValueError as fault:
            raise VerificationError(f"not readable as JSON: {fault}", where=key) from fault

    def _pointer(self, key: str) -> Pointer:
        try:
            return from_json(Pointer, self._json(key), where=key)
        except UsageError as fault:
            raise VerificationError(fault.what, where=key) from fault

    def _delete(self, keys: Iterable[str]) -> None:
        for key in sorted(keys):
            self._store.delete(key)


def _old_names(pointer: Pointer) -> dict[str, Blob]:
    if pointer.first is None or pointer.second is None:
        return {}
    return {"exp_avg": pointer.first, "exp_avg_sq": pointer.second}


def blobs(pointer: Pointer) -> list[str]:
    """The keys of the vectors that a pointer names."""
    return [part.key for part in leaves(pointer)]


def leaves(pointer: Pointer) -> list[Blob]:
    """The vectors that a pointer names, or the parts that they are kept in."""
    own = (pointer.vector, pointer.residual, pointer.momentum, pointer.local)
    named = (*own, pointer.first, pointer.second, *pointer.optimizer.values())
    return [part for blob in named if blob is not None for part in blob.parts or (blob,)]


def _put_slice(store: ObjectStore, prefix: str, slice_: Vector) -> Blob:
    if not len(slice_):
        return Blob("", "")
    stored = store.put_addressed(prefix, to_bytes(slice_), ".f32")
    return Blob(stored.key, stored.digest, size=len(slice_))


def _read(store: ObjectStore, parts: Sequence[Blob], first: int, last: int) -> Vector:
    """Return the elements from `first` up to `last` of a vector in parts, reading those that have some of them."""
    vector = np.empty(last - first, dtype=np.float32)
    begin = 0
    for part in parts:
        start, stop = max(begin, first), min(begin + part.size, last)
        if start < stop:
            data = store.get(part.key, digest=part.digest)
            vector[start - first : stop - first] = from_bytes(data, part.size, what=part.key)[
                start - begin : stop - begin
            ]
        begin += part.size
    return vector
