"""The order of a dataset's documents after tokenizing: a shuffle in two passes that holds a shard's tokens at a time.

A document's place is a keyed hash of the seed and its text's digest, so it depends neither on the cut into text shards
nor on who worked when; equal texts stand beside each other, by id. The first pass leaves one *run* per text shard: its
documents, grouped by the leading bits of that hash into buckets. All runs' tokens per bucket add up to where each
bucket begins in the whole, so the second pass knows which buckets a token shard takes, reads these of every run, sorts
and cuts. The number of buckets bounds memory and does not show in the result.

    offset  size            what
    0       8               magic `CSRUN001`
    8       8               number of buckets B
    16      16 * (B + 1)    per bucket: where it begins, 8 bytes of BLAKE2b of its bytes; then the end and zeros
    ...                     per bucket: an Arrow record batch of `run_schema`; nothing where it is empty
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from consortium.data import markers
from consortium.errors import VerificationError
from consortium.storage.objects import ObjectStore
from consortium.storage.shards import Tokens

MAX_BUCKETS = 1 << 12
BUCKETS_PER_SHARD = 16
_READERS = 8
_MAGIC = b"CSRUN001"
_HEADER = struct.Struct("<8sQ")
_ENTRY = np.dtype([("offset", "<u8"), ("check", "V8")])
_SORTED_BY = [(name, "ascending") for name in ("order", "document", "id", "shard", "row")]
Counts = npt.NDArray[np.int64]


def run_schema(width: int) -> pa.Schema:
    """Return the columns of a run whose tokens take `width` bytes.

    `order` is the document's place; `shard` and `row` tell where its text stands: the text shard's number and the row.
    """
    texts = [(name, pa.string()) for name in ("document", "id", "licence", "contributor", "language")]
    tokens = pa.large_list(pa.uint16() if width == 2 else pa.uint32())
    return pa.schema([("order", pa.uint64()), *texts, ("shard", pa.int64()), ("row", pa.int64()), ("tokens", tokens)])


def order_of(document: str, seed: int) -> int:
    """Return a document's place among all, a number of 64 bits; `document` is its text's digest in hex."""
    key = seed.to_bytes(8, "big")
    return int.from_bytes(
        hashlib.blake2b(bytes.fromhex(document), key=key, digest_size=8, person=b"token-order").digest(), "big"
    )


def buckets_for(tokens: int, shard_tokens: int) -> int:
    """Return into how many buckets, a power of two, to cut about `tokens` tokens for shards of `shard_tokens`."""
    wanted = -(-BUCKETS_PER_SHARD * tokens // shard_tokens)
    return min(MAX_BUCKETS, 1 << max(0, wanted - 1).bit_length())


def pack_run(table: pa.Table, buckets: int) -> tuple[bytes, Counts]:
    """Return the bytes of a run of `table`, and its tokens by bucket."""
    numbers = _bucket_of(table.column("order").to_numpy(), buckets)
    lengths = pc.list_value_length(table.column("tokens")).to_numpy()
    grouped = np.argsort(numbers, kind="stable")
    bounds = np.searchsorted(numbers[grouped], np.arange(buckets + 1))
    whole = table.take(pa.array(grouped)).combine_chunks()
    pieces = [_piece(whole, int(start), int(end)) for start, end in pairwise(bounds)]
    entries = np.zeros(buckets + 1, dtype=_ENTRY)
    start = _HEADER.size + entries.nbytes
    entries["offset"] = start + np.cumsum([0, *map(len, pieces)])
    entries["check"][:-1] = np.array([_check(piece) for piece in pieces], dtype="V8")
    totals = np.bincount(numbers, weights=lengths, minlength=buckets).astype(np.int64)
    return b"".join([_HEADER.pack(_MAGIC, buckets), entries.tobytes(), *pieces]), totals


def read_buckets(store: ObjectStore, key: str, first: int, last: int) -> list[bytes]:
    """Return the buckets [first, last) of a stored run. Raises as `markers.reading` does."""
    with markers.reading(store, key):
        return _buckets(store, key, first, last)


def _buckets(store: ObjectStore, key: str, first: int, last: int) -> list[bytes]:
    head = store.get_range(key, _HEADER.size + _ENTRY.itemsize * first, _ENTRY.itemsize * (last - first + 1))
    entries = np.frombuffer(head[: len(head) // _ENTRY.itemsize * _ENTRY.itemsize], dtype=_ENTRY)
    offsets = entries["offset"].tolist()
    if len(offsets) != last - first + 1 or sorted(offsets) != offsets:
        raise VerificationError("not a run of tokenized documents")
    if offsets[0] == offsets[-1]:
        return [b""] * (last - first)
    body = store.get_range(key, offsets[0], offsets[-1] - offsets[0])
    pieces = [body[start - offsets[0] : end - offsets[0]] for start, end in pairwise(offsets)]
    for piece, entry in zip(pieces, entries[:-1], strict=True):
        if _check(piece) != entry["check"].tobytes():
            raise VerificationError("a bucket's bytes are not those written")
    return pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One token shard's part of the whole: documents whose first token is one of [start, end), from buckets
    [first, last), before which stand `base` tokens."""

    start: int
    end: int
    first: int
    last: int
    base: int


def cuts(totals: Counts, shard_tokens: int) -> list[Cut]:
    """Return equal parts of at most `shard_tokens` tokens; each takes its last document whole, so it may be longer."""
    ends = np.cumsum(totals)
    whole = int(ends[-1])
    number = -(-whole // shard_tokens)
    bounds = [whole * i // number for i in range(number + 1)] if number else []
    found = []
    for start, end in pairwise(bounds):
        first = int(np.searchsorted(ends, start, side="right"))
        last = int(np.searchsorted(ends, end - 1, side="right")) + 1
        found.append(Cut(start=start, end=end, first=first, last=last, base=int(ends[first] - totals[first])))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffled:
    """A part's documents in their order: tokens, tokens per document, and the runs' other columns."""

    bodies: list[Tokens]
    lengths: Counts
    documents: pa.Table


def gather(store: ObjectStore, runs: Sequence[str], cut: Cut, width: int) -> Shuffled:
    """Read a part's buckets of all stored `runs`, sort their documents and cut."""
    schema = run_schema(width)
    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(lambda key: read_buckets(store, key, cut.first, cut.last), runs))
    bodies: list[Tokens] = []
    lengths: list[Counts] = [np.zeros(0, dtype=np.int64)]
    documents = [schema.empty_table().drop_columns("tokens")]
    base = cut.base
    for table in _tables(read, schema):
        keys = table.drop_columns("tokens")
        chosen = pc.sort_indices(keys, sort_keys=_SORTED_BY).to_numpy()
        sizes = pc.list_value_length(table.column("tokens")).to_numpy()[chosen].astype(np.int64)
        starts = base + np.cumsum(sizes) - sizes
        base += int(sizes.sum())
        inside = slice(*np.searchsorted(starts, [cut.start, cut.end]).tolist())
        taken = pa.array(chosen[inside])
        if len(taken):
            bodies.append(table.column("tokens").take(taken).combine_chunks().flatten().to_numpy())
            lengths.append(sizes[inside])
            documents.append(keys.take(taken))
    return Shuffled(bodies=bodies, lengths=np.concatenate(lengths), documents=pa.concat_tables(documents))


def _tables(read: list[list[bytes]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the buckets in their order, each over all runs, and let go of each."""
    for number in range(len(read[0]) if read else 0):
        pieces = [pieces[number] for pieces in read if pieces[number]]
        for of_run in read:
            of_run[number] = b""
        if pieces:
            batches = [pa.ipc.read_record_batch(pa.py_buffer(piece), schema) for piece in pieces]
            yield pa.Table.from_batches(batches, schema).combine_chunks()


def _bucket_of(orders: npt.NDArray[np.uint64], buckets: int) -> npt.NDArray[np.int64]:
    bits = buckets.bit_length() - 1
    return (orders >> np.uint64(64 - bits)).astype(np.int64) if bits else np.zeros(len(orders), dtype=np.int64)


def _piece(table: pa.Table, start: int, end: int) -> bytes:
    if start == end:
        return b""
    [batch] = table.slice(start, end - start).to_batches()
    return bytes(batch.serialize())


def _check(piece: bytes) -> bytes:
    return hashlib.blake2b(piece, digest_size=8).digest()
