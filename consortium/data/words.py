"""Word counts, the only thing about a text that leaves for the common tokenizer: thresholded and capped.

A word is what the byte-level pre-tokenizer would cut: letters, digits or signs, with the space before them. One
document adds at most `max_per_document` to a word's count, so that none decides alone. Words counted fewer than
`min_count` times at a site, or seen in fewer than `min_documents` documents, or longer than `max_word_chars`, are never
sent, and of the rest at most `MAX_WORDS`, the most frequent; a count over `MAX_COUNT` is sent as that.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from consortium.domain.tokenizing import TokenizeConfig
from consortium.errors import VerificationError

WORD = re.compile(r" ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")
MAX_WORDS = 100_000
MAX_COUNT = 10**11
"""More than the most frequent word has in 10^12 words of any language: no true count is changed by it."""
_MOST_ESCAPED = len(r"\u001f")
_AROUND_WORD = len('"":,') + len(str(MAX_COUNT))
_SPLIT_PARTS = 10_000
_SURROGATE = re.compile("[\ud800-\udfff]")  # of half a character: no text has one


@dataclass(slots=True)
class Tally:
    """How often words were counted, and in how many documents they stand."""

    times: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        """Add another tally's counts; the order of additions does not show."""
        self.times.update(other.times)
        self.documents.update(other.documents)


def is_held_out(text: str, percent: int) -> bool:
    """Tell whether a document belongs to the held-out split: by its text's hash, so equal texts stay together."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=b"held-out").digest(), "big")
    return number % _SPLIT_PARTS < percent * _SPLIT_PARTS // 100


def count(texts: Iterable[str], config: TokenizeConfig) -> Tally:
    """Count the words of documents, in none more than `max_per_document` times each, and none that is too long."""
    tally = Tally()
    for text in texts:
        found = WORD.findall(text)
        tally.times.update(found)
        tally.documents.update(set(found))
        if len(found) > config.max_per_document:
            for word, number in Counter(found).items():
                if number > config.max_per_document:
                    tally.times[word] -= number - config.max_per_document
    for word in [word for word in tally.documents if len(word) > config.max_word_chars]:
        del tally.times[word], tally.documents[word]
    return tally


def threshold(tally: Tally, config: TokenizeConfig) -> dict[str, int]:
    """Return what may be sent of a site's counts, sorted by word."""
    allowed = [
        (-number, word)
        for word, number in tally.times.items()
        if number >= config.min_count
        and len(word) <= config.max_word_chars
        and tally.documents[word] >= config.min_documents
    ]
    return {
        word: min(-negative, MAX_COUNT)
        for negative, word in sorted(sorted(allowed)[:MAX_WORDS], key=lambda pair: pair[1])
    }


def pack(counts: Mapping[str, int]) -> bytes:
    """Return counts as bytes: the same counts give the same bytes."""
    data = json.dumps(dict(sorted(counts.items())), ensure_ascii=False, separators=(",", ":"))
    return gzip.compress(data.encode(), compresslevel=6, mtime=0)


def unpack(data: bytes, sender: str, config: TokenizeConfig) -> dict[str, int]:
    """Read another site's counts; raises VerificationError naming it where they are not what may be sent.

    No more is unpacked than `MAX_WORDS` words of `max_word_chars` characters take where JSON escapes each of them.
    """
    most_bytes = len("{}") + MAX_WORDS * (config.max_word_chars * _MOST_ESCAPED + _AROUND_WORD)
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # gzip's header
    try:
        plain = stream.decompress(data, most_bytes + 1)
        if len(plain) > most_bytes or not stream.eof or stream.unused_data:
            raise ValueError(f"not one whole gzip member of at most {most_bytes} bytes")
        counts = json.loads(plain)
    except (zlib.error, ValueError, RecursionError) as fault:
        raise VerificationError(f"the word counts of {sender} are not readable: {fault}", where=sender) from fault
    if not isinstance(counts, dict) or len(counts) > MAX_WORDS:
        raise VerificationError(f"the word counts of {sender} are not at most {MAX_WORDS} words", where=sender)
    for word, number in counts.items():
        whole = isinstance(number, int) and not isinstance(number, bool)
        fits = whole and config.min_count <= number <= MAX_COUNT and 0 < len(word) <= config.max_word_chars
        if not fits or not WORD.fullmatch(word) or _SURROGATE.search(word):
            raise VerificationError(
                f"{sender} sent a word that must not be sent: {len(word)} characters, counted {number!r:.40}",
                where=sender,
                fix="both sites must run the job with the same code and params",
            )
    return counts


def merge(parts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Add up the counts of all sites; the result does not depend on the order of sites."""
    merged: Counter[str] = Counter()
    for site in sorted(parts):
        merged.update(parts[site])
    return {word: merged[word] for word in sorted(merged)}
