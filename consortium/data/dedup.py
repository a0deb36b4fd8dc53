"""Exact duplicates over a whole dataset: equal normalised text. The earliest (shard, row) survives.

Normalised text: NFC, case folded, without zero-width spaces, full-width and half-width forms in their usual width, runs
of white space as one space: how a text was typed makes no other text of it. A text is known by 128 bits of BLAKE2b of
it; the driver holds 16 bytes and a few indexes per document, about 50 bytes each.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from ftfy.chardata import WIDTH_MAP

KEY_BYTES = 16
_FOLDED = {**WIDTH_MAP, 0x200B: None}
_FORMS = re.compile("[\u200b\uff01-\uffee]")


def key(text: str) -> bytes:
    """Return 16 bytes that two texts share exactly when their normalised forms are equal (but for hash collisions)."""
    if not text.isascii() and _FORMS.search(text) is not None:
        text = text.translate(_FOLDED)
    normal = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return hashlib.blake2b(normal.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def survivors(
    keys: Sequence[bytes], *, among: Sequence[npt.NDArray[np.bool_]] | None = None
) -> list[npt.NDArray[np.int64]]:
    """Tell, for the documents of each shard in order, which document survives in their place.

    `keys` holds one byte string per shard, 16 bytes per document. The answer gives each document's survivor as its
    position in the whole dataset's order; a document that is its own survivor stays. Those outside `among` are left
    alone: they stand for themselves and for nobody else.
    """
    counts = [len(part) // KEY_BYTES for part in keys]
    halves = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, 2)
    chosen = np.arange(len(halves), dtype=np.int64)
    taking = chosen.copy() if among is None else np.flatnonzero(np.concatenate([np.empty(0, dtype=bool), *among]))
    halves = halves[taking]
    order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal keys stay in their order
    ordered = halves[order]
    starts = np.ones(len(order), dtype=bool)
    starts[1:] = np.any(ordered[1:] != ordered[:-1], axis=1)
    first_of_group = order[starts][np.cumsum(starts) - 1] if len(order) else order
    chosen[taking[order]] = taking[first_of_group]
    return list(np.split(chosen, np.cumsum(counts)[:-1])) if counts else []
