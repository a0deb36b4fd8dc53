from __future__ import annotations

from pathlib import Path

import pytest

from consortium.data.progress import Advance
from consortium.data.register import register_collection
from consortium.data.sample import generate
from consortium.domain.data import ArtifactClass
from consortium.errors import UsageError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table

pytestmark = pytest.mark.integration
ID = "ds-00000000000000000000000001"


def test_a_collection_becomes_shards_and_the_same_again_writes_nothing_new(store: ObjectStore, tmp_path: Path) -> None:
    sample = generate("es", documents=300)
    sample.write(tmp_path / "a.jsonl")
    (tmp_path / "bad.jsonl").write_text("{\n")
    seen: list[Advance] = []
    dataset = register_collection(
        [tmp_path],
        store,
        "laws-es",
        "uy-1",
        dataset_id=ID,
        shard_text_bytes=50_000,
        progress=seen.append,
    )
    keys = list(store.list())
    assert dataset == register_collection([tmp_path], store, "laws-es", "uy-1", dataset_id=ID, shard_text_bytes=50_000)
    assert keys == list(store.list())
    assert (dataset.documents, dataset.artifact_class, dataset.languages) == (300, ArtifactClass.RAW, ("es",))
    assert (dataset.territory, dataset.licence) == ("uy", "sample")
    assert len(dataset.shards) > 2
    assert (seen[-1].done, seen[-1].of, seen[-1].documents) == (
        *[sum(p.stat().st_size for p in tmp_path.iterdir())] * 2,
        300,
    )
    texts = [
        text
        for shard in dataset.shards
        for text in read_table(store.get(shard.key, digest=shard.digest)).column("text").to_pylist()
    ]
    assert texts == [row["text"] for row in sample.rows]
    assert dataset.attributes["quarantine_reasons"] == "fewer than 10 json"
    assert dataset.attributes["quarantined"] == "at least 1"
    assert b'"bad.jsonl"' in store.get(dataset.attributes["quarantine_key"])


def test_partners_read_no_small_count_of_what_could_not_be_read_and_the_home_reads_all(
    store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' + "{\n" * 10 + "{}\n" * 9)
    notes: list[str] = []
    made = register_collection([tmp_path], store, "x", "fr-1", dataset_id=ID, note=notes.append)
    assert made.attributes["quarantine_reasons"] == "10 json, fewer than 10 no_text"
    assert made.attributes["quarantined"] == "at least 11", "19 would tell the 9"
    assert notes == ["not readable: 10 json, 9 no_text"]
    assert b'{"counts": {"json": 10, "no_text": 9}}\n' in store.get(made.attributes["quarantine_key"])


def test_a_collection_of_nothing_readable_is_refused_with_the_reasons(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("nonsense\n{}\n")
    with pytest.raises(UsageError, match="1 json, 1 no_text"):
        register_collection([tmp_path], store, "x", "fr-1", dataset_id=ID)
