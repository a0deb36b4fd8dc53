"""`clean` on Ray Data: screen every shard, find duplicates over the whole dataset, write what stays.

Everything is written under the leg's prefix of the private store and keyed by content, configuration and code:

    <prefix>/screened/<input shard + config + code>.json   summary of a screened shard; marks it done
    <prefix>/candidates/<sha256>.parquet                   its candidates, until duplicates are known
    <prefix>/annotations/<sha256>.parquet                  what was removed or edited, and why; never leaves
    <prefix>/clean/<sha256>.parquet                        clean shards
    <prefix>/manifests/<sha256>.json
    <prefix>/done/<inputs + config + code>.json            the completion marker

So a run that was killed anywhere goes on where it was and gives the same bytes. A worker holds one shard.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from consortium.data import cluster, dedup, manifest
from consortium.data.counts import Counts, total
from consortium.data.progress import Progress
from consortium.data.screening import CleanConfig, screen, settle
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset, Shard
from consortium.errors import NotFoundError, UsageError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table, write_table, write_text


def clean_dataset(
    dataset: Dataset, config: CleanConfig, store: ObjectStore, prefix: str, *, progress: Progress | None = None
) -> manifest.Stage:
    """Clean one dataset on the connected Ray cluster; output `clean` of the returned stage are the clean shards.

    Raises ConfigError for unknown languages, VerificationError where a shard's bytes are not those registered,
    UsageError where no document is left.
    """
    config = replace(config, languages=tuple(sorted(config.languages or dataset.languages)))
    config.judges()
    key = manifest.stage_key("clean", to_json(config), [shard.digest for shard in dataset.shards])
    marker = f"{prefix}/done/clean-{key}.json"
    done = manifest.finished(store, marker)
    if done is not None:
        return done
    rows = [{"index": i, "key": shard.key, "digest": shard.digest} for i, shard in enumerate(dataset.shards)]
    arguments = {"store": store, "prefix": prefix, "config": config}
    screened = cluster.each(screen_task, rows, arguments, phase="screen", progress=progress)
    settled = cluster.each(
        settle_task,
        _settle_rows(screened, config),
        {"store": store, "prefix": prefix},
        phase="settle",
        progress=progress,
    )
    stage = _seal(dataset, config, store, prefix, screened, settled)
    manifest.mark_done(store, marker, stage)
    return stage


def screen_task(row: cluster.Row, *, store: ObjectStore, prefix: str, config: CleanConfig) -> cluster.Row:
    """Screen one shard, unless an earlier run did: returns its summary and its candidates' keys."""
    key = manifest.stage_key("screen", to_json(config), [row["digest"], str(row["index"])])
    marker = f"{prefix}/screened/{key}.json"
    try:
        summary = json.loads(store.get(marker))
        candidates = read_table(store.get(summary["candidates"], digest=summary["candidates_digest"]))
        keys = b"".join(dedup.key(text) for text in candidates.column("text").to_pylist())
    except NotFoundError:
        table = read_table(store.get(row["key"], digest=row["digest"]), where=row["key"])
        found = screen(table, row["index"], config)
        keys = found.keys
        address, digest = store.put_addressed(f"{prefix}/candidates", write_table(found.candidates), ".parquet")
        notes, notes_digest = store.put_addressed(f"{prefix}/annotations", write_table(found.annotations), ".parquet")
        summary = {
            "counts": to_json(found.counts),
            "candidates": address,
            "candidates_digest": digest,
            "annotations": notes,
            "annotations_digest": notes_digest,
        }
        store.put(marker, json.dumps(summary, sort_keys=True).encode())
    return {"index": row["index"], "summary": json.dumps(summary), "keys": keys}


def settle_task(row: cluster.Row, *, store: ObjectStore, prefix: str) -> cluster.Row:
    """Drop one screened shard's duplicates and write its clean shard."""
    candidates = read_table(store.get(row["candidates"], digest=row["candidates_digest"]), where=row["candidates"])
    survivors = np.frombuffer(row["survivors"], dtype="<i8")
    found = settle(candidates, row["index"], row["own_start"], survivors)
    notes, notes_digest = store.put_addressed(f"{prefix}/annotations", write_table(found.annotations), ".parquet")
    shard: dict[str, Any] = {}
    if found.table.num_rows:
        data = write_text(found.table)
        key, digest = store.put_addressed(f"{prefix}/clean", data, ".parquet")
        shard = {"key": key, "digest": digest, "size_bytes": len(data), "documents": found.table.num_rows}
    report = {
        "shard": shard,
        "annotations": notes,
        "annotations_digest": notes_digest,
        "removed": found.removed,
        "documents_out": found.documents_out,
        "chars_out": found.chars_out,
    }
    return {"index": row["index"], "report": json.dumps(report)}


def _settle_rows(screened: list[cluster.Row], config: CleanConfig) -> list[cluster.Row]:
    keys = [bytes(row["keys"]) for row in screened]
    starts = np.cumsum([0, *(len(part) // dedup.KEY_BYTES for part in keys)])
    if config.dedup == "exact":
        chosen = dedup.survivors(keys)
    else:
        chosen = [np.arange(starts[i], starts[i + 1]) for i in range(len(keys))]
    rows = []
    for row, start, survivors in zip(screened, starts[:-1], chosen, strict=True):
        summary = json.loads(row["summary"])
        rows.append(
            {
                "index": int(row["index"]),
                "candidates": summary["candidates"],
                "candidates_digest": summary["candidates_digest"],
                "own_start": int(start),
                "survivors": survivors.astype("<i8").tobytes(),
            }
        )
    return rows


def _seal(
    dataset: Dataset,
    config: CleanConfig,
    store: ObjectStore,
    prefix: str,
    screened: list[cluster.Row],
    settled: list[cluster.Row],
) -> manifest.Stage:
    summaries = [json.loads(row["summary"]) for row in screened]
    reports = [json.loads(row["report"]) for row in settled]
    parts = []
    for summary, report in zip(summaries, reports, strict=True):
        before = from_json(Counts, summary["counts"], where="screened shard")
        parts.append(
            replace(
                before,
                documents_out=report["documents_out"],
                removed={**before.removed, **report["removed"]},
                chars_out=report["chars_out"],
            ).check()
        )
    counts = total(parts).check()
    shards = tuple(from_json(Shard, report["shard"]) for report in reports if report["shard"])
    if not shards:
        raise UsageError(
            f"the rules remove all {counts.total_in} documents of {dataset.name}",
            where=", ".join(f"{rule}: {counts.removed_by(rule)}" for rule in counts.removed),
            fix="loosen the rules, or check that `languages` names the collection's language",
        )
    return manifest.seal_stage(
        store,
        prefix,
        {"clean": shards},
        {
            "stage": "clean",
            "inputs": [manifest.describe(dataset)],
            "config": to_json(config),
            "counts": to_json(counts),
            "annotations": [part["annotations_digest"] for part in (*summaries, *reports)],
        },
    )


def read_annotations(stage: manifest.Stage, store: ObjectStore, prefix: str) -> pa.Table:
    """Return all annotations of a finished clean stage as one table, for those at home."""
    digests = [str(digest).removeprefix("sha256:") for digest in stage.manifest["annotations"]]
    return pa.concat_tables(read_table(store.get(f"{prefix}/annotations/{hexed}.parquet")) for hexed in digests)
