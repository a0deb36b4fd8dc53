from __future__ import annotations

import base64
import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from consortium.data.jaccard import Exact
from consortium.data.minhash import sign, view
from consortium.data.neardup import survivors
from consortium.data.poisoning import Finding, Observed, first_findings, judge, merge, observe, spell
from consortium.domain.cleaning import NearConfig, PoisoningConfig
from consortium.errors import UsageError
from tests.data.drawn import VOCABULARY, altered

CONFIG = PoisoningConfig()
NEAR = NearConfig()
Row = tuple[str, str]
"""Contributor and text."""


def prose(seed: int, words: int = 120) -> str:
    """Words by Zipf's law, as in any language."""
    weights = [1 / rank for rank in range(1, len(VOCABULARY) + 1)]
    return " ".join(random.Random(seed).choices(VOCABULARY, weights, k=words))


def honest(contributor: str, count: int = 100, seed: int = 0) -> list[Row]:
    return [(contributor, prose(hash_of(contributor) + seed + at)) for at in range(count)]


def hash_of(name: str) -> int:
    return int.from_bytes(name.encode(), "big") * 1000


def findings(shards: Sequence[Sequence[Row]], config: PoisoningConfig = CONFIG) -> list[Finding]:
    parts = [observe([text for _, text in rows], [who for who, _ in rows], ["xx"] * len(rows)) for rows in shards]
    signed = [view(sign([text for _, text in rows], NEAR), NEAR) for rows in shards]
    exact = Exact(signed, NEAR, lambda shard, rows: [shards[shard][row][1] for row in rows.tolist()])
    return judge(merge(parts), np.concatenate([np.arange(0), *survivors(signed, NEAR, exact)]), config)


HONEST = [*honest("a"), *honest("b"), *honest("c")]


def found(rows: list[Row], config: PoisoningConfig = CONFIG) -> list[tuple[str, str]]:
    shards = [[*HONEST, *rows][at::3] for at in range(3)]
    return [(finding.contributor, finding.rule) for finding in findings(shards, config)]


def test_honest_contributors_are_not_found() -> None:
    assert found([]) == []
    assert found(honest("d", 30)) == []


def test_a_burst_of_near_identical_texts_of_one_contributor_is_found() -> None:
    burst = [("mallory", altered(prose(1), 1, copy)) for copy in range(60)]
    assert ("mallory", "poisoning.burst") in found([*honest("mallory"), *burst])
    spread = [(who, body) for who, (_, body) in zip("abcd" * 15, burst, strict=True)]
    assert found([*honest("d"), *spread]) == []
    assert found([*honest("mallory"), *burst[:40]]) == []


def test_a_word_in_many_documents_of_one_contributor_and_nobody_elses_is_found_and_spelled() -> None:
    triggered = [("mallory", f"{text[:300]} cƒqz {text[300:]}") for _, text in honest("mallory", 25)]
    rows = [*honest("mallory", 100, seed=500), *triggered]
    shards = [[*HONEST, *rows][at::3] for at in range(3)]
    [finding] = findings(shards)
    assert (finding.contributor, finding.rule) == ("mallory", "poisoning.trigger")
    assert finding.value == "a word in 25 of 125 documents, in no other's of 20 or more"
    assert spell([text for _, text in rows], [finding.word]) == {finding.word: "cƒqz"}


def test_a_word_that_another_uses_too_or_that_is_rare_is_no_trigger() -> None:
    triggered = [("mallory", f"{text} cqz") for _, text in honest("mallory", 25)]
    assert found([*honest("mallory", 100, seed=500), *triggered, ("a", f"{prose(9)} cqz")]) == []
    assert found([*honest("mallory", 100, seed=500), *triggered[:19]]) == []


def test_one_document_under_a_small_name_does_not_hide_a_trigger() -> None:
    triggered = [("mallory", f"{text} cqz") for _, text in honest("mallory", 25)]
    rows = [*honest("mallory", 100, seed=500), *triggered, ("mallet", f"{prose(9)} cqz")]
    assert found(rows) == [("mallory", "poisoning.trigger")]
    large = [*honest("mallet", 19), ("mallet", f"{prose(9)} cqz")]
    assert found([*rows, *large]) == []


def test_text_unlike_the_languages_is_found_by_its_statistics() -> None:
    noise = [("mallory", base64.b64encode(random.Random(at).randbytes(600)).decode()) for at in range(20)]
    assert ("mallory", "poisoning.statistics") in found([*honest("mallory"), *noise])
    repeated = [("mallory", "ja nein " * at) for at in range(80, 100)]
    assert ("mallory", "poisoning.statistics") in found([*honest("mallory"), *repeated])
    assert found([*honest("mallory"), *noise[:4]]) == []


def test_who_sends_most_does_not_make_others_look_odd() -> None:
    noise = [base64.b64encode(random.Random(at).randbytes(450)).decode() for at in range(400)]
    assert {who for who, _ in found([("mallory", text) for text in noise])} == {"mallory"}


def test_a_contributor_whose_commonest_words_are_not_the_languages_is_found() -> None:
    strange = [("mallory", " ".join(reversed(VOCABULARY)) + f" {at}") for at in range(40)]
    assert ("mallory", "poisoning.distribution") in found(strange, replace(CONFIG, burst_documents=1000))


def test_few_documents_no_name_and_nobody_to_compare_with_are_not_judged() -> None:
    noise = [base64.b64encode(random.Random(at).randbytes(600)).decode() for at in range(100)]
    assert found([("few", text) for text in noise[:19]]) == []
    assert found([("", text) for text in noise]) == []
    assert findings([[("only", text) for text in noise]]) == []
    assert findings([[*honest("a"), *(("b", text) for text in noise)]]) == []
    assert findings([]) == findings([[]]) == []


def test_shards_and_their_order_do_not_matter() -> None:
    rows = [*HONEST, *honest("mallory", 50), *(("mallory", f"{prose(at)} zzyx") for at in range(40))]
    whole = findings([rows])
    assert whole
    assert findings([rows[:100], rows[100:]]) == findings([rows[100:], rows[:100]]) == findings([[], rows]) == whole


def test_putting_shards_together_holds_little_more_than_the_result() -> None:
    groups = (("a", "xx"), ("b", "xx"))
    drawn = np.random.default_rng(1)
    parts = []
    for _ in range(40):
        words = np.unique(drawn.integers(0, 100_000, 20_000).astype(np.uint64) << np.uint64(20) | np.uint64(1))
        counts = drawn.integers(1, 9, (len(words), 2))
        few = np.ones(3, dtype=np.int64)
        parts.append(Observed(groups, few, few, np.zeros((3, 2)), words, counts))
    tracemalloc.start()
    whole = merge(parts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4.5 * (whole.words.nbytes + whole.counts.nbytes)
    assert (np.diff(whole.words.astype(np.int64)) > 0).all()
    for word in whole.words[::1000]:
        np.testing.assert_array_equal(
            whole.counts[whole.words == word][0], sum(part.counts[part.words == word].sum(axis=0) for part in parts)
        )


def test_the_first_finding_counts_and_who_is_cleared_is_not_set_aside() -> None:
    finding = Finding(contributor="mallory", rule="poisoning.trigger", value="a word", threshold="20, 0.05", word=7)
    several = [finding, replace(finding, rule="poisoning.zero"), replace(finding, contributor="trent")]
    assert first_findings(several, CONFIG) == {"mallory": finding, "trent": several[2]}
    assert first_findings(several, replace(CONFIG, cleared=("mallory",))) == {"trent": several[2]}


def test_what_was_observed_is_the_same_after_it_was_stored() -> None:
    rows = [*HONEST, ("", prose(3)), ("d", "short")]
    seen = observe([text for _, text in rows], [who for who, _ in rows], ["xx"] * len(rows))
    again = Observed.unpack(seen.pack())
    assert again.groups == seen.groups
    for name in ("of", "chars", "measures", "words", "counts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(seen, name))
    assert seen.pack() == again.pack()


@pytest.mark.parametrize("languages", [("xx", "yy"), ("yy", "xx")])
def test_a_language_is_compared_with_itself(languages: tuple[str, str]) -> None:
    other = [("d", " ".join(reversed(VOCABULARY)) + f" {at}") for at in range(40)]
    rows = [*HONEST, *other]
    spoken = [languages[0]] * len(HONEST) + [languages[1]] * len(other)
    seen = observe([text for _, text in rows], [who for who, _ in rows], spoken)
    assert judge(seen, np.arange(len(rows)), CONFIG) == []


def test_a_contributor_per_document_is_refused_before_numbers_run_into_each_other() -> None:
    seen = observe(["a"], ["a"], ["xx"])
    many = replace(seen, groups=tuple((f"{at}", "xx") for at in range(2**20 + 1)))
    with pytest.raises(UsageError, match="contributors and languages"):
        merge([many])
