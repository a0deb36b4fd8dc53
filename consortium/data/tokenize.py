"""`tokenize`: count words at home, agree on one tokenizer between sites, write shuffled token shards at home.

All is written under the leg's prefix of the private store:

    <prefix>/tokenizers/<sha256>.json
    <prefix>/runs/<inputs + config + code>/                what the two passes hand on; gone when the stage is done
    <prefix>/tokens/<sha256>.tokens, heldout/...           token shards
    <prefix>/index/<sha256>.parquet                        per token shard, where its documents come from
    <prefix>/manifests/<sha256>.json
    <prefix>/done/tokenize-<inputs + config + code>.json   the completion marker

A run that was killed anywhere goes on where it was and gives the same bytes. A worker holds one text shard, or one
token shard and what is read for it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from consortium.data import bpe, cluster, encode, lineage, manifest, markers, shuffle, words
from consortium.data.exchange import PATIENCE_S, Exchange
from consortium.data.progress import Advance, Progress
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import ArtifactClass, Dataset, Shard
from consortium.domain.tokenizing import TokenizeConfig
from consortium.errors import NotFoundError, VerificationError
from consortium.keys.canonical import canonical
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import join_tokens, read_table, token_width

COUNTS = "word-counts"
TOPIC = "tokenizer"
_WAVE = 128
"""Shards whose answers the driver holds at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The common tokenizer as it lies in this site's private store."""

    key: str
    digest: str
    size: int

    def attributes(self) -> dict[str, str]:
        """What token datasets carry of it."""
        return {
            "tokenizer_key": self.key,
            "tokenizer_digest": self.digest,
            "vocab_size": str(self.size),
            "eos": str(bpe.EOS_ID),
        }


def count_datasets(
    datasets: Sequence[Dataset], config: TokenizeConfig, store: ObjectStore, *, progress: Progress | None = None
) -> dict[str, int]:
    """Count the words of all training documents of `datasets` on the connected cluster; thresholded.

    A held-out dataset has none.
    """
    shards = [shard for dataset in datasets if not dataset.held_out for shard in dataset.shards]
    arguments = {"store": store, "config": config}
    tally = words.Tally()
    for row in _waves(count_task, _rows(shards), arguments, "count", progress):
        tally.add(words.Tally(*(Counter(json.loads(row[name])) for name in ("times", "documents_with"))))
    return words.threshold(tally, config)


def count_task(row: cluster.Row, *, store: ObjectStore, config: TokenizeConfig) -> cluster.Row:
    """Count the words of one shard's training documents, as JSON."""
    table = read_table(store.get(row["key"], digest=row["digest"])).select(["text"])
    texts = table.column("text").to_pylist()
    training = (text for text in texts if not words.is_held_out(text, config.held_out_percent))
    tally = words.count(training, config)
    return {
        "index": row["index"],
        "times": json.dumps(tally.times, ensure_ascii=False),
        "documents_with": json.dumps(tally.documents, ensure_ascii=False),
        "documents": len(texts),
        "text_bytes": _text_bytes(table),
    }


def agree_on_tokenizer(
    own: Mapping[str, int],
    site: str,
    peers: Sequence[str],
    exchange: Exchange,
    config: TokenizeConfig,
) -> bytes:
    """Exchange counts with all peers, train on their sum, and return the tokenizer once all hold the same.

    Raises VerificationError where a peer's counts are not what may be sent or its tokenizer differs, UnreachableError
    where a peer stays silent.
    """
    others = sorted(set(peers) - {site})
    packed = words.pack(own)
    if others:
        exchange.send(ArtifactClass.STATISTIC, COUNTS, packed)
    received = exchange.wait_for(COUNTS, 0, others, PATIENCE_S) if others else {}
    parts = {sender: words.unpack(data, sender, config) for sender, data in received.items()}
    tokenizer = bpe.train(words.merge({**parts, site: own}), config.vocab_size)
    exchange.wait_agreement(TOPIC, bpe.tokenizer_digest(tokenizer), PATIENCE_S)
    return tokenizer


def keep_tokenizer(tokenizer: bytes, store: ObjectStore, prefix: str) -> Vocabulary:
    """Store the tokenizer at home under its digest."""
    key, digest = store.put_addressed(f"{prefix}/tokenizers", tokenizer, ".json")
    return Vocabulary(key=key, digest=digest, size=bpe.load(tokenizer).get_vocab_size())


def tokenize_dataset(
    dataset: Dataset,
    vocabulary: Vocabulary,
    config: TokenizeConfig,
    store: ObjectStore,
    prefix: str,
    *,
    progress: Progress | None = None,
) -> manifest.Stage:
    """Write token shards of one dataset on the connected cluster: outputs `tokens` and `heldout` of the stage.

    The documents of each split stand in the order of `shuffle.order_of` over the whole dataset; the manifest's `index`
    names, per split and shard, what leads back from them (`lineage`).
    """
    whole = {**to_json(config), "tokenizer": vocabulary.digest}
    key = manifest.stage_key("tokenize", whole, [shard.digest for shard in dataset.shards])
    marker, runs = f"{prefix}/done/tokenize-{key}.json", f"{prefix}/runs/{key}"
    stage = manifest.finished(store, marker)
    if stage is None:
        try:
            stage = _tokenized(dataset, vocabulary, config, whole, store, prefix, runs, progress)
        except NotFoundError:
            stage = manifest.finished(store, marker)  # another run of the same finished meanwhile and cleaned up
            if stage is None:
                raise
        manifest.mark_done(store, marker, stage)
    for left in list(store.list(f"{runs}/")):
        store.delete(left)
    return stage


def _tokenized(
    dataset: Dataset,
    vocabulary: Vocabulary,
    config: TokenizeConfig,
    whole: Mapping[str, Any],
    store: ObjectStore,
    prefix: str,
    runs: str,
    progress: Progress | None,
) -> manifest.Stage:
    buckets = shuffle.buckets_for(dataset.size_bytes, config.shard_tokens)  # compressed, a byte is about one token
    arguments = {"store": store, "runs": runs, "config": config, "vocabulary": vocabulary, "buckets": buckets}
    found = {split: _Split(store, runs, split, buckets) for split in encode.SPLITS}
    chars = 0
    for row in _waves(encode_task, _rows(dataset.shards), arguments, "encode", progress):
        summary = json.loads(row["summary"])
        chars += summary["chars"]
        for split, one in found.items():
            one.add(summary["runs"].get(split))
    sources = [shard.digest for shard in dataset.shards]
    rows = [row for one in found.values() for row in one.rows(config.shard_tokens, sources)]
    arguments = {"store": store, "runs": runs, "prefix": prefix, "vocabulary": vocabulary}
    reports = [
        json.loads(row["report"])
        for row in _waves(
            shuffle_task, [{**row, "index": i} for i, row in enumerate(rows)], arguments, "shuffle", progress
        )
    ]
    written = {split: [r for r in reports if r["split"] == split and r["shard"]] for split in encode.SPLITS}
    outputs = {split: tuple(from_json(Shard, r["shard"]) for r in part) for split, part in written.items()}
    documents = sum(shard.documents for shards in outputs.values() for shard in shards)
    if documents != dataset.documents:
        raise VerificationError(
            f"{dataset.documents} documents went in and {documents} came out of the shuffle",
            where=dataset.id,
            fix="this is a fault of the program; keep the store as it is and report it",
        )
    home = {"version": dataset.version, "site": dataset.site, "territory": dataset.territory}
    return manifest.seal_stage(
        store,
        prefix,
        outputs,
        {
            "stage": "tokenize",
            "inputs": [{**manifest.describe(dataset), **home, "licence": dataset.licence}],
            "config": whole,
            "index": {split: [r["index"] for r in part] for split, part in written.items()},
            "counts": {
                "documents_in": dataset.documents,
                **{f"documents_{split}": sum(shard.documents for shard in outputs[split]) for split in outputs},
                **{f"tokens_{split}": sum(shard.tokens for shard in outputs[split]) for split in outputs},
                "chars_in": chars,
            },
        },
    )


class _Split:
    """What the first pass found of one split: which text shards have a run, and all tokens by bucket."""

    def __init__(self, store: ObjectStore, runs: str, split: str, buckets: int) -> None:
        self._store, self._runs, self._split = store, runs, split
        self._listed: list[str] = []
        self._totals = np.zeros(buckets, dtype=np.int64)

    def add(self, run: Mapping[str, Any] | None) -> None:
        """Add what a text shard left: nothing, or its run. To be called in the order of the shards."""
        if run is not None:
            self._listed.append(run["key"])
            self._totals += np.array(run["tokens"], dtype=np.int64)

    def rows(self, shard_tokens: int, sources: Sequence[str]) -> list[cluster.Row]:
        """Return the second pass's rows, one per token shard."""
        if not self._listed:
            return []
        listed = self._store.put_addressed(
            self._runs, canonical({"runs": self._listed, "sources": list(sources)}), ".json"
        )
        return [
            {"split": self._split, "listed": listed.key, "digest": listed.digest, "cut": canonical(cut).decode()}
            for cut in shuffle.cuts(self._totals, shard_tokens)
        ]


def encode_task(
    row: cluster.Row, *, store: ObjectStore, runs: str, config: TokenizeConfig, vocabulary: Vocabulary, buckets: int
) -> cluster.Row:
    """Encode one text shard into a run per split, unless an earlier try did."""

    def make(made: markers.Made) -> dict[str, Any]:
        table = read_table(store.get(row["key"], digest=row["digest"]), where=row["key"])
        found = encode.runs_of(
            table,
            row["index"],
            bpe.load(store.get(vocabulary.key, digest=vocabulary.digest)),
            held_out_percent=config.held_out_percent,
            seed=config.seed,
            eos=bpe.EOS_ID,
            width=token_width(vocabulary.size),
        )
        kept: dict[str, Any] = {}
        for split, run in found.items():
            data, totals = shuffle.pack_run(run, buckets)
            kept[split] = {"key": made.put_addressed(runs, data, ".run").key, "tokens": totals.tolist()}
        chars = pc.sum(pc.utf8_length(table.column("text"))).as_py() or 0
        return {"runs": kept, "chars": chars, "documents": table.num_rows, "text_bytes": _text_bytes(table)}

    summary = markers.once(store, f"{runs}/text-{row['index']:08}.json", make)
    sizes = {name: summary[name] for name in ("documents", "text_bytes")}
    return {"index": row["index"], "summary": json.dumps(summary), **sizes}


def shuffle_task(
    row: cluster.Row, *, store: ObjectStore, runs: str, prefix: str, vocabulary: Vocabulary
) -> cluster.Row:
    """Write one token shard and its index from all runs, unless an earlier try did."""
    split = row["split"]

    def make(made: markers.Made) -> dict[str, Any]:
        listed = json.loads(markers.work_object(store, row["listed"], row["digest"]))
        cut = from_json(shuffle.Cut, json.loads(row["cut"]), where=row["listed"])
        found = shuffle.gather(store, listed["runs"], cut, token_width(vocabulary.size))
        if not len(found.lengths):  # one document longer than a shard reaches over the whole of this one
            return {"split": split, "shard": {}, "index": ""}
        index = lineage.keep_index(made, prefix, lineage.index_table(found.documents, found.lengths, listed["sources"]))
        data = join_tokens(found.bodies, found.lengths, eos=bpe.EOS_ID, vocab_size=vocabulary.size)
        address = made.put_addressed(f"{prefix}/{split}", data, ".tokens")
        shard = Shard(
            key=address.key,
            digest=address.digest,
            size_bytes=len(data),
            documents=len(found.lengths),
            tokens=int(found.lengths.sum()),
        )
        return {"split": split, "shard": to_json(shard), "index": index}

    report = markers.once(store, f"{runs}/{split}-{row['index']:08}.json", make)
    return {"index": row["index"], "report": json.dumps(report), "documents": report["shard"].get("documents", 0)}


def _waves(
    function: Callable[..., cluster.Row],
    rows: Sequence[cluster.Row],
    arguments: dict[str, Any],
    phase: str,
    progress: Progress | None,
) -> Iterator[cluster.Row]:
    """Yield `function` of each row, in their order, holding the answers of `_WAVE` rows at a time."""
    before = Advance(phase, 0, len(rows))
    for start in range(0, len(rows), _WAVE):
        told = _after(before, progress)
        found = cluster.each(function, rows[start : start + _WAVE], arguments, phase=phase, progress=told)
        yield from found
        documents, text_bytes = (sum(row.get(name, 0) for row in found) for name in ("documents", "text_bytes"))
        before = before._replace(
            done=before.done + len(found),
            documents=before.documents + documents,
            text_bytes=before.text_bytes + text_bytes,
        )


def _after(before: Advance, progress: Progress | None) -> Progress | None:
    """Return a Progress for one wave that tells `progress` of it and of those before."""
    if progress is None:
        return None

    def tell(wave: Advance) -> None:
        documents, text_bytes = before.documents + wave.documents, before.text_bytes + wave.text_bytes
        progress(Advance(before.phase, before.done + wave.done, before.of, documents, text_bytes))

    return tell


def _rows(shards: Sequence[Shard]) -> list[cluster.Row]:
    return [{"index": i, "key": shard.key, "digest": shard.digest} for i, shard in enumerate(shards)]


def _text_bytes(table: pa.Table) -> int:
    return int(pc.sum(pc.binary_length(table.column("text"))).as_py() or 0)
