"""From texts to tokens: one text shard's documents, encoded and made ready for the shuffle."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
_BATCH_CHARS = 500_000
_CUT = re.compile(r"(?<=\S)[ \n]")


class _Piece(NamedTuple):
    text: str
    document: int
    last: bool


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

    A text that spells a special token gets the letters' tokens, never that token. On one thread: the cluster gives a
    task one CPU, and encodes as many shards at a time as it has of them.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer.encode_special_tokens = True
    dtype = np.dtype(f"<u{width}")
    end = np.array([eos], dtype=dtype)
    parts: list[npt.NDArray[Any]] = [end[:0]]
    lengths = np.zeros(len(texts), dtype=np.int64)
    for batch in _batches(texts):
        encoded = tokenizer.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        for piece, encoding in zip(batch, encoded, strict=True):
            ids = np.array(encoding.ids, dtype=dtype)
            parts.extend((ids, end) if piece.last else (ids,))
            lengths[piece.document] += ids.size + piece.last
    return np.concatenate(parts), lengths


def _batches(texts: Sequence[str]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    held = 0
    for number, text in enumerate(texts):
        for piece in _pieces(text, number):
            batch.append(piece)
            held += len(piece.text)
            if held >= _BATCH_CHARS:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch


def _pieces(text: str, number: int) -> Iterator[_Piece]:
    """Cut a long text where white space follows something else: there the byte-level rule always begins a new word."""
    start = 0
    while len(text) - start > PIECE_CHARS and (cut := _CUT.search(text, start + PIECE_CHARS)):
        yield _Piece(text[start : cut.start()], number, last=False)
        start = cut.start()
    yield _Piece(text[start:], number, last=True)


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
