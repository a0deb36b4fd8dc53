"""A byte-level BPE tokenizer from word counts: the same counts give the same tokenizer, to the byte.

`tokenizers` trains from text, so the counts are played back as text: every word as often as it was counted, scaled
down to about `PLAYED_WORDS` in all. Its trainer breaks ties by token id and sorts its alphabet, so neither the order of
words nor the number of threads shows in the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from consortium.errors import UsageError
from consortium.keys.canonical import digest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS = "<|endoftext|>"
EOS_ID = 0
PLAYED_WORDS = 2_000_000
_WORDS_PER_PIECE = 2_000
_BASE_TOKENS = 257


def train(counts: Mapping[str, int], vocab_size: int) -> bytes:
    """Return the tokenizer as its JSON file. Raises UsageError where there are no counts or no room for merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if not counts:
        raise UsageError("no word is frequent enough at any site", fix="lower min_count, or give more text")
    if vocab_size < _BASE_TOKENS:
        raise UsageError(f"vocab_size must be at least {_BASE_TOKENS}: 256 bytes and the end mark, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_played(counts), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    data: str = tokenizer.to_str()
    return data.encode()


def load(data: bytes) -> Tokenizer:
    """Return the tokenizer in a JSON file's bytes."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(data.decode())


def tokenizer_digest(data: bytes) -> str:
    """Return what sites compare: the digest of the JSON file."""
    return digest(data)


def _played(counts: Mapping[str, int]) -> Iterator[str]:
    """Yield pieces of text in which each word stands, in the byte-level alphabet, in proportion to its count."""
    from tokenizers import pre_tokenizers

    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    total = sum(counts.values())
    for word in sorted(counts):
        times = counts[word] if total <= PLAYED_WORDS else max(1, counts[word] * PLAYED_WORDS // total)
        spelt = to_bytes.pre_tokenize_str(word)[0][0] + " "
        while times > 0:
            yield spelt * min(times, _WORDS_PER_PIECE)
            times -= _WORDS_PER_PIECE
