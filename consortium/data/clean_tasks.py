"""What workers do to clean one shard: screen it, settle it, sign it for other sites. `clean` says where all is kept.

Each looks for what an earlier run left, under a key of the content, the part of the configuration and the code that it
depends on, and leaves its marker last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from consortium.data import cluster, manifest, markers, minhash
from consortium.data.decontaminate import EvaluationSets
from consortium.data.grouping import Reason
from consortium.data.markers import Made, work_object
from consortium.data.poisoning import Observed, observe
from consortium.data.screening import Fate, screen, settle
from consortium.domain.cleaning import CleanConfig, DecontaminateConfig
from consortium.domain.codec import to_json
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table, write_table, write_text

_OVER_DOCUMENTS = ("dedup", "near", "quarantine", "poisoning", "across")
"""Keys of the configuration that screening a shard does not depend on."""


def screen_task(
    row: cluster.Row,
    *,
    store: ObjectStore,
    work: str,
    config: CleanConfig,
    sets: tuple[Sequence[str], Sequence[tuple[str, str]]],
) -> cluster.Row:
    """Screen one shard, sign and observe its candidates, each unless an earlier run did."""
    names, shards = sets
    held: list[pa.Table] = []

    def screened(made: Made) -> dict[str, Any]:
        table = read_table(store.get(row["key"], digest=row["digest"]), where=row["key"])
        evaluation = _evaluation_sets(store, names, shards, config.decontaminate) if shards else None
        found = screen(table, row["index"], config, evaluation)
        held.append(found.candidates)
        rows = np.array(found.candidates.column("row"), dtype="<i4")
        return {
            "candidates": made.put_addressed(f"{work}/candidates", write_table(found.candidates), ".parquet"),
            "annotations": made.put_addressed(f"{work}/sides", write_table(found.annotations), ".parquet"),
            "arrivals": made.put_addressed(f"{work}/sides", write_table(found.arrivals), ".arrivals"),
            "keys": made.put_addressed(f"{work}/sides", found.keys, ".keys"),
            "rows": made.put_addressed(f"{work}/sides", rows.tobytes(), ".rows"),
            "counts": to_json(found.counts),
            "before": to_json(found.before),
            "text_bytes": sum(map(len, map(str.encode, table.column("text").to_pylist()))),
        }

    summary = markers.once(store, screened_key(work, row["digest"], row["index"], config, sets), screened)

    def candidates() -> pa.Table:
        if not held:
            held.append(read_table(work_object(store, *summary["candidates"])))
        return held[0]

    def signed(made: Made) -> dict[str, Any]:
        data = minhash.sign(candidates().column("text").to_pylist(), config.near)
        return {"found": made.put_addressed(f"{work}/sides", data, ".sig")}

    def observed(made: Made) -> dict[str, Any]:
        return {"found": made.put_addressed(f"{work}/sides", _observed(candidates()).pack(), ".seen")}

    if config.dedup == "near":
        markers.once(store, signed_key(work, summary, config), signed)
    if config.quarantine:
        markers.once(store, observed_key(work, summary), observed)
    came = sum(summary["counts"]["documents_in"].values())
    return {"index": row["index"], "documents": came, "text_bytes": summary["text_bytes"]}


def settle_task(row: cluster.Row, *, store: ObjectStore, prefix: str) -> cluster.Row:
    """Drop what goes of one screened shard because of others, and write its clean shard, unless an earlier run did."""
    why = np.frombuffer(row["why"], dtype="<i4").astype(np.int64)
    standing = np.frombuffer(row["standing"], dtype="<i8").reshape(-1, 2)
    reasons = [Reason(*reason) for reason in json.loads(row["reasons"])]

    def settled(made: Made) -> dict[str, Any]:
        candidates, arrivals = (
            read_table(work_object(store, address, digest), where=address)
            for address, digest in (row["candidates"], row["arrivals"])
        )
        found = settle(candidates, arrivals, row["index"], Fate(why=why, standing=standing, reasons=reasons))
        shard: dict[str, Any] = {}
        if found.table.num_rows:
            data = write_text(found.table)
            address, digest = made.put_addressed(f"{prefix}/clean", data, ".parquet")
            shard = {"key": address, "digest": digest, "size_bytes": len(data), "documents": found.table.num_rows}
        screening = work_object(store, *row["annotations"])
        notes = (screening, write_table(found.annotations))
        return {
            "shard": shard,
            "annotations": [made.put_addressed(f"{prefix}/annotations", note, ".parquet").digest for note in notes],
            "index": made.put_addressed(f"{prefix}/index", write_table(found.index), ".parquet").digest,
            "removed": found.removed,
            "documents_out": found.documents_out,
            "chars_out": found.chars_out,
            "after": to_json(found.after),
        }

    gone = np.flatnonzero(why >= 0).tolist()
    told = {
        "why": why.tolist(),
        "standing": [standing[at].tolist() for at in gone],
        "reasons": row["reasons"],
        "index": row["index"],
    }
    inputs = [row[name][1] for name in ("candidates", "arrivals", "annotations")]
    key = manifest.stage_key("settle", told, inputs)
    report = markers.once(store, f"{prefix}/settled/{key}.json", settled)
    return {"index": row["index"], "report": json.dumps(report)}  # no count: with the input's it would tell small cells


def sign_task(row: cluster.Row, *, store: ObjectStore, config: CleanConfig, key: bytes) -> cluster.Row:
    """Sign what stays of one shard's candidates with an exchange's secret key."""
    table = read_table(work_object(store, *row["candidates"])).filter(pa.array(np.frombuffer(row["stays"], dtype=bool)))
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


def screened_key(
    work: str,
    digest: str,
    index: int,
    config: CleanConfig,
    sets: tuple[Sequence[str], Sequence[tuple[str, str]]],
) -> str:
    """Return the marker of screening shard number `index`; `sets` are evaluation sets' names, keys and digests."""
    names, shards = sets
    one = {name: value for name, value in to_json(config).items() if name not in _OVER_DOCUMENTS}
    known = {**one, "sets": [[name, found] for name, (_, found) in zip(names, shards, strict=True)]}
    return f"{work}/screened/{manifest.stage_key('screen', known, [digest, str(index)])}.json"


def signed_key(work: str, summary: Mapping[str, Any], config: CleanConfig) -> str:
    """Return the marker of signing a screened shard."""
    near = [config.near.ngram, config.near.bands, config.near.rows]
    return f"{work}/signed/{manifest.stage_key('sign', near, [summary['candidates'][1]])}.json"


def observed_key(work: str, summary: Mapping[str, Any]) -> str:
    """Return the marker of observing a screened shard for poisoning."""
    return f"{work}/observed/{manifest.stage_key('observe', {}, [summary['candidates'][1]])}.json"


def _observed(candidates: pa.Table) -> Observed:
    """Observe candidates; documents without a contributor are not judged, so theirs are passed over."""
    texts, contributors, languages = (
        candidates.column(name).to_pylist() for name in ("text", "contributor", "language")
    )
    return observe(
        [text if who else "" for text, who in zip(texts, contributors, strict=True)], contributors, languages
    )
