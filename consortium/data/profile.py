"""What a collection is made of, in numbers: by language documents, characters, words and lengths; by domain documents.

Profiles of shards add up to that of the dataset. They name domains and languages and hold small counts, so they stay at
home; what may leave is `suppression.suppressed(profile)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from consortium.data.documents import Document

MAX_DOMAINS = 256
"""Domains that a profile lists."""
MAX_DOMAIN_CHARS = 120
"""A `source` that is no URL is cut to these."""
_PIECE_CHARS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Documents, their characters (code points) and their words (what stands between white space)."""

    documents: int = 0
    chars: int = 0
    words: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            documents=self.documents + other.documents,
            chars=self.chars + other.chars,
            words=self.words + other.words,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageProfile:
    """The documents in one language; `lengths[i]` of them have 2^(i-1) to 2^i - 1 characters, `lengths[0]` none."""

    tally: Tally
    lengths: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The documents of a shard or dataset, by language as they carry it and by domain.

    `domains` holds at most `MAX_DOMAINS`, those with most documents. A domain may have up to `missed` documents more
    than it shows (one that is not listed has at most `missed`); where `missed` is 0, all are listed and exact.
    """

    languages: dict[str, LanguageProfile]
    domains: dict[str, Tally]
    missed: int = 0

    @property
    def tally(self) -> Tally:
        """All documents."""
        return _sum(each.tally for each in self.languages.values())

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of all documents, as in `LanguageProfile`."""
        return _added(each.lengths for each in self.languages.values())

    @property
    def other_domains(self) -> Tally:
        """The documents of all domains that are not listed."""
        whole, listed = self.tally, _sum(self.domains.values())
        return Tally(
            documents=whole.documents - listed.documents,
            chars=whole.chars - listed.chars,
            words=whole.words - listed.words,
        )


def of(documents: Iterable[Document]) -> Profile:
    """Return the profile of documents, which are read once."""
    languages: dict[str, tuple[list[int], list[int]]] = {}
    domains: dict[str, list[int]] = {}
    for document in documents:
        chars, words = len(document.text), count_words(document.text)
        if document.language not in languages:
            languages[document.language] = ([0, 0, 0], [0] * 64)
        sums, lengths = languages[document.language]
        lengths[chars.bit_length()] += 1
        source = document.source or (document.id if "://" in document.id else "")
        for to in (sums, domains.setdefault(domain(source), [0, 0, 0])):
            to[0] += 1
            to[1] += chars
            to[2] += words
    return _profile(
        {code: LanguageProfile(tally=_tally(sums), lengths=_cut(rest)) for code, (sums, rest) in languages.items()},
        {name: _tally(sums) for name, sums in domains.items()},
        0,
    )


def total(parts: Iterable[Profile]) -> Profile:
    """Return the profile of all parts together, whatever their order.

    Counts of a domain are added, then those with most documents are kept (the first by name where as many). What the
    parts had to leave out is missing in the sum too: their `missed` add up. Adding in steps may keep other domains of
    the rarest than adding at once; the bound `missed` holds either way.
    """
    languages: dict[str, list[LanguageProfile]] = {}
    domains: dict[str, Tally] = {}
    missed = 0
    for part in parts:
        missed += part.missed
        for code, found in part.languages.items():
            languages.setdefault(code, []).append(found)
        for name, tally in part.domains.items():
            domains[name] = domains.get(name, Tally()) + tally
    added = {
        code: LanguageProfile(tally=_sum(f.tally for f in found), lengths=_added(f.lengths for f in found))
        for code, found in languages.items()
    }
    return _profile(added, domains, missed)


@lru_cache(maxsize=4096)
def domain(source: str) -> str:
    """Return the host of a URL in lower case; the start of any other `source`, in one line; nothing for none."""
    if "://" in source:
        try:
            host = urlsplit(source.strip()).hostname
        except ValueError:  # such as a bracket that is not closed
            host = None
        if host:
            return host[:MAX_DOMAIN_CHARS]
    return " ".join(source[: 4 * MAX_DOMAIN_CHARS].split())[:MAX_DOMAIN_CHARS]


def count_words(text: str) -> int:
    """Return how many words a text has. A long text is split piece by piece: its words in a list take ten times it."""
    if len(text) <= _PIECE_CHARS:
        return len(text.split())
    words = 0
    for start in range(0, len(text), _PIECE_CHARS):
        words += len(text[start : start + _PIECE_CHARS].split())
        if start and not text[start - 1].isspace() and not text[start].isspace():
            words -= 1
    return words


def length_bounds(index: int) -> tuple[int, int]:
    """Return the fewest and the most characters of the documents that `lengths[index]` counts."""
    return (1 << index) >> 1, (1 << index) - 1


def quantile(lengths: Sequence[int], share: float) -> float:
    """Return about how many characters the shortest `share` (0 to 1) of the documents have at most; 0 where none is.

    Lengths are taken to lie evenly between a bin's bounds, so it is right to the bin: within a factor of two.
    """
    wanted = share * sum(lengths)
    for index, documents in enumerate(lengths):
        if documents and wanted <= documents:
            low, high = length_bounds(index)
            return low + (high - low) * max(wanted, 0) / documents
        wanted -= documents
    return 0.0


def _profile(languages: Mapping[str, LanguageProfile], domains: Mapping[str, Tally], missed: int) -> Profile:
    ranked = sorted(domains, key=lambda name: (-domains[name].documents, name))
    if len(ranked) > MAX_DOMAINS:
        missed += domains[ranked[MAX_DOMAINS]].documents
    return Profile(
        languages={code: languages[code] for code in sorted(languages)},
        domains={name: domains[name] for name in sorted(ranked[:MAX_DOMAINS])},
        missed=missed,
    )


def _tally(sums: Sequence[int]) -> Tally:
    return Tally(documents=sums[0], chars=sums[1], words=sums[2])


def _sum(tallies: Iterable[Tally]) -> Tally:
    return sum(tallies, start=Tally())


def _added(parts: Iterable[Sequence[int]]) -> tuple[int, ...]:
    sums = [0] * 64
    for part in parts:
        for index, documents in enumerate(part):
            sums[index] += documents
    return _cut(sums)


def _cut(lengths: Sequence[int]) -> tuple[int, ...]:
    """Leave out the zeros at the end."""
    used = max((index + 1 for index, documents in enumerate(lengths) if documents), default=0)
    return tuple(lengths[:used])
