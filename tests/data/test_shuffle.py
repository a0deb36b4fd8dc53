"""Tokens in their shuffled order, without a cluster: the tasks as the cluster calls them, on a real store."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.data import bpe, cluster, encode, lineage, shuffle, tokenize, words
from consortium.data.documents import text_digest
from consortium.data.sample import generate
from consortium.data.tokenize import Vocabulary
from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass, Dataset, Shard
from consortium.domain.tokenizing import TokenizeConfig
from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table, read_tokens, write_text
from tests import ray_local
from tests.builders import new_id
from tests.s3 import S3

pytestmark = pytest.mark.integration

CONFIG = TokenizeConfig(vocab_size=400, min_count=3, max_word_chars=24, held_out_percent=10, shard_tokens=5_000)
SPECIAL = "<|endoftext|>"


def texts_of(documents: int = 240) -> list[str]:
    texts = [row["text"] for row in generate("fr", documents, seed=3).rows]
    return [*texts, "", f"A mark {SPECIAL} in a text.", "twice", "twice", "long " * 4_000]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call the tasks here, one after another; `test_on_ray` has the cluster."""

    def each(function: Any, rows: Any, arguments: Any, **_: Any) -> list[cluster.Row]:
        return [json.loads(json.dumps(function(row, **arguments))) for row in rows]

    monkeypatch.setattr(cluster, "each", each)


@pytest.fixture(scope="module")
def tokenizer() -> bytes:
    counts = words.threshold(words.count(texts_of(), CONFIG), CONFIG)
    return bpe.train(counts, CONFIG.vocab_size)


@pytest.fixture
def vocabulary(store: ObjectStore, tokenizer: bytes) -> Vocabulary:
    return tokenize.keep_tokenizer(tokenizer, store, "jobs/j1")


def dataset_of(store: ObjectStore, texts: list[str], rows: int, **changes: Any) -> Dataset:
    """A clean dataset of text shards with `rows` documents each; the third contributor's licence is its own."""
    shards = []
    for start in range(0, len(texts), rows):
        numbers = range(start, min(start + rows, len(texts)))
        columns = {
            "id": [f"doc-{number:04}" for number in numbers],
            "text": [texts[number] for number in numbers],
            "contributor": [f"who-{number % 3}" for number in numbers],
            "licence": ["CC-BY-4.0" if number % 3 == 2 else "" for number in numbers],
            "language": ["fr"] * len(numbers),
        }
        data = write_text(columns)
        key, digest = store.put_addressed("clean", data, ".parquet")
        shards.append(Shard(key=key, digest=digest, size_bytes=len(data), documents=len(numbers)))
    fields: dict[str, Any] = {
        "id": new_id("ds", 1), "name": "laws-fr-clean", "version": 1, "site": "fr-1", "territory": "fr",
        "artifact_class": ArtifactClass.CLEAN, "languages": ("fr",), "licence": "Etalab-2.0", "source": "test",
        "shards": tuple(shards),
    }  # fmt: skip
    return Dataset(**(fields | changes))


def contents(store: ObjectStore, shards: tuple[Shard, ...]) -> list[bytes]:
    return [store.get(shard.key, digest=shard.digest) for shard in shards]


def documents_in(store: ObjectStore, shards: tuple[Shard, ...]) -> Iterator[tuple[Shard, int, np.ndarray]]:
    for shard in shards:
        tokens = read_tokens(store.get(shard.key, digest=shard.digest))
        for number in range(tokens.documents):
            yield shard, int(tokens.offsets[number]), tokens.document(number)


def test_every_document_stands_once_and_the_index_leads_from_any_token_back_to_it(
    store: ObjectStore, vocabulary: Vocabulary, tokenizer: bytes
) -> None:
    texts = texts_of()
    source = dataset_of(store, texts, rows=40)
    stage = tokenize.tokenize_dataset(source, vocabulary, CONFIG, store, "jobs/j1")
    loaded = bpe.load(tokenizer)
    found: dict[str, list[str]] = {"tokens": [], "heldout": []}
    for split, shards in stage.outputs.items():
        made = replace(
            source,
            id=new_id("ds", 2),
            artifact_class=ArtifactClass.TOKENS,
            shards=shards,
            held_out=split == "heldout",
            manifest_digest=stage.manifest_digest,
            attributes={"manifest_key": stage.manifest_key},
        )
        for shard, start, tokens in documents_in(store, shards):
            text = loaded.decode(tokens.tolist(), skip_special_tokens=False)
            found[split].append(text)
            assert words.is_held_out(text, 10) is made.held_out
            assert bpe.EOS_ID not in tokens
            for position in {start, start + len(tokens)}:  # its first token, and the mark of its end
                place = lineage.locate(made, shard.digest, position, store)
                assert (place.document, place.offset) == (text_digest(text), position - start)
                assert lineage.locate(replace(made, held_out=True), shard.digest, position, store) == place
                [home] = [one for one in source.shards if one.digest == place.source]
                row = read_table(store.get(home.key)).slice(place.row, 1).to_pylist()[0]
                assert (row["text"], row["id"], row["contributor"]) == (text, place.id, place.contributor)
                assert place.licence == (row["licence"] or "Etalab-2.0")
                assert (place.site, place.territory, place.name) == ("fr-1", "fr", "laws-fr-clean@1")
    assert sorted(found["tokens"] + found["heldout"]) == sorted(texts)
    assert len(stage.outputs["tokens"]) > 3
    assert not list(store.list("jobs/j1/runs/")), "what the passes handed on is gone"


def test_words_of_a_held_out_dataset_are_not_counted(store: ObjectStore) -> None:
    source = dataset_of(store, texts_of(), rows=400)
    counted = tokenize.count_datasets([source], CONFIG, store)
    assert counted
    held_out = replace(dataset_of(store, ["withheld words here"] * 20, rows=20), id=new_id("ds", 2), held_out=True)
    assert tokenize.count_datasets([source, held_out], CONFIG, store) == counted


def test_neighbours_are_spread_and_the_seed_decides_how(store: ObjectStore, vocabulary: Vocabulary) -> None:
    source = dataset_of(store, texts_of(), rows=400)
    orders = []
    for seed in (0, 1):
        stage = tokenize.tokenize_dataset(source, vocabulary, replace(CONFIG, seed=seed), store, f"jobs/s{seed}")
        ids = [
            row["id"]
            for digest in stage.manifest["index"]["tokens"]
            for row in read_table(store.get(f"jobs/s{seed}/index/{digest[7:]}.parquet")).to_pylist()
        ]
        orders.append(ids)
        places = np.array([int(id_.removeprefix("doc-")) for id_ in ids])
        assert np.abs(np.diff(places)).mean() == pytest.approx(len(ids) / 3, rel=0.25)
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


def test_the_order_of_equal_texts_is_that_of_their_ids(store: ObjectStore, vocabulary: Vocabulary) -> None:
    source = dataset_of(store, ["same text"] * 30, rows=7)
    stage = tokenize.tokenize_dataset(source, vocabulary, replace(CONFIG, held_out_percent=0), store, "jobs/j1")
    [digest] = stage.manifest["index"]["tokens"]
    index = read_table(store.get(f"jobs/j1/index/{digest[7:]}.parquet"))
    assert index.column("id").to_pylist() == [f"doc-{number:04}" for number in range(30)]


def test_neither_the_cut_into_text_shards_nor_the_buckets_show_in_the_tokens(
    store: ObjectStore, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = texts_of()
    made = []
    for rows, buckets in ((400, 1), (17, 64), (60, 4096)):
        monkeypatch.setattr(shuffle, "buckets_for", lambda *_, buckets=buckets: buckets)
        source = dataset_of(store, texts, rows=rows)
        stage = tokenize.tokenize_dataset(source, vocabulary, CONFIG, store, f"jobs/r{rows}")
        made.append({split: contents(store, shards) for split, shards in stage.outputs.items()})
    assert made[0] == made[1] == made[2]


class Killed(BaseException):
    """What a test does to a run in the place of kill -9: nothing in the package catches it."""


def test_a_run_killed_at_any_write_goes_on_and_leaves_the_same_bytes(
    store: ObjectStore, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dataset_of(store, texts_of(60), rows=30)
    whole = tokenize.tokenize_dataset(source, vocabulary, CONFIG, store, "jobs/j1")
    wanted = {key: store.get(key) for key in store.list("jobs/j1/")}
    put, delete = ObjectStore.put, ObjectStore.delete
    for key in wanted:
        delete(store, key)
    tokenize.keep_tokenizer(wanted[vocabulary.key], store, "jobs/j1")
    left = 0

    def counted(do: Any) -> Any:
        def call(self: ObjectStore, *args: Any) -> None:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            do(self, *args)

        return call

    monkeypatch.setattr(ObjectStore, "put", counted(put))
    monkeypatch.setattr(ObjectStore, "delete", counted(delete))
    kills = 0
    for allowed in (0, 1, 2, 1, 3, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1):
        left = allowed
        try:
            tokenize.tokenize_dataset(source, vocabulary, CONFIG, store, "jobs/j1")
        except Killed:
            kills += 1
    assert kills > 10
    left = 1_000
    assert tokenize.tokenize_dataset(source, vocabulary, CONFIG, store, "jobs/j1") == whole
    assert {key: store.get(key) for key in store.list("jobs/j1/")} == wanted


def test_two_workers_of_a_cluster_leave_the_same_bytes_as_one(store: ObjectStore, vocabulary: Vocabulary) -> None:
    source = dataset_of(store, texts_of(), rows=17)
    alone = tokenize.tokenize_dataset(source, vocabulary, CONFIG, store, "jobs/j1")
    with ray_local.cluster(cpus=2) as on_ray:
        counts = on_ray(tokenize.count_datasets, [source], CONFIG, store)
        assert counts == tokenize.count_datasets([source], CONFIG, store)
        pair = on_ray(tokenize.tokenize_dataset, source, vocabulary, CONFIG, store, "jobs/pair")
    assert made_of(pair.manifest) == made_of(alone.manifest)


def made_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest without the code's digest, which is another one while somebody works on the code."""
    return {name: value for name, value in manifest.items() if name != "code"}


PROGRAM = """
import json, sys
from consortium.data import cluster, tokenize
from consortium.domain.codec import from_json
from consortium.domain.data import Dataset
from consortium.domain.tokenizing import TokenizeConfig
from consortium.storage.objects import ObjectStore
asked = json.load(sys.stdin)
cluster.each = lambda function, rows, arguments, **_: [function(row, **arguments) for row in rows]
given = (from_json(kind, asked[kind.__name__]) for kind in (Dataset, tokenize.Vocabulary, TokenizeConfig))
print("begun", flush=True)
print(json.dumps(tokenize.tokenize_dataset(*given, ObjectStore(*asked["store"]), "jobs/killed").manifest))
"""


def test_a_process_killed_at_six_points_leaves_the_same_bytes(
    s3: S3, store: ObjectStore, vocabulary: Vocabulary
) -> None:
    source = dataset_of(store, texts_of(), rows=17)
    begun = time.monotonic()
    whole = tokenize.tokenize_dataset(source, vocabulary, CONFIG, store, "jobs/j1")
    lasts_s = time.monotonic() - begun
    asked = json.dumps(
        {
            "Dataset": to_json(source),
            "Vocabulary": to_json(vocabulary),
            "TokenizeConfig": to_json(CONFIG),
            "store": [store.endpoint, s3.access_key, s3.secret_key, store.bucket],
        }
    )
    command = [sys.executable, "-c", PROGRAM]
    for part in range(1, 7):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin
        assert process.stdout
        process.stdin.write(asked)
        process.stdin.close()
        assert process.stdout.readline() == "begun\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(lasts_s * part / 8)
        process.kill()
        process.wait()
        process.stdout.close()
    ran = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    assert made_of(json.loads(ran.stdout.removeprefix("begun\n"))) == made_of(whole.manifest)
    for shards in whole.outputs.values():
        for shard in shards:
            assert store.get(shard.key.replace("jobs/j1/", "jobs/killed/"), digest=shard.digest)
    assert not list(store.list("jobs/killed/runs/"))


def test_a_run_that_another_one_cleaned_up_after_takes_its_result(
    store: ObjectStore, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = dataset_of(store, texts_of(60), rows=30)
    gather = shuffle.gather
    finished: list[Any] = []

    def late(*args: Any) -> Any:
        if not finished:
            finished.append(None)
            finished[0] = tokenize.tokenize_dataset(source, vocabulary, CONFIG, store, "jobs/j1")
        return gather(*args)

    monkeypatch.setattr(shuffle, "gather", late)
    assert tokenize.tokenize_dataset(source, vocabulary, CONFIG, store, "jobs/j1") == finished[0]


def test_a_changed_run_is_noticed(store: ObjectStore, vocabulary: Vocabulary) -> None:
    table = encode.runs_of(
        read_table(write_text({"id": ["a", "b"], "text": ["one", "two"]})), 0, bpe.load(store.get(vocabulary.key)),
        held_out_percent=0, seed=0, eos=0, width=2,
    )["tokens"]  # fmt: skip
    data, totals = shuffle.pack_run(table, 2)
    assert totals.sum() == sum(map(len, table.column("tokens").to_pylist()))
    for key, changed in (("flip", data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]), ("short", data[:30])):
        store.put(key, changed)
        with pytest.raises(VerificationError):
            shuffle.read_buckets(store, key, 0, 2)


def test_positions_and_shards_that_are_not_there_are_said(store: ObjectStore, vocabulary: Vocabulary) -> None:
    source = dataset_of(store, ["one text", "another text"], rows=2)
    stage = tokenize.tokenize_dataset(source, vocabulary, replace(CONFIG, held_out_percent=0), store, "jobs/j1")
    tokens = replace(
        source, artifact_class=ArtifactClass.TOKENS, shards=stage.outputs["tokens"],
        manifest_digest=stage.manifest_digest, attributes={"manifest_key": stage.manifest_key},
    )  # fmt: skip
    [shard] = tokens.shards
    for position in (-1, shard.tokens):
        with pytest.raises(UsageError, match="tokens 0 to"):
            lineage.locate(tokens, shard.digest, position, store)
    with pytest.raises(NotFoundError, match="no shard"):
        lineage.locate(tokens, "sha256:none", 0, store)
    with pytest.raises(NotFoundError, match="no index"):
        lineage.locate(replace(tokens, attributes={}), shard.digest, 0, store)


@settings(max_examples=200)
@given(st.text(alphabet="ab1'.\n\t \u00a0\u2028\x1cé漢", max_size=60), st.integers(1, 7))
def test_a_long_text_cut_into_pieces_has_the_same_tokens(text: str, size: int) -> None:
    tokenizer = bpe.load(_TOKENIZER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "PIECE_CHARS", size)
        tokens, lengths = encode.encode([text, "x"], tokenizer, eos=0, width=2)
    assert tokens.tolist() == [*tokenizer.encode(text).ids, 0, *tokenizer.encode("x").ids, 0]
    assert lengths.sum() == len(tokens)


def test_every_character_that_is_sure_is_cut_as_the_tokenizer_cuts_it() -> None:
    """In all places that matter to the rule: alone, between letters, digits, signs and white space, and repeated."""
    cut = bpe.load(_TOKENIZER).pre_tokenizer
    assert cut
    characters = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000 and encode.sure(chr(code))]
    assert len(characters) > 1_500
    for character in characters:
        text = "".join(
            f"{before}{character}{after}" for before in "a1- \n" for after in ("", "a", "2", "'s", "  ", character)
        )
        found = encode.words_of(text)
        assert "".join(found) == text
        spans = [span for _, span in cut.pre_tokenize_str(text)]
        assert [text[start:end] for start, end in spans] == found, hex(ord(character))
    assert not encode.sure("a 漢 b")


_TOKENIZER = bpe.train({" ab": 9, "ab": 9, "  ": 9, "\n\n": 9, " é": 9, "'s": 9, "漢a": 5}, 280)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 60))
def test_cuts_cover_everything_once(totals: list[int], shard_tokens: int) -> None:
    counts = np.array(totals, dtype=np.int64)
    ends = np.cumsum(counts)
    cuts = shuffle.cuts(counts, shard_tokens)
    assert [cut.start for cut in cuts[1:]] == [cut.end for cut in cuts[:-1]]
    assert sum(cut.end - cut.start for cut in cuts) == sum(totals)
    for cut in cuts:
        assert 0 < cut.end - cut.start <= shard_tokens
        assert cut.base == (ends[cut.first - 1] if cut.first else 0) <= cut.start
        assert ends[cut.last - 1] >= cut.end
        assert cut.first < cut.last <= len(counts)


@pytest.mark.parametrize(("tokens", "buckets"), [(0, 1), (1, 1), (1_000, 16), (1_001, 32), (10**12, 4096)])
def test_more_tokens_make_more_buckets(tokens: int, buckets: int) -> None:
    assert shuffle.buckets_for(tokens, 1_000) == buckets
