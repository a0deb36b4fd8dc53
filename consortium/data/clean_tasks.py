"""What workers do to clean one shard: screen it, settle it, sign it for other sites. `clean` says where all is kept.

Each looks for what an earlier run left, under a key of the content, the part of the configuration and the code that it
depends on, and leaves its marker last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from consortium.data import cluster, manifest, minhash
from consortium.data.decontaminate import EvaluationSets
from consortium.data.grouping import Reason
from consortium.data.poisoning import Observed, observe
from consortium.data.screening import Fate, screen, settle
from consortium.domain.cleaning import CleanConfig, DecontaminateConfig
from consortium.domain.codec import to_json
from consortium.errors import NotFoundError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table, write_table, write_text

_OVER_DOCUMENTS = ("dedup", "near", "quarantine", "poisoning", "across")
"""Keys of the configuration that screening a shard does not depend on."""


def screen_task(
    row: cluster.Row,
    *,
    store: ObjectStore,
    prefix: str,
    config: CleanConfig,
    sets: tuple[Sequence[str], Sequence[tuple[str, str]]],
) -> cluster.Row:
    """Screen one shard, sign and observe its candidates, each unless an earlier run did."""
    names, shards = sets
    marker = f"{prefix}/screened/{screen_key(row['digest'], row['index'], config, shards)}.json"
    candidates: pa.Table | None = None
    try:
        summary = json.loads(store.get(marker))
    except NotFoundError:
        table = read_table(store.get(row["key"], digest=row["digest"]), where=row["key"])
        evaluation = _evaluation_sets(store, names, shards, config.decontaminate) if shards else None
        found = screen(table, row["index"], config, evaluation)
        candidates = found.candidates
        rows = np.array(candidates.column("row"), dtype="<i4")
        summary = {
            "candidates": store.put_addressed(f"{prefix}/candidates", write_table(candidates), ".parquet"),
            "annotations": store.put_addressed(f"{prefix}/annotations", write_table(found.annotations), ".parquet"),
            "arrivals": store.put_addressed(f"{prefix}/sides", write_table(found.arrivals), ".arrivals"),
            "keys": store.put_addressed(f"{prefix}/sides", found.keys, ".keys"),
            "rows": store.put_addressed(f"{prefix}/sides", rows.tobytes(), ".rows"),
            "counts": to_json(found.counts),
            "before": to_json(found.before),
            "text_bytes": sum(map(len, map(str.encode, table.column("text").to_pylist()))),
        }
        store.put(marker, json.dumps(summary, sort_keys=True).encode())
    small: dict[str, Callable[[list[str]], bytes]] = {}
    if config.dedup == "near":
        small[signed_key(prefix, summary, config)] = lambda texts: minhash.sign(texts, config.near)
    if config.quarantine:
        small[observed_key(prefix, summary)] = lambda texts: _observed(texts, candidates).pack()
    for key, make in small.items():
        if not store.exists(key):
            if candidates is None:
                candidates = read_table(store.get(summary["candidates"][0], digest=summary["candidates"][1]))
            store.put(key, make(candidates.column("text").to_pylist()))
    came = sum(summary["counts"]["documents_in"].values())
    return {"index": row["index"], "documents": came, "text_bytes": summary["text_bytes"]}


def settle_task(row: cluster.Row, *, store: ObjectStore, prefix: str) -> cluster.Row:
    """Drop what goes of one screened shard because of others, and write its clean shard, unless an earlier run did."""
    why = np.frombuffer(row["why"], dtype="<i4").astype(np.int64)
    standing = np.frombuffer(row["standing"], dtype="<i8").reshape(-1, 2)
    reasons = [Reason(*reason) for reason in json.loads(row["reasons"])]
    fate = Fate(why=why, standing=standing, reasons=reasons)
    gone = [[reasons[why[at]].rule, *standing[at].tolist()] for at in np.flatnonzero(why >= 0).tolist()]
    told = {"gone": gone, "why": why.tolist(), "reasons": row["reasons"], "index": row["index"]}
    key = manifest.stage_key("settle", told, [row["candidates"][1], row["arrivals"][1]])
    marker = f"{prefix}/settled/{key}.json"
    try:
        report = json.loads(store.get(marker))
    except NotFoundError:
        candidates, arrivals = (
            read_table(store.get(address, digest=digest), where=address)
            for address, digest in (row["candidates"], row["arrivals"])
        )
        found = settle(candidates, arrivals, row["index"], fate)
        shard: dict[str, Any] = {}
        if found.table.num_rows:
            data = write_text(found.table)
            address, digest = store.put_addressed(f"{prefix}/clean", data, ".parquet")
            shard = {"key": address, "digest": digest, "size_bytes": len(data), "documents": found.table.num_rows}
        report = {
            "shard": shard,
            "annotations": store.put_addressed(f"{prefix}/annotations", write_table(found.annotations), ".parquet"),
            "index": store.put_addressed(f"{prefix}/index", write_table(found.index), ".parquet"),
            "removed": found.removed,
            "documents_out": found.documents_out,
            "chars_out": found.chars_out,
            "after": to_json(found.after),
        }
        store.put(marker, json.dumps(report, sort_keys=True).encode())
    return {"index": row["index"], "documents": len(why), "report": json.dumps(report)}


def sign_task(row: cluster.Row, *, store: ObjectStore, config: CleanConfig, key: bytes) -> cluster.Row:
    """Sign what stays of one shard's candidates with an exchange's secret key."""
    table = read_table(store.get(row["candidates"][0], digest=row["candidates"][1])).filter(
        pa.array(np.frombuffer(row["stays"], dtype=bool))
    )
    signed = minhash.sign(table.column("text").to_pylist(), config.near, key)
    return {"index": row["index"], "signed": signed, "published": json.dumps(table.column("published").to_pylist())}


_held_sets: dict[Any, EvaluationSets] = {}
"""The evaluation sets of this worker's job: read once, used for every shard."""


def _evaluation_sets(
    store: ObjectStore, names: Sequence[str], shards: Sequence[tuple[str, str]], config: DecontaminateConfig
) -> EvaluationSets:
    key = tuple(names), tuple(digest for _, digest in shards), config
    if key not in _held_sets:
        texts: dict[str, list[str]] = {}
        for name, (address, digest) in zip(names, shards, strict=True):
            texts.setdefault(name, []).extend(read_table(store.get(address, digest=digest)).column("text").to_pylist())
        _held_sets.clear()
        _held_sets[key] = EvaluationSets(texts, config)
    return _held_sets[key]


def screen_key(digest: str, index: int, config: CleanConfig, sets: Sequence[tuple[str, str]]) -> str:
    """Return what screening shard number `index` is known by; `sets` are key and digest of evaluation sets' shards."""
    one = {name: value for name, value in to_json(config).items() if name not in _OVER_DOCUMENTS}
    return manifest.stage_key("screen", {**one, "sets": [found for _, found in sets]}, [digest, str(index)])


def signed_key(prefix: str, summary: Mapping[str, Any], config: CleanConfig) -> str:
    """Return where the signatures of a screened shard are kept."""
    near = [config.near.ngram, config.near.bands, config.near.rows]
    return f"{prefix}/signed/{manifest.stage_key('sign', near, [summary['candidates'][1]])}.sig"


def observed_key(prefix: str, summary: Mapping[str, Any]) -> str:
    """Return where what the screens for poisoning need of a screened shard is kept."""
    return f"{prefix}/observed/{manifest.stage_key('observe', {}, [summary['candidates'][1]])}.seen"


def _observed(texts: Sequence[str], candidates: pa.Table | None) -> Observed:
    """Observe candidates; documents without a contributor are not judged, so theirs are passed over."""
    assert candidates is not None
    contributors, languages = (candidates.column(name).to_pylist() for name in ("contributor", "language"))
    return observe(
        [text if who else "" for text, who in zip(texts, contributors, strict=True)], contributors, languages
    )
