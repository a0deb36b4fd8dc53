"""From texts to tokens: one text shard's documents, encoded and made ready for the shuffle."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from consortium.data import words
from consortium.data.documents import text_digest
from consortium.data.shuffle import order_of, run_schema
from consortium.storage.shards import Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPLITS = ("heldout", "tokens")
PIECE_CHARS = 100_000
"""Longer texts are encoded piece by piece: an encoding takes about a hundred bytes per token."""
_MAX_KNOWN = 500_000
_CUT = re.compile(r"(?<=\S)[ \n]")


def runs_of(
    table: pa.Table, number: int, tokenizer: Tokenizer, *, held_out_percent: int, seed: int, eos: int, width: int
) -> dict[str, pa.Table]:
    """Return text shard `number` as runs, one per split that has documents; their columns are those of `run_schema`."""
    texts = table.column("text").to_pylist()
    held = np.array([words.is_held_out(text, held_out_percent) for text in texts], dtype=bool)
    found = {}
    for split in SPLITS:
        rows = np.flatnonzero(held if split == "heldout" else ~held)
        if len(rows):
            found[split] = _run(table.take(pa.array(rows)), rows, number, tokenizer, seed, eos, width)
    return found


def encode(texts: Sequence[str], tokenizer: Tokenizer, *, eos: int, width: int) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """Return the tokens of all texts, one after another, each text ended by `eos`, and how many each has.

    `tokenizer` is one that `bpe.train` made. Its tokens of a word do not depend on what stands around it, so each word
    is encoded once and then looked up; texts with characters that `words_of` is not sure of go to the tokenizer whole.
    A text that spells a special token gets the letters' tokens, never that token. On one thread: the cluster gives a
    task one CPU, and encodes as many shards at a time as it has of them.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer.encode_special_tokens = True
    known = _Known(tokenizer, np.dtype(f"<u{width}"))
    end = np.array([eos], dtype=known.dtype).tobytes()
    parts: list[bytes] = []
    lengths = np.zeros(len(texts), dtype=np.int64)
    for number, text in enumerate(texts):
        for piece in _pieces(text):
            found = b"".join(map(known.__getitem__, words_of(piece))) if sure(piece) else known.whole(piece)
            parts.append(found)
            lengths[number] += len(found) // width
        parts.append(end)
    tokens = np.frombuffer(b"".join(parts), dtype=known.dtype)
    return cast(Tokens, tokens), lengths + 1


class _Known(dict[str, bytes]):
    """Words' tokens as they stand in a token shard; a new word is encoded when it is asked for."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> bytes:
        if len(self) >= _MAX_KNOWN:
            self.clear()
        found = self[word] = self.whole(word)
        return found

    def whole(self, text: str) -> bytes:
        """Encode a text as it is."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=self.dtype).tobytes()


def words_of(text: str) -> list[str]:
    """Return what the byte-level rule of GPT-2 cuts a text into, in order; right where `sure` says so.

    The rule is `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`.
    """
    return _WORD.findall(text)


def sure(text: str) -> bool:
    """Tell whether all characters are of scripts whose letters are the same in every version of Unicode."""
    return text.isascii() or _UNSURE.search(text) is None


_SURE = [*range(0x0530), *range(0x2000, 0x2070), *range(0x20A0, 0x20C0), *range(0x2100, 0x2150)]
"""Latin, Greek, Cyrillic, punctuation, currencies, letterlike signs."""
_SPACES = "\t\n\x0b\x0c\r \x85\xa0\u2000-\u200a\u2028\u2029\u202f\u205f"
_LETTERS, _NUMBERS = (
    "".join(map(chr, (code for code in _SURE if unicodedata.category(chr(code))[0] == kind))) for kind in "LN"
)
_WORD = re.compile(
    f"'s|'t|'re|'ve|'m|'ll|'d| ?[{_LETTERS}]+| ?[{_NUMBERS}]+| ?[^{_SPACES}{_LETTERS}{_NUMBERS}]+"
    f"|[{_SPACES}]+(?![^{_SPACES}])|[{_SPACES}]+"
)
_UNSURE = re.compile("[^\x00-\u052f\u2000-\u206f\u20a0-\u20bf\u2100-\u214f]")


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text where white space follows something else: there the byte-level rule always begins a new word."""
    start = 0
    while len(text) - start > PIECE_CHARS and (cut := _CUT.search(text, start + PIECE_CHARS)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _run(
    table: pa.Table, rows: npt.NDArray[np.int64], number: int, tokenizer: Tokenizer, seed: int, eos: int, width: int
) -> pa.Table:
    texts = table.column("text").to_pylist()
    tokens, lengths = encode(texts, tokenizer, eos=eos, width=width)
    documents = [text_digest(text) for text in texts]
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    schema = run_schema(width)
    columns = {
        **{name: table.column(name).combine_chunks() for name in ("id", "licence", "contributor", "language")},
        "document": pa.array(documents, pa.string()),
        "order": pa.array([order_of(document, seed) for document in documents], pa.uint64()),
        "shard": pa.array(np.full(len(rows), number), pa.int64()),
        "row": pa.array(rows, pa.int64()),
        "tokens": pa.LargeListArray.from_arrays(offsets, pa.array(tokens)),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)
