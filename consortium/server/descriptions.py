"""What a dataset may say of itself: people and programs describe them, and rules, traces and lists read it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from consortium.domain import ids
from consortium.domain.codec import to_json
from consortium.domain.data import Dataset, inherited
from consortium.domain.units import MAX_SAFE_INTEGER
from consortium.errors import UsageError

MAX_CHARS = 500
"""Of a licence, a source or an attribute."""
MAX_DESCRIPTION_CHARS = 100_000
"""Of all that is said but the shards."""
MAX_SHARD_CHARS = 500
"""Of a shard's key, and its digest."""


def check_description(dataset: Dataset) -> None:
    """Raise UsageError for what somebody registers that is no description of a collection.

    Rules go by names of categories, and a collection was made of nothing that the consortium knows.
    """
    if dataset.parents or dataset.manifest_digest or dataset.held_out:
        what = "a collection that somebody registers has no parents, no manifest, and is not held out"
        raise UsageError(what, where=dataset.name, fix="only jobs make datasets from others")
    for name in dataset.categories:
        if not ids.is_name(name):
            fix = "categories are words of lower-case letters, digits, '.', '_' and '-', as rules name them"
            raise UsageError(f"{name[:80]!r} is no category", where=dataset.name, fix=fix)
    texts = [dataset.licence, dataset.source, *dataset.languages, *dataset.attributes, *dataset.attributes.values()]
    _check_texts(texts, MAX_CHARS, dataset.name)
    _check_texts([text for one in dataset.shards for text in (one.key, one.digest)], MAX_SHARD_CHARS, dataset.name)
    said = {**to_json(dataset), "shards": []}
    if len(json.dumps(said)) > MAX_DESCRIPTION_CHARS:
        raise UsageError(f"it describes itself in more than {MAX_DESCRIPTION_CHARS:,} characters", where=dataset.name)
    for shard in dataset.shards:
        if not all(0 <= number <= MAX_SAFE_INTEGER for number in (shard.size_bytes, shard.documents, shard.tokens)):
            raise UsageError(
                f"shard {shard.key} counts less than nothing, or more than {MAX_SAFE_INTEGER:,}", where=dataset.name
            )


def check_output(output: Dataset, inputs: Iterable[Dataset]) -> None:
    """Raise ValueError for an output that was made of something else than inputs, or says less than they of its use."""
    read = {item.id: item for item in inputs}
    if not output.parents or not set(output.parents) <= read.keys():
        raise ValueError(f"dataset {output.name} names parents that its leg did not read")
    parents = [read[name] for name in output.parents]
    if not {name for item in parents for name in item.categories} <= set(output.categories):
        raise ValueError(f"dataset {output.name} leaves out categories of what it was made of")
    ends = inherited(item.about for item in parents).consent_until
    if ends and not "" < output.about.consent_until <= ends:
        raise ValueError(f"dataset {output.name} leaves out that the consent to what it was made of ends on {ends}")


def _check_texts(texts: Iterable[str], most: int, where: str) -> None:
    for text in texts:
        if len(text) > most or not text.isprintable():
            raise UsageError(f"{text[:40]!r} is longer than {most} characters of one line", where=where)
