"""Languages as collections name them, and as the language model does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consortium.data import cluster
from consortium.data.in_place import describe_in_place
from consortium.data.language import code_of, codes_of, known_languages, unknown_among
from consortium.data.languages import described
from consortium.data.register import register_collection
from consortium.data.sample import generate
from consortium.data.screening import judges
from consortium.domain.cleaning import CleanConfig
from consortium.errors import ConfigError, UsageError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import write_text
from tests.builders import new_id
from tests.cleaned import clean_dataset

CONFIG = CleanConfig(languages=(), min_language_confidence=0.5, min_chars=40, max_chars=1_000_000)


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ("fr FR fr-FR fr_CA fra fre FRA fr-Latn-CA", "fr"),
        ("en-US eng", "en"),
        ("zh-Hans-CN zho cmn", "zh"),
        ("nb-NO nob no nb", "no"),
        ("fil tgl tl", "tl"),
        ("gn gug", "gug"),
        ("sh sr-Latn srp", "sr"),
        ("gsw gsw-CH", "gsw"),
        ("French und x f fr--FR français", "und"),
    ],
)
def test_a_tag_names_the_language_the_model_calls_so(tags: str, code: str) -> None:
    assert {tag: code_of(tag) for tag in tags.split()} == dict.fromkeys(tags.split(), code)


def test_every_language_of_the_model_is_its_own_code_and_may_be_asked_for() -> None:
    assert [code for code in sorted(known_languages()) if code_of(code) != code] == []
    for code in known_languages():
        assert judges(replace(CONFIG, languages=(code,)))
    assert not set(described()) - known_languages()
    assert unknown_among(["fr", "kab", "gsw"]) == ["gsw"]


def test_a_person_who_names_no_language_is_told() -> None:
    assert codes_of(("fr-FR", "deu", "fr")) == ("de", "fr")
    with pytest.raises(UsageError, match="'French'"):
        codes_of(("fr", "French"))


@pytest.mark.integration
def test_a_collection_is_cleaned_whatever_its_tags_look_like(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def each(function: Callable[..., Any], rows: Any, arguments: Any, **_: Any) -> list[cluster.Row]:
        return [function(dict(row), **arguments) for row in rows]

    monkeypatch.setattr(cluster, "each", each)
    texts = [row["text"] for row in generate("fr", documents=40, seed=1).rows]
    tags = ["fr", "FR", "fr-FR", "fr_CA", "fra", "gsw", "en-US", "und"]
    rows = [{"text": text, "language": tags[at % len(tags)]} for at, text in enumerate(texts)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    made = register_collection([tmp_path], store, "x", "fr-1", dataset_id=new_id("ds", 1), note=said.append)
    assert made.languages == ("en", "fr", "gsw")
    assert any("does not know gsw" in line for line in said)
    stage = clean_dataset(made, CONFIG, store, "jobs/1")
    assert stage.manifest["config"]["languages"] == ["en", "fr"]
    assert sum(shard.documents for shard in stage.outputs["clean"]) > 20
    older = replace(made, languages=("fr-FR", "fr"))
    assert clean_dataset(older, CONFIG, store, "jobs/2").manifest["config"]["languages"] == ["fr"]
    for languages in (("gsw",), ("French",), ()):
        with pytest.raises(ConfigError, match="language"):
            clean_dataset(replace(made, languages=languages), CONFIG, store, "jobs/3")


@pytest.mark.integration
def test_shards_in_place_are_described_by_the_languages_their_tags_name(store: ObjectStore) -> None:
    store.put("mine/1.parquet", write_text({"id": ["a", "b"], "text": ["a", "b"], "language": ["fr_CA", "FR"]}))
    made = describe_in_place(
        [f"s3://{store.bucket}/mine"], store, "x", "fr-1", dataset_id=new_id("ds", 1), territory="fr", version=1
    )
    assert made.languages == ("fr",)
