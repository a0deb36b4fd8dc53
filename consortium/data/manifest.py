"""What a stage did, as one JSON document: inputs, outputs, configuration, code, counts. It names no text."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import consortium
from consortium.data import markers
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset, Shard
from consortium.keys.canonical import canonical, digest, digest_json
from consortium.storage.objects import ObjectStore

FORMAT = 1
_LIBRARIES = ("ftfy", "phonenumbers", "py3langid", "pyarrow", "python-stdnum", "tokenizers")
"""Those whose version decides what stays, or its bytes."""


@lru_cache(maxsize=1)
def stage_code() -> str:
    """Return the digest of the code a stage's output depends on: this room, the shard formats, their libraries."""
    root = Path(consortium.__file__).parent
    room = root / "data"
    others = [root / "storage" / "shards.py", root / "domain" / "cleaning.py"]
    files = sorted([*room.rglob("*.py"), *room.rglob("*.yaml"), *others])
    versions = [("Unicode", unicodedata.unidata_version), *((name, version(name)) for name in _LIBRARIES)]
    whole = hashlib.sha256("".join(f"{name} {number}\n" for name, number in versions).encode())
    for path in files:
        whole.update(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(root).as_posix()}\n".encode())
    return "sha256:" + whole.hexdigest()


def stage_key(stage: str, config: Any, inputs: Sequence[str]) -> str:
    """Return 32 hex digits that stand for one computation: stage, code, configuration and input digests."""
    value = {"stage": stage, "code": stage_code(), "config": config, "inputs": list(inputs), "format": FORMAT}
    return digest_json(value).removeprefix("sha256:")[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A finished stage on one dataset: its outputs by name, what is kept at home beside them, and the manifest."""

    outputs: dict[str, tuple[Shard, ...]]
    manifest: dict[str, Any]
    manifest_digest: str
    manifest_key: str


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return how a manifest names an input."""
    return {"id": dataset.id, "name": dataset.name, "shards": [shard.digest for shard in dataset.shards]}


def seal_stage(
    store: ObjectStore, prefix: str, outputs: dict[str, tuple[Shard, ...]], manifest: dict[str, Any]
) -> Stage:
    """Store the manifest under its digest and return the finished stage."""
    whole = {
        **manifest,
        "format": FORMAT,
        "code": stage_code(),
        "outputs": {name: [_line(shard) for shard in shards] for name, shards in sorted(outputs.items())},
    }
    data = canonical(whole)
    key, found = store.put_addressed(f"{prefix}/manifests", data, ".json")
    assert found == digest(data)
    return Stage(outputs=outputs, manifest=json.loads(data), manifest_digest=found, manifest_key=key)


def mark_done(store: ObjectStore, key: str, stage: Stage) -> None:
    """Write the completion marker: the last thing a stage writes."""
    shards = [(shard.key, shard.size_bytes) for found in stage.outputs.values() for shard in found]
    manifest = (stage.manifest_key, len(canonical(stage.manifest)))
    markers.remember(store, key, to_json(stage), [*shards, manifest])


def finished(store: ObjectStore, key: str) -> Stage | None:
    """Return what an earlier run of the same computation left, or None where it, or a part of it, is not there."""
    entry = markers.recall(store, key)
    return None if entry is None else from_json(Stage, entry, where=key)


def _line(shard: Shard) -> dict[str, Any]:
    line: dict[str, Any] = to_json(shard)
    return {name: line[name] for name in ("digest", "size_bytes", "documents", "tokens")}
