"""`tokenize`: count words at home, agree on one tokenizer between sites, write token shards at home."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from consortium.data import bpe, cluster, manifest, words
from consortium.data.progress import Progress
from consortium.data.words import WordsConfig
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import ArtifactClass, Dataset, Shard
from consortium.storage.objects import Addressed, ObjectStore
from consortium.storage.shards import read_table, write_tokens

COUNTS = "word-counts"
TOPIC = "tokenizer"


class Exchange(Protocol):
    """What federated tokenizing needs from the leg's gateway; `consortium.client.leg.LegSession` is the real one."""

    def send(
        self,
        artifact_class: ArtifactClass | str,
        name: str,
        data: bytes,
        *,
        round: int = 0,
        recipients: Iterable[str] | None = None,
    ) -> Any:
        """Release data to the peers."""

    def wait_for(self, name: str, round: int, senders: Iterable[str], timeout_s: float) -> dict[str, bytes]:
        """Return what each sender released under a name."""

    def wait_agreement(self, topic: str, digest: str, timeout_s: float) -> None:
        """Publish a digest and wait until all peers published the same; VerificationError where one differs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeConfig:
    """Params of the `tokenize` job."""

    vocab_size: int
    min_count: int
    max_word_chars: int
    held_out_percent: int

    @property
    def words(self) -> WordsConfig:
        """The part that bounds what is sent."""
        return WordsConfig(min_count=self.min_count, max_word_chars=self.max_word_chars)


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
    """Count the words of all training documents of `datasets` on the connected cluster; thresholded."""
    shards = [shard for dataset in datasets for shard in dataset.shards]
    rows = [{"index": i, "key": shard.key, "digest": shard.digest} for i, shard in enumerate(shards)]
    arguments = {"store": store, "config": config}
    found = cluster.each(count_task, rows, arguments, phase="count", progress=progress)
    counts: Counter[str] = Counter()
    for row in found:
        counts.update(json.loads(row["counts"]))
    return words.threshold(counts, config.words)


def count_task(row: cluster.Row, *, store: ObjectStore, config: TokenizeConfig) -> cluster.Row:
    """Count the words of one shard's training documents, as JSON."""
    texts = read_table(store.get(row["key"], digest=row["digest"])).column("text").to_pylist()
    training = (text for text in texts if not words.is_held_out(text, config.held_out_percent))
    counts = {word: n for word, n in words.count(training).items() if len(word) <= config.max_word_chars}
    return {"index": row["index"], "counts": json.dumps(counts, ensure_ascii=False)}


def agree_on_tokenizer(
    own: Mapping[str, int],
    site: str,
    peers: Sequence[str],
    exchange: Exchange,
    config: TokenizeConfig,
    *,
    timeout_s: float = 600.0,
) -> bytes:
    """Exchange counts with all peers, train on their sum, and return the tokenizer once all hold the same.

    Raises VerificationError where a peer's counts are not what may be sent or its tokenizer differs, UnreachableError
    where a peer stays silent.
    """
    others = sorted(set(peers) - {site})
    packed = words.pack(own)
    if others:
        exchange.send(ArtifactClass.STATISTIC, COUNTS, packed)
    received = exchange.wait_for(COUNTS, 0, others, timeout_s) if others else {}
    parts = {sender: words.unpack(data, sender, config.words) for sender, data in received.items()}
    tokenizer = bpe.train(words.merge({**parts, site: own}), config.vocab_size)
    exchange.wait_agreement(TOPIC, bpe.tokenizer_digest(tokenizer), timeout_s)
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

    Token shard i of a split holds the documents of text shard i that belong to it, in their order.
    """
    whole = {**to_json(config), "tokenizer": vocabulary.digest}
    key = manifest.stage_key("tokenize", whole, [shard.digest for shard in dataset.shards])
    marker = f"{prefix}/done/tokenize-{key}.json"
    done = manifest.finished(store, marker)
    if done is not None:
        return done
    rows = [{"index": i, "key": shard.key, "digest": shard.digest} for i, shard in enumerate(dataset.shards)]
    arguments = {"store": store, "prefix": prefix, "config": config, "vocabulary": vocabulary}
    found = cluster.each(tokenize_task, rows, arguments, phase="tokenize", progress=progress)
    reports = [json.loads(row["report"]) for row in found]
    outputs = {
        split: tuple(from_json(Shard, report[split]) for report in reports if report[split])
        for split in ("heldout", "tokens")
    }
    stage = manifest.seal_stage(
        store,
        prefix,
        outputs,
        {
            "stage": "tokenize",
            "inputs": [manifest.describe(dataset)],
            "config": whole,
            "counts": {
                "documents_in": dataset.documents,
                **{f"documents_{split}": sum(shard.documents for shard in outputs[split]) for split in outputs},
                **{f"tokens_{split}": sum(shard.tokens for shard in outputs[split]) for split in outputs},
                "chars_in": sum(report["chars"] for report in reports),
            },
        },
    )
    manifest.mark_done(store, marker, stage)
    return stage


def tokenize_task(
    row: cluster.Row, *, store: ObjectStore, prefix: str, config: TokenizeConfig, vocabulary: Vocabulary
) -> cluster.Row:
    """Encode one text shard into a token shard per split."""
    texts = read_table(store.get(row["key"], digest=row["digest"])).column("text").to_pylist()
    tokenizer = bpe.load(store.get(vocabulary.key, digest=vocabulary.digest))
    split: dict[str, list[str]] = {"tokens": [], "heldout": []}
    for text in texts:
        split["heldout" if words.is_held_out(text, config.held_out_percent) else "tokens"].append(text)
    report: dict[str, Any] = {"chars": sum(map(len, texts))}
    for name, members in split.items():
        report[name] = _write(members, tokenizer, vocabulary, store, f"{prefix}/{name}") if members else {}
    return {"index": row["index"], "report": json.dumps(report)}


def _write(texts: list[str], tokenizer: Any, vocabulary: Vocabulary, store: ObjectStore, prefix: str) -> dict[str, Any]:
    encoded = (
        encoding.ids
        for start in range(0, len(texts), 256)
        for encoding in tokenizer.encode_batch_fast(texts[start : start + 256], add_special_tokens=False)
    )
    lengths = 0

    def counted() -> Iterable[list[int]]:
        nonlocal lengths
        for ids in encoded:
            lengths += len(ids) + 1
            yield ids

    data = write_tokens(counted(), eos=bpe.EOS_ID, vocab_size=vocabulary.size)
    address: Addressed = store.put_addressed(prefix, data, ".tokens")
    return {
        "key": address.key,
        "digest": address.digest,
        "size_bytes": len(data),
        "documents": len(texts),
        "tokens": lengths,
    }
