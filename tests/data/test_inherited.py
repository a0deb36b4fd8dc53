from __future__ import annotations

from typing import Any

import pytest

from consortium.data.manifest import Stage
from consortium.data.outputs import clean_output, token_outputs
from consortium.data.tokenize import Vocabulary
from consortium.domain.data import Description
from tests.builders import dataset, new_id, shard

ABOUT = Description(
    legal_basis=("law 1",), contributors=("Archives",), collected_from="2001-01-01", consent_until="2030-06-30"
)


def test_clean_text_and_tokens_keep_basis_contributors_and_end_of_consent() -> None:
    raw = dataset(about=ABOUT)
    outputs = {"clean": (shard(1),), "tokens": (shard(2),), "heldout": (shard(3),)}
    manifest: dict[str, Any] = {"config": {"languages": ["fr"]}}
    stage = Stage(
        outputs=outputs, manifest=manifest, manifest_digest="sha256:" + "a" * 64, manifest_key="p/manifests/a"
    )
    clean = clean_output(raw, stage, new_id("ds", 2))
    numbers = iter(range(3, 9))
    vocabulary = Vocabulary(key="t", digest="sha256:" + "b" * 64, size=300)
    made = [clean, *token_outputs(clean, stage, vocabulary, lambda: new_id("ds", next(numbers)))]
    assert len(made) == 3
    assert all(item.about == ABOUT for item in made)
    assert all(item.consent_over(1_909_094_400_000).endswith("ended on 2030-06-30") for item in made)


@pytest.mark.parametrize("held_out", [False, True])
def test_what_is_made_of_a_held_out_dataset_is_held_out(held_out: bool) -> None:
    stage = Stage(
        outputs={"clean": (shard(1),), "tokens": (shard(2),), "heldout": (shard(3),)},
        manifest={"config": {"languages": ["fr"]}},
        manifest_digest="sha256:" + "a" * 64,
        manifest_key="p/manifests/a",
    )
    clean = clean_output(dataset(held_out=held_out), stage, new_id("ds", 2))
    numbers = iter(range(3, 9))
    vocabulary = Vocabulary(key="t", digest="sha256:" + "b" * 64, size=300)
    tokens = token_outputs(clean, stage, vocabulary, lambda: new_id("ds", next(numbers)))
    assert [each.held_out for each in (clean, *tokens)] == [held_out, held_out, True]
