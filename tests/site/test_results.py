"""What a result may say: all that the programs leave, and no text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.data import Shard
from consortium.errors import UsageError
from consortium.site.gateway.results import check_outputs, checked_digest, checked_metrics
from tests import builders

PROSE = "a whole text, word for word, as it stands in the collection. " * 4
SHA = "sha256:" + "5" * 64
ONE = f"sha256:{1:064x}"
CLEAN = {"documents_in": 400, "removed.gopher.min_words": 12, "language.zh-Hant.documents_in": 3, "tracked": 1}
EVALUATE = {
    "loss": {"de+fr": {"before": 9.123456789, "after": 3.5}},
    "by_round": {"de+fr": {"0": 9.123456789, "10": 3.5}},
    "tokens": {"de+fr": 1 << 40},
    "rounds": [0, 10],
}
PRETRAIN = {
    "mixture": {"laws-fr@2": {"share": 0.25, "passes": 1 / 3}},
    "model_source": f"consortium-mamba 1.2 {SHA}",
    "rounds": 500,
    "tokens": "9007199254740993",
    "outer_digest": SHA,
    "outer_digests": {str(number): SHA for number in range(501)},
    "loss": {str(number): 2.5 for number in range(500)},
}


def spec(rounds: int = 0) -> Any:
    return builders.spec("pretrain", params={"outer": {"rounds": rounds}}) if rounds else builders.spec("clean")


def test_what_the_programs_leave_passes_with_six_digits() -> None:
    assert checked_metrics(CLEAN, spec()) == CLEAN
    found = checked_metrics(EVALUATE, spec())
    assert found["loss"]["de+fr"]["before"] == found["by_round"]["de+fr"]["0"] == 9.12346
    assert found["rounds"] == [0, 10]
    whole = checked_metrics(PRETRAIN, spec(500))
    assert whole["mixture"]["laws-fr@2"] == {"share": 0.25, "passes": 0.333333}
    assert whole["outer_digests"] == PRETRAIN["outer_digests"]
    assert checked_metrics({"loss": float("nan")}, spec()) == {"loss": "NaN"}


@pytest.mark.parametrize(
    "metrics",
    [
        {"x": PROSE},
        {"x": "two\nlines"},
        {"x": {str(number): "short enough for one word, not for all of them" for number in range(100)}},
        {PROSE[:50]: 1},
        {"x": {PROSE[:50]: 1}},
        {"x": {f"{number}-{'n' * 150}": 1 for number in range(500)}},
        {"x": {"a": {"b": {"c": 1}}}},
        {"x": {"a": {"b": [1]}}},
        {"x": [[1]]},
        {"x": 1 << 64},
        {"x": {str(number): SHA for number in range(101)}},
        {"x": [1] * 250_001},
    ],
)
def test_texts_depths_and_amounts_that_no_program_leaves_are_refused(metrics: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not metrics"):
        checked_metrics(metrics, spec())


def test_a_manifests_digest_is_a_digest() -> None:
    assert [checked_digest(text) for text in ("", SHA)] == ["", SHA]
    for text in (PROSE, "sha256:abc", SHA + "\n"):
        with pytest.raises(UsageError, match="64 hex digits"):
            checked_digest(text)


def test_an_output_says_what_a_description_needs_and_what_its_inputs_say() -> None:
    source = builders.dataset(source=PROSE * 10, attributes={"note": PROSE * 10})
    output = replace(source, attributes={"manifest_key": "jobs/j/manifests/x.json"}, parents=(source.id,))
    check_outputs([output], [source])
    with pytest.raises(UsageError, match="source is longer"):
        check_outputs([output], [])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"licence": PROSE * 3}, "licence is longer"),
        ({"attributes": {"note": "two\nlines"}}, "note is longer"),
        ({"attributes": {PROSE + str(number): "" for number in range(100)}}, "describe themselves"),
        ({"categories": (PROSE * 500,)}, "describe themselves"),
        ({"manifest_digest": PROSE}, "64 hex digits"),
        ({"parents": (PROSE,)}, "ids of the form"),
        ({"shards": (Shard(key=f"raw/{PROSE}", digest=ONE, size_bytes=1, documents=1),)}, "is no key"),
        ({"shards": (Shard(key=f"a text/{ONE[7:]}.parquet", digest=ONE, size_bytes=1, documents=1),)}, "is no key"),
        ({"shards": (Shard(key="raw/x.parquet", digest="x", size_bytes=1, documents=1),)}, "is no key"),
        (
            {"shards": tuple(replace(builders.shard(1), key=f"f{n}/{ONE[7:]}.parquet") for n in range(101))},
            "more than 100 folders",
        ),
    ],
)
def test_an_output_that_could_carry_text_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        check_outputs([replace(builders.dataset(), **changes)], [builders.dataset()])
