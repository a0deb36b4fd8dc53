"""`data trace` of documents and tokens: real stages in a real store, a real server, the command line."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consortium.config import compose_job
from consortium.data import bpe, cluster, lineage, outputs, tokenize, words
from consortium.data.documents import text_digest
from consortium.data.sample import generate
from consortium.domain.cleaning import CleanConfig
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset, Shard
from consortium.domain.job import JobKind
from consortium.domain.partner import Role
from consortium.domain.tokenizing import TokenizeConfig
from consortium.site.settings import SiteSettings, StoreSettings
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import read_table, read_tokens, write_text
from tests.builders import site
from tests.cleaned import clean_dataset
from tests.conftest import Call, Outcome
from tests.s3 import S3
from tests.server.test_trace import run

pytestmark = pytest.mark.integration
EMAIL = "Écrire à jean.dupont@example.fr avant la fin du mois de mars, faute de quoi la demande est réputée rejetée."
TOKENIZE = TokenizeConfig(vocab_size=400, min_count=3, max_word_chars=24, held_out_percent=10, shard_tokens=8_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """French laws, cleaned and tokenized, a model of them, and the machine with the keys of the store they lie in."""

    store: ObjectStore
    texts: list[str]
    raw: Dataset
    clean: Dataset
    tokens: Dataset
    model: str
    directory: Path

    @property
    def removed(self) -> str:
        """A text that is too short to stay."""
        return next(text for text in self.texts if len(text.strip()) < 40)

    @property
    def trained(self) -> str:
        """A text that a model was trained on."""
        index = read_table(self.store.get(self.index_key(0)))
        wanted = set(index.column("document").to_pylist())
        return next(text for text in self.texts if text_digest(text) in wanted)

    def index_key(self, number: int) -> str:
        manifest = json.loads(self.store.get(self.tokens.attributes["manifest_key"]))
        return f"jobs/j1/index/{manifest['index']['tokens'][number].removeprefix('sha256:')}.parquet"


@pytest.fixture(scope="module")
def home(fed: Any, s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Home:
    store = s3.fresh()
    texts = [*(row["text"] for row in generate("fr", 200, seed=4).rows), EMAIL]
    shards = []
    for start in range(0, len(texts), 50):
        part = texts[start : start + 50]
        data = write_text(
            {"id": [str(start + i) for i in range(len(part))], "text": part, "language": ["fr"] * len(part)}
        )
        key, digest = store.put_addressed("datasets/laws-fr", data, ".parquet")
        shards.append(Shard(key=key, digest=digest, size_bytes=len(data), documents=len(part)))
    raw = fed.dataset("fr-1", "laws-fr", shards=tuple(shards))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster, "each", lambda f, rows, arguments, **_: [f(row, **arguments) for row in rows])
        rules = from_json(CleanConfig, compose_job("clean").params)
        made = outputs.clean_output(raw, clean_dataset(raw, rules, store, "jobs/j1"), fed.new_id("ds"))
        tally = words.count(texts, TOKENIZE)
        trained = bpe.train(words.threshold(tally, TOKENIZE), TOKENIZE.vocab_size)
        vocabulary = tokenize.keep_tokenizer(trained, store, "jobs/j1")
        stage = tokenize.tokenize_dataset(made, vocabulary, TOKENIZE, store, "jobs/j1")
    tokens, _ = outputs.token_outputs(made, stage, vocabulary, lambda: fed.new_id("ds"))
    run(fed, [raw], {"fr-1": made}, kind=JobKind.CLEAN, params=fed.params("clean"))
    run(fed, [made], {"fr-1": tokens}, kind=JobKind.TOKENIZE, params=fed.params("tokenize"))
    model = run(fed, [tokens], {}, kind=JobKind.PRETRAIN, params=fed.params("pretrain"), name="babel")
    fed.dataset("de-1", "laws-de")
    directory = tmp_path_factory.mktemp("home")
    _machine(directory, s3, store)
    return Home(store=store, texts=texts, raw=raw, clean=made, tokens=tokens, model=model, directory=directory)


def _machine(directory: Path, s3: S3, store: ObjectStore) -> None:
    """Write what a site's own machine has: its settings, and the key of its private store."""
    at = directory / "federations" / "own" / "sites" / "fr-1"
    at.mkdir(parents=True)
    (at / "store.key").write_text(s3.secret_key)
    private = StoreSettings(
        endpoint=store.endpoint, bucket=store.bucket, access_key=s3.access_key, secret_path=str(at / "store.key")
    )
    names = ("server_url", "mlflow_url", "gateway_url", "token_path", "signing_key_path", "sealing_key_path",
             "trust_path", "documents_dir", "ray_dashboard_url", "ray_token_path", "jobs_dir")  # fmt: skip
    settings = SiteSettings(
        site=site("fr-1"), home=str(at), gateway_port=1, private_store=private, egress_store=private, peer_egress={},
        **dict.fromkeys(names, ""),
    )  # fmt: skip
    (at / "config.json").write_text(json.dumps(to_json(settings)))
    (directory / "current").symlink_to(directory / "federations" / "own")


@pytest.fixture
def trace(fed: Any, home: Home, call: Call, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call `data trace` as a French engineer on the French machine, or as somebody else."""

    def ask(*arguments: str, who: str = "fr/amelie") -> Outcome:
        monkeypatch.setenv("CONSORTIUM_SERVER", fed.url)
        monkeypatch.setenv("CONSORTIUM_TOKEN", fed.token(who, (Role.ENGINEER,)))
        return call("data", "trace", *arguments, home=home.directory)

    return ask


def asked(trace: Any, *arguments: str) -> Any:
    outcome = trace(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_a_document_that_was_removed_says_by_which_rule(trace: Any, home: Home) -> None:
    found = asked(trace, text_digest(home.removed))
    first = home.texts.index(home.removed)
    line = found["found"][0]
    assert (line["dataset"], line["shard"], line["row"]) == (
        home.raw.id,
        home.raw.shards[first // 50].digest,
        first % 50,
    )
    assert (line["rule"], line["cleaned_by"], line["clean"]) == ("length.min", home.clean.id, "")
    assert found["models"] == []
    told = trace(text_digest(home.removed))
    assert "removed by length.min" in told.out
    assert "no model was made of it" in told.err


def test_a_document_that_stays_is_followed_to_its_tokens_and_models(trace: Any, home: Home) -> None:
    whole = hashlib.sha256(home.trained.encode()).hexdigest()
    found = asked(trace, whole)
    assert found["document"] == whole[:32] == text_digest(home.trained)
    by_class = {line["class"]: line for line in found["found"]}
    clean_line, tokens = by_class["clean"], by_class["tokens"]
    shard = next(one for one in home.clean.shards if one.digest == clean_line["shard"])
    assert read_table(home.store.get(shard.key)).column("text")[clean_line["row"]].as_py() == home.trained
    assert (tokens["source"], tokens["row"]) == (clean_line["shard"], clean_line["row"])
    held = next(one for one in home.tokens.shards if one.digest == tokens["shard"])
    ids = read_tokens(home.store.get(held.key)).tokens[tokens["start"] : tokens["start"] + tokens["tokens"] - 1]
    tokenizer = bpe.load(home.store.get(home.tokens.attributes["tokenizer_key"]))
    assert tokenizer.decode(ids.tolist()) == home.trained
    assert [model["id"] for model in found["models"]] == [home.model]
    assert (found["sites"], found["elsewhere"], found["unread"]) == (["fr-1"], ["de-1"], {})
    told = trace(whole)
    assert "model pretrain job babel" in told.out
    assert "only at home can de-1 be searched" in told.err


def test_an_edited_document_is_found_by_what_it_was_and_by_what_it_became(trace: Any, home: Home) -> None:
    before = asked(trace, text_digest(EMAIL))
    raw = next(line for line in before["found"] if line["class"] == "raw")
    assert raw["clean"] not in ("", raw["document"])
    after = asked(trace, raw["clean"])
    assert after["found"] == before["found"]
    assert f"stays, edited to {raw['clean']}" in trace(text_digest(EMAIL)).out


def test_a_token_leads_to_its_document_and_state(trace: Any, home: Home) -> None:
    shard = home.tokens.shards[0]
    place = asked(trace, shard.digest[:20], "--token", str(shard.tokens - 1))
    assert place == to_json(lineage.locate(home.tokens, shard.digest, shard.tokens - 1, home.store))
    assert (place["site"], place["territory"], place["licence"]) == ("fr-1", "fr", "CC0-1.0")
    refused = trace(shard.digest, "--token", str(shard.tokens))
    assert refused.code == 2
    assert "the shard has tokens 0 to" in refused.err


def test_a_shard_and_a_model_are_told_to_people(trace: Any, home: Home) -> None:
    shard = home.tokens.shards[0]
    for digits in (shard.digest, shard.digest.removeprefix("sha256:")):
        told = trace(digits)
        assert told.code == 0, told.err
        assert f"is shard 1 of {len(home.tokens.shards)} of laws-fr-tokens@1" in told.out
        assert "what was made of it:" in told.out
        assert "babel" in told.out
        assert f"({home.raw.id})" in told.out
    told = trace(home.model)
    assert "pretrain job babel by fr/amelie" in told.out.splitlines()[0]
    assert "manifest" in told.out.partition("in the ledger")[2]


def test_others_documents_are_known_at_their_homes_only(trace: Any, home: Home) -> None:
    unknown = trace("0" * 32)
    assert unknown.code == 5
    assert "no document" in unknown.err
    assert "at de-1 run consortium data trace" in unknown.err
    german = trace(text_digest(home.trained), who="de/anna")
    assert german.code == 5
    assert "no site of 'de' is on this machine" in german.err
    token = trace(home.tokens.shards[0].digest, "--token", "0", who="de/anna")
    assert token.code == 5
    assert "known at its home only" in token.err


def test_what_cannot_be_looked_in_is_said_and_the_rest_is_searched(trace: Any, home: Home) -> None:
    key, wanted = home.index_key(0), text_digest(home.trained)
    index = home.store.get(key)
    home.store.delete(key)
    try:
        found = asked(trace, wanted)
    finally:
        home.store.put(key, index)
    assert list(found["unread"]) == [home.tokens.id]
    assert {line["class"] for line in found["found"]} == {"raw", "clean"}


def test_a_collection_that_nobody_cleaned_is_read_through(fed: Any, trace: Any, home: Home) -> None:
    again = fed.dataset("fr-1", "laws-fr-again", shards=home.raw.shards)
    found = asked(trace, text_digest(home.removed))
    assert again.id in {line["dataset"] for line in found["found"]}


def test_tokens_of_what_is_no_shard_are_refused(trace: Any) -> None:
    refused = trace("laws-fr", "--token", "3")
    assert refused.code == 2
    assert "tokens are those of a shard" in refused.err
