"""Cleaning and tokenizing on a real Ray cluster with a real S3 store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consortium.data import clean, manifest, outputs, tokenize
from consortium.data.bpe import EOS_ID, load
from consortium.data.register import register_collection
from consortium.data.sample import Sample, generate
from consortium.data.words import is_held_out
from consortium.domain.cleaning import CleanConfig
from consortium.domain.data import ArtifactClass, Dataset
from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table, read_tokens
from tests.builders import new_id
from tests.ray_local import Run, cluster

pytestmark = pytest.mark.integration
CLEAN = CleanConfig(languages=(), min_language_confidence=0.5, min_chars=40, max_chars=1_000_000, redact=("email",))
TOKENIZE = tokenize.TokenizeConfig(vocab_size=500, min_count=3, max_word_chars=24, held_out_percent=10)


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Run]:
    with cluster() as run:
        yield run


@pytest.fixture
def sample() -> Sample:
    return generate("fr", documents=600, seed=5)


@pytest.fixture
def raw(store: ObjectStore, sample: Sample, tmp_path: Path) -> Dataset:
    sample.write(tmp_path / "fr.jsonl")
    return register_collection(
        [tmp_path], store, "laws-fr", "fr-1", dataset_id=new_id("ds", 1), shard_text_bytes=100_000
    )


def test_a_sample_is_cleaned_to_its_truth_and_a_second_run_repeats_nothing(
    on_ray: Run, store: ObjectStore, raw: Dataset, sample: Sample
) -> None:
    stage = on_ray(clean.clean_dataset, raw, CLEAN, store, "jobs/j1")
    numbers = outputs.clean_metrics([stage], at_least=1)
    assert numbers["documents_in"] == sample.truth.documents
    assert numbers["documents_out"] == sample.truth.clean
    assert numbers["removed.dedup.exact"] == sample.truth.duplicates
    assert numbers["removed.length.min"] == sample.truth.junk
    assert numbers["removed.language.other"] == sample.truth.wrong_language
    assert numbers["edits.redact.email"] == sample.truth.emails
    written = list(store.list())
    notes = clean.read_annotations(stage, store, "jobs/j1")
    removed = sample.truth.documents - sample.truth.clean
    assert notes.num_rows == removed + sample.truth.emails
    store.delete(written[0])
    store.delete(raw.shards[0].key)
    assert on_ray(clean.clean_dataset, raw, CLEAN, store, "jobs/j1") == stage
    assert sorted(store.list()) == [key for key in written if key not in (written[0], raw.shards[0].key)]


def test_a_run_killed_half_way_goes_on_and_gives_the_same_bytes(on_ray: Run, store: ObjectStore, raw: Dataset) -> None:
    whole = on_ray(clean.clean_dataset, raw, CLEAN, store, "jobs/whole")
    broken = replace(raw, shards=(*raw.shards[:-1], replace(raw.shards[-1], key="datasets/gone.parquet")))
    with pytest.raises(NotFoundError):
        on_ray(clean.clean_dataset, broken, CLEAN, store, "jobs/again")
    again = on_ray(clean.clean_dataset, raw, CLEAN, store, "jobs/again")
    assert again.manifest_digest == whole.manifest_digest
    assert [shard.digest for shard in again.outputs["clean"]] == [shard.digest for shard in whole.outputs["clean"]]
    other = on_ray(clean.clean_dataset, raw, replace(CLEAN, min_chars=300), store, "jobs/again")
    assert other.manifest_digest != whole.manifest_digest


def test_faults_of_the_input_come_back_as_they_are(on_ray: Run, store: ObjectStore, raw: Dataset) -> None:
    store.put("datasets/changed.parquet", b"not what was registered")
    changed = replace(raw, shards=(replace(raw.shards[0], key="datasets/changed.parquet"),))
    with pytest.raises(VerificationError, match="hash to"):
        on_ray(clean.clean_dataset, changed, CLEAN, store, "jobs/j2")
    with pytest.raises(UsageError, match="remove all 600 documents"):
        on_ray(clean.clean_dataset, raw, replace(CLEAN, languages=("nl",)), store, "jobs/j2")


def test_clean_text_becomes_token_shards_that_decode_to_it(on_ray: Run, store: ObjectStore, raw: Dataset) -> None:
    source = outputs.clean_output(raw, on_ray(clean.clean_dataset, raw, CLEAN, store, "jobs/j3"), new_id("ds", 1))
    counts = on_ray(tokenize.count_datasets, [source], TOKENIZE, store)

    class Alone:
        def send(self, *args: object, **kwargs: object) -> None:
            raise AssertionError("a site alone sends nothing")

        def wait_for(self, *args: object) -> dict[str, bytes]:
            raise AssertionError("a site alone waits for nobody")

        def wait_agreement(self, topic: str, digest: str, timeout_s: float) -> None:
            assert digest.startswith("sha256:")

    made = tokenize.agree_on_tokenizer(counts, "fr-1", ("fr-1",), Alone(), TOKENIZE)
    vocabulary = tokenize.keep_tokenizer(made, store, "jobs/j3")
    stage = on_ray(tokenize.tokenize_dataset, source, vocabulary, TOKENIZE, store, "jobs/j3")
    numbers = itertools.count(2)
    training, held_out = outputs.token_outputs(source, stage, vocabulary, lambda: new_id("ds", next(numbers)))
    assert (training.name, held_out.name) == ("laws-fr-tokens", "laws-fr-tokens-heldout")
    assert (training.held_out, held_out.held_out) == (False, True)
    assert training.documents + held_out.documents == source.documents
    assert training.artifact_class is ArtifactClass.TOKENS
    assert store.get(training.attributes["tokenizer_key"], digest=training.attributes["tokenizer_digest"]) == made
    texts = [text for shard in source.shards for text in read_table(store.get(shard.key)).column("text").to_pylist()]
    tokenizer = load(made)
    for dataset in (training, held_out):
        shards = [read_tokens(store.get(shard.key, digest=shard.digest)) for shard in dataset.shards]
        decoded = [tokenizer.decode(tokens.tolist()) for shard in shards for tokens in shard]
        assert sorted(decoded) == sorted(text for text in texts if is_held_out(text, 10) is dataset.held_out)
        assert sum(len(shard.tokens) for shard in shards) == dataset.tokens
        assert {shard.eos for shard in shards} == {EOS_ID}
    assert manifest.finished(store, "jobs/j3/done/none.json") is None
    assert on_ray(tokenize.tokenize_dataset, source, vocabulary, TOKENIZE, store, "jobs/j3") == stage
