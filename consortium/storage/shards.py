"""Byte formats of dataset shards.

Text shard: a Parquet file with the columns of `TEXT_SCHEMA`, one row per document, written with fixed options, so that
the same rows give the same bytes under one version of pyarrow.

Token shard: little-endian, made to be memory-mapped.

    offset  size            what
    0       8               magic `CSTOKEN1`
    8       2               bytes per token: 2 (uint16) or 4 (uint32)
    10      2               zero
    12      4               end-of-document token, written after every document
    16      8               number of documents D
    24      8               number of tokens N (end-of-document tokens counted)
    32      8 * (D + 1)     offset of each document's first token, then N
    ...     width * N       tokens
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from consortium.errors import UsageError, VerificationError

TEXT_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "text", "language", "licence", "source", "published", "contributor")]
)
"""`id` is unique in a dataset; `language` is what its collector declared; empty strings where unknown."""

_MAGIC = b"CSTOKEN1"
_HEADER = struct.Struct("<8sHHIQQ")

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def write_text(columns: Mapping[str, Sequence[str]] | pa.Table) -> bytes:
    """Return a text shard of `columns`; missing columns other than `id` and `text` are filled with empty strings."""
    names = columns.column_names if isinstance(columns, pa.Table) else list(columns)
    rows = len(columns["text"])
    arrays = [columns[name] if name in names else pa.array([""] * rows, pa.string()) for name in TEXT_SCHEMA.names]
    return write_table(pa.table(arrays, schema=TEXT_SCHEMA))


def write_table(table: pa.Table) -> bytes:
    """Return any table as Parquet bytes that depend on its rows and schema only."""
    sink = io.BytesIO()
    pq.write_table(
        table.combine_chunks().replace_schema_metadata(None),
        sink,
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in table.column_names if name not in ("id", "text")],
        row_group_size=16_384,
        data_page_version="1.0",
        write_statistics=False,
        store_schema=False,
    )
    return sink.getvalue()


def read_table(data: bytes, *, where: str = "shard") -> pa.Table:
    """Read Parquet bytes; raises VerificationError where they are not Parquet."""
    try:
        return pq.read_table(pa.BufferReader(data))
    except (pa.ArrowInvalid, OSError) as fault:
        raise VerificationError(f"not a readable Parquet shard: {fault}", where=where) from fault


@dataclass(frozen=True, slots=True)
class TokenShard:
    """A token shard's views into its buffer: no copy is made. Tokens of document i: `shard.document(i)`."""

    tokens: Tokens
    """All tokens, end-of-document tokens included."""
    offsets: npt.NDArray[np.uint64]
    """First token of each document, then the number of tokens."""
    eos: int

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    def document(self, index: int) -> Tokens:
        """Return one document's tokens without its end-of-document token."""
        return self.tokens[int(self.offsets[index]) : int(self.offsets[index + 1]) - 1]

    def __iter__(self) -> Iterator[Tokens]:
        return (self.document(index) for index in range(self.documents))


def token_width(vocab_size: int) -> int:
    """Return the bytes a token of a vocabulary takes: 2 up to 65,536 tokens, else 4."""
    return 2 if vocab_size <= 1 << 16 else 4


def join_tokens(bodies: Sequence[Tokens], lengths: npt.ArrayLike, *, eos: int, vocab_size: int) -> bytes:
    """Return a token shard of tokens that stand in `bodies`, one array after another.

    `lengths` are the documents' numbers of tokens, the `eos` that ends each counted. Raises UsageError where they do
    not add up to the tokens or a token lies outside the vocabulary. Holds the tokens twice: here and in the result.
    """
    width = token_width(vocab_size)
    dtype = np.dtype(f"<u{width}")
    sizes = np.asarray(lengths, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype("<u8")
    total = sum(body.size for body in bodies)
    if int(offsets[-1]) != total:
        raise UsageError(f"documents of {int(offsets[-1])} tokens in all cannot be made of {total}")
    if any(body.size and int(body.max()) >= vocab_size for body in bodies):
        raise UsageError(f"a token lies outside the vocabulary of {vocab_size}")
    header = _HEADER.pack(_MAGIC, width, 0, eos, sizes.size, total)
    plain = [np.ascontiguousarray(body, dtype=dtype).view(np.uint8) for body in bodies if body.size]
    return b"".join([header, offsets.tobytes(), *(body.data for body in plain)])


def read_tokens(data: bytes | memoryview, *, where: str = "shard") -> TokenShard:
    """View a token shard's bytes; raises VerificationError where lengths and header do not agree."""
    view = memoryview(data)
    if len(view) < _HEADER.size or bytes(view[:8]) != _MAGIC:
        raise VerificationError("not a token shard: it does not start with CSTOKEN1", where=where)
    _, width, _, eos, documents, tokens = _HEADER.unpack_from(view)
    start = _HEADER.size + 8 * (documents + 1)
    if width not in (2, 4) or len(view) != start + width * tokens:
        raise VerificationError(
            f"a token shard of {documents} documents and {tokens} tokens cannot have {len(view)} bytes", where=where
        )
    offsets = np.frombuffer(view, dtype="<u8", count=documents + 1, offset=_HEADER.size)
    if int(offsets[0]) != 0 or int(offsets[-1]) != tokens or bool(np.any(offsets[1:] <= offsets[:-1])):
        raise VerificationError("the document offsets of a token shard do not ascend to its end", where=where)
    return TokenShard(
        tokens=np.frombuffer(view, dtype=f"<u{width}", count=tokens, offset=start), offsets=offsets, eos=eos
    )


def map_tokens(path: str | Path) -> TokenShard:
    """Memory-map a token shard in a file: pages are read when they are touched.

    Arrow's map keeps no file open, as Python's own does: a worker maps more shards than it may have open files.
    """
    with pa.memory_map(str(path)) as file:
        return read_tokens(memoryview(file.read_buffer()), where=str(path))
