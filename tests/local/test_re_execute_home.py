"""What may be asked to be done again; that it is, tests/integration does on a federation."""

from __future__ import annotations

from typing import Any

import pytest

from consortium.domain.codec import to_json
from consortium.domain.records import ReExecution
from consortium.errors import UsageError
from consortium.keys.canonical import canonical
from consortium.local.re_execute_home import MOST_DRAWN, MOST_SEED_CHARS, Wanted
from consortium.state.forms import MAX_BYTES


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "name rounds, or how many samples"),
        ({"rounds": (1,), "samples": 1, "seed": "s"}, "name rounds, or how many samples"),
        ({"samples": 3}, "drawn by a seed"),
        ({"rounds": (1,), "seed": "s"}, "drawn by a seed"),
        ({"samples": MOST_DRAWN + 1, "seed": "s"}, "at most 5,000 rounds"),
        ({"rounds": tuple(range(1, MOST_DRAWN + 2))}, "at most 5,000 rounds"),
        ({"samples": 3, "seed": "s" * (MOST_SEED_CHARS + 1)}, "more than 1,000 characters"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Wanted(**asked)


def test_the_record_of_the_most_that_may_be_asked_is_small_enough_to_be_taken() -> None:
    number = 1_000_000
    seed = "\N{GRINNING FACE}" * MOST_SEED_CHARS
    Wanted(samples=MOST_DRAWN, seed=seed)
    body = ReExecution(
        job="job-" + "0" * 26,
        round=number,
        site="fr-1",
        digest="sha256:" + "0" * 64,
        same_bits=False,
        distance=(0.1).hex(),
        cosine=(0.1).hex(),
        tolerance=(0.2).hex(),
        drawn=tuple(range(number, number - MOST_DRAWN, -1)),
        seed=seed,
        code_digest="sha256:" + "0" * 64,
        by="uy/carmen",
        signature="0" * 100,
    )
    assert len(canonical(to_json(body))) < MAX_BYTES - 1_000, "a record has a head of its own"
