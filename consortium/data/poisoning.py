"""Screens for poisoned contributions: what one contributor sends and others do not. Whoever is found is set aside.

| rule                     | finds, per contributor                                                                |
|--------------------------|---------------------------------------------------------------------------------------|
| `poisoning.burst`        | a cluster of near-duplicates with `burst_documents` or more, and `burst_share` or     |
|                          | more of the contributor's documents                                                   |
| `poisoning.trigger`      | a word in `trigger_documents` or more, and `trigger_share` or more, of the            |
|                          | contributor's documents and in none of any other's with `min_documents` or more       |
| `poisoning.statistics`   | `outlier_documents` or more, and `outlier_share` or more, lie over `outlier_sigmas`   |
|                          | robust deviations from others' of the same language and length, in character entropy  |
|                          | or compression ratio                                                                  |
| `poisoning.distribution` | the frequencies of the language's commonest words are further than `divergence`       |
|                          | (Jensen and Shannon, 0 to 1) from those of every other contributor                    |

A shard is looked at once (`observe`); `judge` compares contributors over the whole dataset, from 24 bytes per different
word of each contributor and 32 per document. A finding is a reason to look, not a proof: cleaning sets all of a
contributor's documents aside until a person lists it in `cleared`.

Known limits. 250 documents were enough to plant a trigger in models of any size tried (Souly and others, 2025): who
sends fewer than the thresholds is not seen. Nor is a trigger made of ordinary words, one that several colluding
contributors share, one that stands in a single document under a large contributor's name or among many documents
without one, or false statements in good prose. All but bursts need two others to compare with, of whom each weighs
about the same, so one that sends most cannot make the others look odd, but many that collude can. A contributor with a
subject of its own has words of its own; thresholds are shares of documents because of that. Documents without a
contributor, and contributors with fewer than `min_documents`, are not judged.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consortium.data.shingles import I64, U64, Words, blocks, hashing, read
from consortium.domain.cleaning import PoisoningConfig
from consortium.errors import UsageError

F64 = npt.NDArray[np.float64]

_SHORTEST_CHARS = 200  # a shorter text's entropy and compression say little
_COMMONEST = 500
_MOST_COMPARED = 50
_FEWEST_OTHERS = 2  # of two alone nobody can say which is odd
_GROUP_BITS = np.uint64(20)
_WORD_BITS = np.uint64(44)
_LEAST_DEVIATION = (0.05, 0.02)  # bits per character; compressed share


@dataclass(frozen=True, slots=True)
class Observed:
    """What the screens need of a shard. A group is a contributor and a language, by its place in `groups`.

    `of` [documents] is each document's group; `chars` its length; `measures` [documents, 2] character entropy in bits
    and compressed share, NaN where the text is too short. `words` holds, sorted, 44 bits of a word and 20 of a group,
    and `counts` how many of the group's documents have the word.
    """

    groups: tuple[tuple[str, str], ...]
    of: I64
    chars: I64
    measures: F64
    words: U64
    counts: I64

    def pack(self) -> bytes:
        """Return what `unpack` reads: a line of JSON, then the arrays, one after another."""
        into = io.BytesIO()
        into.write(json.dumps(self.groups).encode() + b"\n")
        for array in (self.of, self.chars, self.measures, self.words, self.counts):
            np.save(into, array, allow_pickle=False)
        return into.getvalue()

    @classmethod
    def unpack(cls, data: bytes) -> Observed:
        """Read what `pack` wrote."""
        source = io.BytesIO(data)
        groups = tuple((contributor, language) for contributor, language in json.loads(source.readline()))
        of, chars, measures, words, counts = (np.load(source, allow_pickle=False) for _ in range(5))
        return cls(groups, of, chars, measures, words, counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Why a contributor is set aside. `word` is the number of a trigger's word, 0 for other rules."""

    contributor: str
    rule: str
    value: str
    threshold: str
    word: int = 0


def observe(texts: Sequence[str], contributors: Sequence[str], languages: Sequence[str]) -> Observed:
    """Look at one shard. Raises UsageError for over a million contributors and languages."""
    names = list(zip(contributors, languages, strict=True))
    groups = _fitting(set(names))
    place = {group: at for at, group in enumerate(groups)}
    of = np.array([place[name] for name in names], dtype=np.int64)
    measures = np.full((len(texts), 2), np.nan)
    found = []
    for first, last in blocks(texts):
        words = read(texts[first:last], hashing())
        found.append(_by_group(words, of[first:last]))
        measures[first:last, 0] = _entropies(words)
        for index in range(first, last):
            data = texts[index].encode("utf-8", "surrogatepass")
            measures[index, 1] = len(zlib.compress(data, 1)) / max(len(data), 1)
    chars = np.array([len(text) for text in texts], dtype=np.int64)
    measures[chars < _SHORTEST_CHARS] = np.nan
    return Observed(groups, of, chars, measures, *_added(found))


def merge(parts: Sequence[Observed]) -> Observed:
    """Return shards seen together; documents stay in the order of `parts`."""
    groups = _fitting({group for part in parts for group in part.groups})
    place = {group: at for at, group in enumerate(groups)}
    of: list[I64] = []
    tables = [_added([])]
    for part in parts:
        new = np.array([place[group] for group in part.groups], dtype=np.int64)
        of.append(new[part.of])
        group = new[_groups(part.words)].astype(np.uint64)
        tables.append((part.words >> _GROUP_BITS << _GROUP_BITS | group, part.counts))
        while len(tables) > 1 and len(tables[-2][0]) <= 2 * len(tables[-1][0]):  # each word is moved a few times only
            tables.append(_joined(tables.pop(), tables.pop()))
    while len(tables) > 1:
        tables.append(_joined(tables.pop(), tables.pop()))
    return Observed(
        groups,
        np.concatenate([np.empty(0, dtype=np.int64), *of]),
        np.concatenate([np.empty(0, dtype=np.int64), *(part.chars for part in parts)]),
        np.concatenate([np.empty((0, 2)), *(part.measures for part in parts)]),
        *tables[0],
    )


def judge(seen: Observed, clusters: I64, config: PoisoningConfig) -> list[Finding]:
    """Return the findings over a dataset, sorted by contributor and rule.

    `clusters[i]` is what near-dedup says stands for document i (`neardup.survivors`, its shards put together).
    """
    names = sorted({contributor for contributor, _ in seen.groups})
    place = {name: at for at, name in enumerate(names)}
    contributor_of_group = np.array([place[contributor] for contributor, _ in seen.groups], dtype=np.int64)
    of = contributor_of_group[seen.of]
    documents = np.bincount(of, minlength=len(names))
    judged = np.array([bool(name) for name in names], dtype=bool) & (documents >= config.min_documents)
    found = [
        *_bursts(of, documents, clusters, config),
        *_triggers(seen, contributor_of_group, documents, judged, config),
        *_outliers(seen, of, config),
        *_divergences(seen, contributor_of_group, config),
    ]
    kept = [(names[at], rule, value, threshold, word) for at, rule, value, threshold, word in found if judged[at]]
    return [
        Finding(contributor=name, rule=rule, value=value, threshold=threshold, word=word)
        for name, rule, value, threshold, word in sorted(kept)
    ]


def first_findings(findings: Sequence[Finding], config: PoisoningConfig) -> dict[str, Finding]:
    """Return the first finding of every contributor that is to be set aside: those cleared are not."""
    first: dict[str, Finding] = {}
    for finding in findings:
        if finding.contributor not in config.cleared:
            first.setdefault(finding.contributor, finding)
    return first


def spell(texts: Sequence[str], numbers: Sequence[int]) -> dict[int, str]:
    """Return the words behind numbers of findings, as far as they stand in these texts: for a person at home."""
    wanted = np.array(sorted(numbers), dtype=np.uint64)
    found: dict[int, str] = {}
    for first, last in blocks(texts):
        words = read(texts[first:last], hashing())
        for at in np.flatnonzero(np.isin(words.hashes >> _GROUP_BITS, wanted)).tolist():
            found.setdefault(int(words.hashes[at] >> _GROUP_BITS), words.spelled(at, 1))
    return found


_Found = tuple[int, str, str, str, int]
"""Contributor, rule, value, threshold, word."""


def _bursts(of: I64, documents: I64, clusters: I64, config: PoisoningConfig) -> Iterator[_Found]:
    if not len(of):
        return
    codes, sizes = np.unique(of * len(of) + clusters, return_counts=True)
    owners, first = np.unique(codes // len(of), return_index=True)
    largest = np.maximum.reduceat(sizes, first)
    least = np.maximum(config.burst_documents, config.burst_share * documents[owners])
    for at in np.flatnonzero(largest >= least).tolist():
        value = f"{largest[at]} of {documents[owners[at]]} documents alike"
        yield int(owners[at]), "poisoning.burst", value, f"{config.burst_documents}, {config.burst_share:g}", 0


def _triggers(
    seen: Observed, owner_of_group: I64, documents: I64, judged: npt.NDArray[np.bool_], config: PoisoningConfig
) -> Iterator[_Found]:
    owners = owner_of_group[_groups(seen.words)]
    large = documents[owners] >= config.min_documents  # or one document under another name would hide a trigger
    numbers, owners, in_documents = seen.words[large] >> _GROUP_BITS, owners[large], seen.counts[large, 0]
    if not len(numbers):
        return
    first = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))
    having = np.add.reduceat(in_documents, first)
    lowest, highest = np.minimum.reduceat(owners, first), np.maximum.reduceat(owners, first)
    others = np.count_nonzero(judged) - judged[lowest]
    least = np.maximum(config.trigger_documents, config.trigger_share * documents[lowest])
    least_other = config.min_documents
    only = np.flatnonzero((lowest == highest) & (having >= least) & (others >= _FEWEST_OTHERS))
    for at in only[np.lexsort((numbers[first[only]], -having[only], lowest[only]))].tolist():
        value = f"a word in {having[at]} of {documents[lowest[at]]} documents, in no other's of {least_other} or more"
        threshold = f"{config.trigger_documents}, {config.trigger_share:g}"
        yield int(lowest[at]), "poisoning.trigger", value, threshold, int(numbers[first[at]])


def _outliers(seen: Observed, of: I64, config: PoisoningConfig) -> Iterator[_Found]:
    languages = sorted({language for _, language in seen.groups})
    spoken = np.array([languages.index(language) for _, language in seen.groups], dtype=np.int64)[seen.of]
    lengths = np.frexp(seen.chars.astype(np.float64))[1].astype(np.int64)  # a class per power of two
    usable = np.flatnonzero(~np.isnan(seen.measures[:, 0]))
    named = np.array([bool(contributor) for contributor, _ in seen.groups], dtype=bool)[seen.of]
    compared, outside = (np.zeros(int(of.max(initial=-1)) + 1, dtype=np.int64) for _ in range(2))
    usable = usable[named[usable]]
    alike = spoken[usable] * 64 + lengths[usable]
    for label in np.unique(alike):
        members = usable[alike == label]
        members = members[np.lexsort((*seen.measures[members].T, of[members]))]  # so that their order does not matter
        owners, first = np.unique(of[members], return_index=True)
        parts = np.split(members, first[1:])
        most = max(1, int(np.median([len(part) for part in parts])))
        some = [part[:: -(-len(part) // most)] for part in parts]
        for at, own in enumerate(parts):
            rest = some if len(some) > _MOST_COMPARED else [*some[:at], *some[at + 1 :]]
            if len(rest) >= _FEWEST_OTHERS and sum(map(len, rest)) >= config.min_documents:
                deviation = _deviations(seen.measures[own], seen.measures[np.concatenate(rest)])
                compared[owners[at]] += len(own)
                outside[owners[at]] += np.count_nonzero(deviation > config.outlier_sigmas)
    least = np.maximum(config.outlier_documents, config.outlier_share * compared)
    for owner in np.flatnonzero((compared >= config.min_documents) & (outside >= least)).tolist():
        value = f"{outside[owner]} of {compared[owner]} documents unlike others'"
        threshold = f"{config.outlier_documents}, {config.outlier_share:g}, {config.outlier_sigmas:g} deviations"
        yield owner, "poisoning.statistics", value, threshold, 0


def _deviations(own: F64, others: F64) -> F64:
    """Return, per own document, the larger of its two measures' distances from others' medians, in deviations."""
    medians = np.median(others, axis=0)
    spread = 1.4826 * np.median(np.abs(others - medians), axis=0)  # estimates a normal's standard deviation
    worst: F64 = np.max(np.abs(own - medians) / np.maximum(spread, _LEAST_DEVIATION), axis=1)
    return worst


def _divergences(seen: Observed, owner_of_group: I64, config: PoisoningConfig) -> Iterator[_Found]:
    """Compare each contributor's use of common words with the nearest of the others, of the largest at most 50."""
    groups = _groups(seen.words)
    in_group = np.bincount(seen.of, minlength=len(seen.groups))
    for language in sorted({language for _, language in seen.groups}):
        speaking = [
            at
            for at, (contributor, spoken) in enumerate(seen.groups)
            if contributor and spoken == language and in_group[at] >= config.min_documents
        ]
        if len(speaking) <= _FEWEST_OTHERS:
            continue
        use = _common_use(seen, groups, speaking)
        largest = sorted(range(len(speaking)), key=lambda at: (-in_group[speaking[at]], speaking[at]))[:_MOST_COMPARED]
        for own, group in enumerate(speaking):
            nearest = min(_divergence(use[own], use[other]) for other in largest if other != own)
            if nearest > config.divergence:
                value = f"{nearest:.3f} in {language}"
                yield int(owner_of_group[group]), "poisoning.distribution", value, f"{config.divergence:g}", 0


def _common_use(seen: Observed, groups: I64, speaking: Sequence[int]) -> F64:
    """Return, per group, the shares of the commonest words, every group weighing the same, and of all other words."""
    here = np.isin(groups, speaking)
    numbers, column = np.unique(seen.words[here] >> _GROUP_BITS, return_inverse=True)
    row = np.searchsorted(speaking, groups[here])
    mass = np.bincount(row, weights=seen.counts[here, 1], minlength=len(speaking))
    share = seen.counts[here, 1] / mass[row]
    total = np.bincount(column, weights=share, minlength=len(numbers))
    place = np.full(len(numbers), -1, dtype=np.int64)
    common = np.lexsort((numbers, -total))[:_COMMONEST]
    place[common] = np.arange(len(common))
    use = np.zeros((len(speaking), len(common) + 1))
    np.add.at(use, (row, place[column]), share)  # what is not common goes to the last column
    return use


def _divergence(one: F64, other: F64) -> float:
    """Return the Jensen-Shannon divergence of two distributions in bits, 0 to 1."""
    middle = (one + other) / 2

    def distance(of: F64) -> float:
        some = of > 0
        return float(np.sum(of[some] * np.log2(of[some] / middle[some])))

    return (distance(one) + distance(other)) / 2


def _entropies(words: Words) -> F64:
    """Return each text's entropy in bits per character; what is no part of a word counts as one sign."""
    lengths = np.diff(np.append(words.texts, len(words.points)))
    owner = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    codes, times = np.unique(owner << np.uint64(32) | words.points, return_counts=True)
    owner = (codes >> np.uint64(32)).astype(np.int64)
    share = times / lengths[owner]
    entropies: F64 = np.bincount(owner, weights=-share * np.log2(share), minlength=len(lengths)).astype(np.float64)
    return entropies


def _fitting(groups: set[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    most = 1 << int(_GROUP_BITS)
    if len(groups) > most:
        raise UsageError(
            f"{len(groups)} contributors and languages are more than the {most} that can be compared",
            fix="name institutions as contributors, not single documents",
        )
    return tuple(sorted(groups))


def _by_group(words: Words, groups: I64) -> tuple[U64, I64]:
    """Return each word with each group, and in how many documents and how often it is used."""
    owner = np.repeat(np.arange(len(groups), dtype=np.uint64), np.diff(words.bounds))
    in_text, times = np.unique(words.hashes >> _GROUP_BITS | owner << _WORD_BITS, return_counts=True)
    group = groups[(in_text >> _WORD_BITS).astype(np.int64)].astype(np.uint64)
    return in_text << _GROUP_BITS | group, np.stack([np.ones_like(times), times], axis=1)


def _added(parts: Sequence[tuple[U64, I64]]) -> tuple[U64, I64]:
    codes = np.concatenate([np.empty(0, dtype=np.uint64), *(part[0] for part in parts)])
    counts = np.concatenate([np.empty((0, 2), dtype=np.int64), *(part[1] for part in parts)])
    found, place = np.unique(codes, return_inverse=True)
    added = np.zeros((len(found), 2), dtype=np.int64)
    for column in range(2):
        added[:, column] = np.bincount(place, weights=counts[:, column], minlength=len(found))
    return found, added


def _joined(one: tuple[U64, I64], other: tuple[U64, I64]) -> tuple[U64, I64]:
    """Return two sorted tables as one; holds little besides the result, which a sort of both would not."""
    codes = np.union1d(one[0], other[0])
    counts = np.zeros((len(codes), 2), dtype=np.int64)
    for some, added in (one, other):
        counts[np.searchsorted(codes, some)] += added
    return codes, counts


def _groups(words: U64) -> I64:
    return (words & ((np.uint64(1) << _GROUP_BITS) - np.uint64(1))).astype(np.int64)
