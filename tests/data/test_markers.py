"""Markers and what they stand for: an object that is gone or damaged is made again, whoever made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consortium.data import bpe, clean, cluster, markers, tokenize
from consortium.data.register import register_collection
from consortium.data.sample import generate
from consortium.domain.cleaning import CleanConfig
from consortium.domain.data import ArtifactClass, Dataset
from consortium.domain.tokenizing import TokenizeConfig
from consortium.errors import NotFoundError, VerificationError
from consortium.storage.objects import ObjectStore
from tests.builders import new_id
from tests.cleaned import clean_dataset

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_cluster")]
CONFIG = CleanConfig(
    languages=("fr",), min_language_confidence=0.5, min_chars=40, max_chars=1_000_000, dedup="near", quarantine=True
)
TOKENS = TokenizeConfig(vocab_size=400, min_count=3, max_word_chars=24, held_out_percent=10)
SHARED = "shared/clean"


@pytest.fixture
def raw(store: ObjectStore, tmp_path: Path) -> Dataset:
    generate("fr", documents=80, seed=5).write(tmp_path / "fr.jsonl")
    return register_collection(
        [tmp_path], store, "laws-fr", "fr-1", dataset_id=new_id("ds", 1), shard_text_bytes=20_000
    )


def damaged(store: ObjectStore, key: str) -> None:
    """Change the last byte, and leave the size."""
    data = store.get(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    ("folder", "ending"),
    [
        ("candidates", ".parquet"),
        ("sides", ".parquet"),
        ("sides", ".arrivals"),
        ("sides", ".keys"),
        ("sides", ".rows"),
        ("sides", ".sig"),
        ("sides", ".seen"),
    ],
)
def test_what_jobs_share_is_made_again_where_it_is_gone_and_where_it_is_damaged(
    store: ObjectStore, raw: Dataset, folder: str, ending: str
) -> None:
    def run(job: int) -> str:
        [stage] = clean.clean_datasets([raw], CONFIG, store, f"jobs/{job}", shared=SHARED).values()
        return stage.manifest_digest

    whole = run(0)
    key = next(key for key in store.list(f"{SHARED}/{folder}/") if key.endswith(ending))
    good = store.get(key)
    store.delete(key)
    assert run(1) == whole
    store.put(key, good[:-1])
    assert run(2) == whole
    damaged(store, key)
    with pytest.raises(VerificationError, match="run the job again"):
        run(3)
    assert (run(3), store.get(key)) == (whole, good)


def test_a_stage_is_finished_as_long_as_all_it_wrote_is_there(store: ObjectStore, raw: Dataset) -> None:
    stage = clean_dataset(raw, CONFIG, store, "jobs/1")
    for key in (stage.outputs["clean"][0].key, stage.manifest_key):
        store.delete(key)
        assert clean_dataset(raw, CONFIG, store, "jobs/1") == stage
        assert store.exists(key)


@pytest.mark.parametrize("harm", ["gone", "last byte", "first bucket"])
def test_a_run_of_tokens_is_made_again_where_it_is_gone_and_where_it_is_damaged(
    store: ObjectStore, raw: Dataset, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    vocabulary = tokenize.keep_tokenizer(
        bpe.train(tokenize.count_datasets([raw], TOKENS, store), TOKENS.vocab_size), store, "jobs/t"
    )
    text = replace(raw, artifact_class=ArtifactClass.CLEAN)
    whole = tokenize.tokenize_dataset(text, vocabulary, TOKENS, store, "jobs/whole")

    class Killed(BaseException):
        """The process ends here."""

    def die(*_: Any, **__: Any) -> cluster.Row:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "shuffle_task", die)
        with pytest.raises(Killed):
            tokenize.tokenize_dataset(text, vocabulary, TOKENS, store, "jobs/t")
    run = next(key for key in store.list("jobs/t/runs/") if key.endswith(".run"))
    if harm == "gone":
        store.delete(run)
    else:
        data = bytearray(store.get(run))
        data[-9 if harm == "last byte" else 21] ^= 1  # 21: where a bucket begins, far behind the end
        store.put(run, bytes(data))
        with pytest.raises(VerificationError, match="run the job again"):
            tokenize.tokenize_dataset(text, vocabulary, TOKENS, store, "jobs/t")
    made = tokenize.tokenize_dataset(text, vocabulary, TOKENS, store, "jobs/t")
    assert made.manifest_digest == whole.manifest_digest


def test_an_entry_is_made_once_while_its_objects_stand(store: ObjectStore) -> None:
    runs = []

    def make(made: markers.Made) -> dict[str, Any]:
        runs.append(made.put_addressed("of", b"an object").key)
        return {"at": runs[-1]}

    def asked() -> dict[str, Any]:
        return markers.once(store, "marker", make)

    assert asked() == asked() == {"at": runs[0]}
    assert len(runs) == 1
    store.put(runs[0], b"an objec")
    assert asked() == {"at": runs[0]}
    assert store.get(runs[0]) == b"an object"
    store.delete(runs[0])
    assert markers.recall(store, "marker") is None
    assert markers.recall(store, "marker", look=False) == {"at": runs[0]}
    with pytest.raises(NotFoundError, match="run the job again"):
        markers.work_object(store, runs[0], "sha256:any")
