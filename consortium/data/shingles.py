"""Words and word n-grams of many texts at once, as 64-bit numbers.

A word is a run of letters, digits and combining marks after NFC, each folded to lower case where that is one character.
Where a script puts no spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar) every character is a word.

A word's number is a polynomial of its characters modulo 2^64 at a point drawn from the key, then finalised with
splitmix64 (Steele, Lea and Flood, OOPSLA 2014). An n-gram's number is a multilinear hash of its words' numbers with
multipliers drawn from the key (Lemire and Kaser, The Computer Journal 57(11), 2014). All constants come from keyed
BLAKE2b: two keys give unrelated numbers, the same key gives the same numbers on every machine. Which characters are
letters is the running Python's Unicode table: sites that compare numbers run the same Python minor version.

A call holds about 60 bytes per character of its texts; `blocks` cuts a collection so that this stays small.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from consortium.domain.cleaning import MAX_NGRAM
from consortium.errors import ConfigError

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

BLOCK_CHARS = 1 << 17
"""Characters looked at together: what comes of them stays in a core's second-level cache."""

_KNOWN_POINTS = 0x32400  # above: no letters are assigned (Unicode 16)
_ALONE = ((0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0xA000),
          (0xF900, 0xFB00), (0x20000, _KNOWN_POINTS))  # fmt: skip
_ALONE_BIT = 1 << 31
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Hashing:
    """The constants that one key gives: the polynomial's point and its inverse, a salt, a multiplier per word."""

    point: int
    inverse: int
    salt: int
    multipliers: U64


@dataclass(frozen=True, slots=True)
class Words:
    """The words of some texts: `hashes[bounds[i]:bounds[i + 1]]` are those of text i.

    `points` are the folded characters of all texts, 0 where there is no word; word w is `points[begins[w]:ends[w]]`.
    `texts[i]` is the place of text i's first character.
    """

    hashes: U64
    bounds: I64
    points: U32
    begins: I64
    ends: I64
    texts: I64

    def spelled(self, first: int, count: int) -> str:
        """Return words [first, first + count) as they were compared: folded, one space between them."""
        spans = zip(self.begins[first : first + count], self.ends[first : first + count], strict=True)
        return " ".join(
            (self.points[begin:end] & ~np.uint32(_ALONE_BIT))
            .astype("<u4")
            .tobytes()
            .decode("utf-32-le", "surrogatepass")
            for begin, end in spans
        )


@dataclass(frozen=True, slots=True)
class Grams:
    """n-grams of some texts: `hashes[bounds[i]:bounds[i + 1]]` are those of text i, in their order."""

    hashes: U64
    bounds: I64


@lru_cache(maxsize=8)
def hashing(key: bytes = b"") -> Hashing:
    """Return the constants of a key of up to 64 bytes. Raises ConfigError for a longer one."""
    if len(key) > hashlib.blake2b.MAX_KEY_SIZE:
        raise ConfigError(f"a hashing key has at most 64 bytes, this one {len(key)}", fix="give 32 random bytes")
    drawn = draw(key, b"words", 2 + MAX_NGRAM)
    point = int(drawn[0]) | 1
    return Hashing(point, pow(point, -1, 1 << 64), int(drawn[1]), drawn[2:] | np.uint64(1))


def draw(key: bytes, purpose: bytes, count: int) -> U64:
    """Return numbers that depend on key and purpose only."""
    parts = (
        hashlib.blake2b(index.to_bytes(8, "little"), key=key, person=purpose).digest()
        for index in range(-(-count // 8))
    )
    return np.frombuffer(b"".join(parts), dtype="<u8")[:count].astype(np.uint64)


def blocks(texts: Sequence[str], chars: int = BLOCK_CHARS) -> Iterator[tuple[int, int]]:
    """Yield [first, last) of runs of texts with about `chars` characters; a longer text stands alone."""
    first, held = 0, 0
    for index, text in enumerate(texts):
        if held and held + len(text) > chars:
            yield first, index
            first, held = index, 0
        held += len(text) + 1
    if held:
        yield first, len(texts)


def read(texts: Sequence[str], constants: Hashing) -> Words:
    """Return the words of texts."""
    normal = [unicodedata.normalize("NFC", text) for text in texts]
    joined = "\n".join((*normal, "")).encode("utf-32-le", "surrogatepass")
    points = _folding().take(np.frombuffer(joined, dtype="<u4"), mode="clip")
    inside = points != 0
    alone = points >= _ALONE_BIT
    goes_on = inside[1:] & inside[:-1] & ~alone[1:] & ~alone[:-1]  # from a character to the next, in one word
    begins, ends = inside.copy(), inside.copy()
    begins[1:] &= ~goes_on
    ends[:-1] &= ~goes_on
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    powers = _powers(constants.point, _room(len(points)))[: len(points)]
    sums = np.cumsum(points * powers)
    inverses = _powers(constants.inverse, _room(len(points)))
    before = np.where(first > 0, sums[first - 1], np.uint64(0))
    hashes = mix((sums[last] - before) * inverses[first] ^ np.uint64(constants.salt))
    texts_at = np.zeros(len(normal) + 1, dtype=np.int64)
    np.cumsum([len(text) + 1 for text in normal], out=texts_at[1:])
    return Words(hashes, np.searchsorted(first, texts_at), points, first, last + 1, texts_at[:-1])


def grams(words: Words, size: int, constants: Hashing) -> Grams:
    """Return all n-grams of `size` words; a text with fewer words is one shorter n-gram, one without words has none."""
    counts = np.diff(words.bounds)
    many = np.where(counts > 0, np.maximum(counts - size + 1, 1), 0)
    bounds = np.concatenate([[0], np.cumsum(many)])
    found = np.empty(int(bounds[-1]), dtype=np.uint64)
    is_short = np.zeros(len(found), dtype=bool)
    short = np.flatnonzero((counts > 0) & (counts < size))
    is_short[bounds[short]] = True
    if len(words.hashes) >= size:
        owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        whole = owner[size - 1 :] == owner[: len(owner) - size + 1]
        found[~is_short] = windows(words.hashes, size, constants)[whole]
    sums = np.zeros(len(short), dtype=np.uint64)
    for place in range(size - 1):
        there = np.minimum(words.bounds[short] + place, max(len(words.hashes) - 1, 0))
        sums += np.where(place < counts[short], words.hashes[there] * constants.multipliers[place], np.uint64(0))
    found[bounds[short]] = mix(sums + counts[short].astype(np.uint64)) if len(short) else sums
    return Grams(found, bounds)


def windows(hashes: U64, size: int, constants: Hashing) -> U64:
    """Return the number of every `size` words in a row, whosever text they are; at least `size` words are given."""
    for _, sums in window_sums(hashes, (size,), constants):
        return mix(sums[: len(hashes) - size + 1] + np.uint64(size))
    raise AssertionError("one size gives one array")


def window_sums(hashes: U64, sizes: Sequence[int], constants: Hashing) -> Iterator[tuple[int, U64]]:
    """Yield, for each of the ascending sizes, the multilinear sums of that many words from each word on.

    Where fewer words follow, it is the sum of those. The array is reused: take what is needed before the next.
    """
    sums = np.zeros_like(hashes)
    term = np.empty_like(hashes)
    for place in range(min(max(sizes, default=0), len(hashes))):
        part = term[: len(hashes) - place]
        np.multiply(hashes[place:], constants.multipliers[place], out=part)
        sums[: len(part)] += part
        if place + 1 in sizes:
            yield place + 1, sums


def mix(numbers: U64) -> U64:
    """Finalise numbers in place (splitmix64): every bit of the input moves every bit of the output."""
    numbers ^= numbers >> np.uint64(30)
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    numbers ^= numbers >> np.uint64(27)
    numbers *= np.uint64(0x94D049BB133111EB)
    numbers ^= numbers >> np.uint64(31)
    return numbers


@lru_cache(maxsize=1)
def _folding() -> U32:
    """Return, for each code point, its folded form, 0 where it is no part of a word, with a bit where it is a word."""
    table = np.zeros(_KNOWN_POINTS + 1, dtype=np.uint32)
    for point in range(_KNOWN_POINTS):
        character = chr(point)
        if character.isalnum() or (point > 0x2FF and unicodedata.category(character)[0] == "M"):
            folded = character.casefold()
            table[point] = ord(folded) if len(folded) == 1 else point
    for low, high in _ALONE:
        part = table[low:high]
        part[part != 0] |= np.uint32(_ALONE_BIT)
    return table


def _room(needed: int) -> int:
    return max(2 * BLOCK_CHARS, 1 << (needed - 1).bit_length())


@lru_cache(maxsize=6)
def _powers(base: int, count: int) -> U64:
    """Return base^0 ... base^(count - 1) modulo 2^64."""
    found = np.full(count, base & _WORD, dtype=np.uint64)
    found[0] = 1
    return np.cumprod(found)
