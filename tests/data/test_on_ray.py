"""Cleaning and tokenizing on a real Ray cluster with a real S3 store."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from consortium.config import compose_job
from consortium.data import clean, manifest, outputs, tokenize
from consortium.data.between import Peers
from consortium.data.bpe import EOS_ID, load
from consortium.data.counts import Counts
from consortium.data.register import register_collection
from consortium.data.sample import Sample, generate
from consortium.data.words import is_held_out
from consortium.domain.cleaning import AcrossConfig, CleanConfig
from consortium.domain.codec import from_json
from consortium.domain.data import ArtifactClass, Dataset
from consortium.domain.tokenizing import TokenizeConfig
from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table, read_tokens
from tests.builders import new_id
from tests.cleaned import clean_dataset
from tests.data.test_between import Post
from tests.ray_local import Run, cluster

pytestmark = pytest.mark.integration
CLEAN = CleanConfig(languages=(), min_language_confidence=0.5, min_chars=40, max_chars=1_000_000, redact=("email",))
TOKENIZE = TokenizeConfig(vocab_size=500, min_count=3, max_word_chars=24, held_out_percent=10)


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


def annotations(stage: manifest.Stage, store: ObjectStore, prefix: str) -> pa.Table:
    return pa.concat_tables(
        read_table(store.get(f"{prefix}/annotations/{digest[7:]}.parquet")) for digest in stage.manifest["annotations"]
    )


def test_a_sample_is_cleaned_to_its_truth_and_a_second_run_repeats_nothing(
    on_ray: Run, store: ObjectStore, raw: Dataset, sample: Sample
) -> None:
    stage = on_ray(clean_dataset, raw, CLEAN, store, "jobs/j1")
    numbers = outputs.clean_metrics([stage], at_least=1)
    assert numbers["documents_in"] == sample.truth.documents
    assert numbers["documents_out"] == sample.truth.clean
    assert numbers["removed.dedup.exact"] == sample.truth.duplicates
    assert numbers["removed.length.min"] == sample.truth.junk
    assert numbers["removed.language.other"] == sample.truth.wrong_language
    assert numbers["edits.redact.email"] == sample.truth.emails
    written = list(store.list())
    notes = annotations(stage, store, "jobs/j1")
    removed = sample.truth.documents - sample.truth.clean
    assert notes.num_rows == removed + sample.truth.emails
    store.delete(written[0])
    store.delete(raw.shards[0].key)
    assert on_ray(clean_dataset, raw, CLEAN, store, "jobs/j1") == stage
    assert sorted(store.list()) == [key for key in written if key not in (written[0], raw.shards[0].key)]


def test_a_run_killed_half_way_goes_on_and_gives_the_same_bytes(on_ray: Run, store: ObjectStore, raw: Dataset) -> None:
    whole = on_ray(clean_dataset, raw, CLEAN, store, "jobs/whole")
    broken = replace(raw, shards=(*raw.shards[:-1], replace(raw.shards[-1], key="datasets/gone.parquet")))
    with pytest.raises(NotFoundError):
        on_ray(clean_dataset, broken, CLEAN, store, "jobs/again")
    again = on_ray(clean_dataset, raw, CLEAN, store, "jobs/again")
    assert again.manifest_digest == whole.manifest_digest
    assert [shard.digest for shard in again.outputs["clean"]] == [shard.digest for shard in whole.outputs["clean"]]
    other = on_ray(clean_dataset, raw, replace(CLEAN, min_chars=300), store, "jobs/again")
    assert other.manifest_digest != whole.manifest_digest


def test_every_stage_at_once_adds_up_and_a_second_run_drops_nothing(
    on_ray: Run, store: ObjectStore, raw: Dataset, sample: Sample, tmp_path: Path
) -> None:
    asked = [row["text"] for row in sample.rows if len(row["text"].split()) > 90][:5]
    (tmp_path / "exam").mkdir()
    (tmp_path / "exam" / "exam.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in asked))
    exam = register_collection([tmp_path / "exam"], store, "exam-fr", "fr-1", dataset_id=new_id("ds", 7))
    params = compose_job(
        "clean", ["clean=standard", "quarantine=true", "decontaminate.against=[exam-fr]", "decontaminate.words=40"]
    ).params
    config = from_json(CleanConfig, params)
    [stage] = on_ray(clean.clean_datasets, [exam, raw], config, store, "jobs/every").values()
    counts = from_json(Counts, stage.manifest["counts"]).check()
    assert counts.total_in == sample.truth.documents
    assert min(counts.removed_by(f"dedup.{kind}") for kind in ("exact", "near")) > 0
    assert 5 <= counts.removed_by("decontaminate.ngram") < 60
    assert [each["name"] for each in stage.manifest["evaluation"]] == ["exam-fr"]
    index = pa.concat_tables(
        read_table(store.get(f"jobs/every/index/{digest[7:]}.parquet", digest=digest))
        for digest in stage.manifest["index"]
    )
    notes = annotations(stage, store, "jobs/every")
    removed = notes.filter(pc.field("start") < 0).column("rule").to_pylist()
    assert Counter(rule for rule in index.column("rule").to_pylist() if rule) == Counter(removed)
    made = outputs.clean_output(raw, stage, new_id("ds", 8))
    again = on_ray(clean.clean_datasets, [exam, made], config, store, "jobs/twice")[made.id]
    second = from_json(Counts, again.manifest["counts"])
    assert (second.removed, second.edits, second.total_out) == ({}, {}, counts.total_out)
    with pytest.raises(UsageError, match="no evaluation set is here: exam-fr"):
        on_ray(clean.clean_datasets, [raw], config, store, "jobs/every")


def test_a_changed_rule_repeats_only_what_depends_on_it(on_ray: Run, store: ObjectStore, raw: Dataset) -> None:
    config = replace(CLEAN, dedup="near")
    jobs = itertools.count()

    def made(changed: CleanConfig) -> set[str]:
        before = set(store.list("shared"))
        job = f"jobs/{next(jobs)}"
        on_ray(clean.clean_datasets, [raw], changed, store, job, shared="shared")
        return {key.split("/")[1] for key in set(store.list("shared")) - before}

    assert made(config) == {"screened", "candidates", "sides", "signed"}
    assert not made(config)
    assert not made(replace(config, near=replace(config.near, threshold=0.5)))
    assert made(replace(config, near=replace(config.near, ngram=4))) == {"sides", "signed"}
    assert made(replace(config, quarantine=True)) == {"sides", "observed"}
    assert made(replace(config, min_chars=300)) >= {"screened", "candidates", "signed"}


def test_markers_that_were_cut_or_changed_count_for_nothing(on_ray: Run, store: ObjectStore, raw: Dataset) -> None:
    config = replace(CLEAN, dedup="near")
    whole = on_ray(clean_dataset, raw, config, store, "jobs/marked")
    for kind in ("screened", "signed", "settled", "done"):
        for at, key in enumerate(store.list(f"jobs/marked/{kind}/")):
            data = store.get(key)
            store.put(key, [data[: len(data) // 2], data.replace(b"0", b"1"), b"[" * 9_999, b""][at % 4])
    assert on_ray(clean_dataset, raw, config, store, "jobs/marked") == whole


def twice(raw: Dataset, config: CleanConfig, store: ObjectStore) -> list[manifest.Stage]:
    """Clean one dataset in two threads at once under one prefix, in the process that is connected to Ray."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: clean_dataset(raw, config, store, "jobs/twice"), range(2)))


def test_two_runs_on_one_dataset_at_once_make_the_same(on_ray: Run, store: ObjectStore, raw: Dataset) -> None:
    config = replace(CLEAN, dedup="near")
    first, second = on_ray(twice, raw, config, store)
    assert first == second
    assert on_ray(clean_dataset, raw, config, store, "jobs/alone").manifest_digest == first.manifest_digest


def both(texts: dict[str, Dataset], config: CleanConfig, store: ObjectStore) -> dict[str, manifest.Stage]:
    """Clean two sites' datasets at once, in the process that is connected to Ray."""
    post = Post(sites=2)

    def at(site: str) -> manifest.Stage:
        peers = Peers(site=site, sites=tuple(texts), exchange=post.at(site), timeout_s=120)
        [stage] = clean.clean_datasets([texts[site]], config, store, f"jobs/{site}", peers=peers).values()
        return stage

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(texts, pool.map(at, texts), strict=True))


def test_two_sites_keep_one_copy_of_what_both_have(
    on_ray: Run, store: ObjectStore, sample: Sample, tmp_path: Path
) -> None:
    texts = {}
    for number, (site, rows) in enumerate({"fr-1": sample.rows[:400], "de-1": sample.rows[200:]}.items(), 1):
        file = tmp_path / f"{site}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        texts[site] = register_collection(
            [file], store, "laws", site, dataset_id=new_id("ds", number), languages=("fr",), shard_text_bytes=50_000
        )
    config = replace(CLEAN, dedup="near", across=AcrossConfig(order=("fr", "de")))
    stages = on_ray(both, texts, config, store)
    alone = {
        site: on_ray(clean_dataset, dataset, replace(CLEAN, dedup="near"), store, f"jobs/alone-{site}")
        for site, dataset in texts.items()
    }
    kept = {site: from_json(Counts, stage.manifest["counts"]).check() for site, stage in stages.items()}
    assert kept["fr-1"].removed_by("dedup.across") == 0
    gone = kept["de-1"].removed_by("dedup.across")
    assert gone > 100
    assert kept["de-1"].total_out == from_json(Counts, alone["de-1"].manifest["counts"]).total_out - gone
    assert stages["fr-1"].manifest["across"] == stages["de-1"].manifest["across"]
    assert [shard.digest for shard in stages["fr-1"].outputs["clean"]] == [
        shard.digest for shard in alone["fr-1"].outputs["clean"]
    ]
    assert not any(store.exists(f"jobs/{site}/across/key") for site in texts)


def test_faults_of_the_input_come_back_as_they_are(on_ray: Run, store: ObjectStore, raw: Dataset) -> None:
    store.put("datasets/changed.parquet", b"not what was registered")
    changed = replace(raw, shards=(replace(raw.shards[0], key="datasets/changed.parquet"),))
    with pytest.raises(VerificationError, match="hash to"):
        on_ray(clean_dataset, changed, CLEAN, store, "jobs/j2")
    with pytest.raises(UsageError, match="no document of laws-fr is left"):
        on_ray(clean_dataset, raw, replace(CLEAN, languages=("nl",)), store, "jobs/j2")


def test_clean_text_becomes_token_shards_that_decode_to_it(on_ray: Run, store: ObjectStore, raw: Dataset) -> None:
    source = outputs.clean_output(raw, on_ray(clean_dataset, raw, CLEAN, store, "jobs/j3"), new_id("ds", 1))
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
