"""Params of `tokenize`, and what no job can loosen of the word counts that sites tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from consortium.domain.bounds import within

LEAST_COUNT = 3
"""How often a word stands at a site that tells of it, at least."""
LEAST_DOCUMENTS = 2
"""In how many of its documents, at least: one person's file alone decides nothing."""
MOST_CHARS = 64
"""Of a word; longer ones are sentences in scripts without spaces, or numbers and keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeConfig:
    """Params of `tokenize`; configs and the sites themselves hold them to these bounds."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    vocab_size: int
    min_count: int
    """Words rarer than this at a site are never sent."""
    max_word_chars: int
    held_out_percent: int
    max_per_document: int = 100
    """What one document adds to one word's count at most."""
    min_documents: int = 2
    """Words that stand in fewer documents of a site are never sent."""
    seed: int = 0
    """Of the order of documents in the token shards."""
    shard_tokens: int = 1 << 25
    """Tokens per shard at most, the rest of its last document left out."""

    def __post_init__(self) -> None:
        within(self, vocab_size=(320, 1_000_000), min_count=(LEAST_COUNT, 1_000_000))
        within(self, max_word_chars=(4, MOST_CHARS), held_out_percent=(0, 50))
        within(self, max_per_document=(1, 1_000_000), min_documents=(LEAST_DOCUMENTS, 1_000_000))
        within(self, seed=(0, 2**53 - 1), shard_tokens=(1 << 10, 1 << 25))
