from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.data import profile
from consortium.data.documents import Document
from consortium.data.profile import Profile, Tally
from consortium.domain.codec import from_json, to_json


def document(text: str = "un deux", language: str = "fr", source: str = "", id: str = "a") -> Document:
    return Document(id=id, text=text, row=0, language=language, declared=language, source=source)


DOCUMENTS = st.lists(
    st.builds(
        document,
        text=st.text(max_size=40),
        language=st.sampled_from(["fr", "de", "und"]),
        source=st.sampled_from(["", "https://A.fr/x", "http://user@b.de:80/", "own archive"]),
    ),
    max_size=30,
)


def test_documents_are_counted_by_language_length_and_domain() -> None:
    found = profile.of(
        [
            document("un deux\u00a0trois\n", source="https://www.Loi.fr/1?a=b"),
            document("", source="https://www.loi.fr:443/2"),
            document("eins", "de", id="https://x.de/1"),
            document("x" * 8, "de", source=" the   national\narchive "),
            document("x" * 7, "de"),
        ]
    )
    assert found.languages["fr"].tally == Tally(documents=2, chars=14, words=3)
    assert found.languages["fr"].lengths == (1, 0, 0, 0, 1)  # none, and 8 to 15 characters
    assert found.languages["de"].lengths == (0, 0, 0, 2, 1)  # twice 4 to 7
    assert {name: tally.documents for name, tally in found.domains.items()} == {
        "": 1,
        "the national archive": 1,
        "www.loi.fr": 2,
        "x.de": 1,
    }
    assert found.tally == Tally(documents=5, chars=33, words=6)


@given(DOCUMENTS, st.integers(1, 5))
def test_profiles_of_shards_add_up_to_the_dataset_s_in_any_order(documents: list[Document], shards: int) -> None:
    parts = [profile.of(documents[at::shards]) for at in range(shards)]
    whole = profile.of(documents)
    assert profile.total(parts) == profile.total(reversed(parts)) == whole
    assert from_json(Profile, to_json(whole)) == whole
    assert sum(whole.lengths) == whole.tally.documents == len(documents)
    assert whole.tally.words == sum(len(each.text.split()) for each in documents)


@given(st.lists(st.lists(st.integers(0, 12), max_size=40), max_size=4))
def test_domains_beyond_the_bound_are_missed_by_no_more_than_is_said(shards: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "MAX_DOMAINS", 4)
        parts = [profile.of(document(source=f"s{number}") for number in shard) for shard in shards]
        truth = Counter(f"s{number}" for shard in shards for number in shard)
        stepwise = profile.total([])
        for part in parts:
            stepwise = profile.total([stepwise, part])
        for found in (profile.total(parts), stepwise):
            shown = {name: tally.documents for name, tally in found.domains.items()}
            assert len(shown) <= 4
            for name, documents in truth.items():
                assert shown.get(name, 0) <= documents <= shown.get(name, 0) + found.missed
            assert found.other_domains.documents == truth.total() - sum(shown.values())
            assert found.missed > 0 or shown == truth


@pytest.mark.parametrize("text", ["a b" * 700_000, "x" * 3_000_000, ("y" * ((1 << 20) - 1) + " ") * 2, " " * 2_100_000])
def test_words_of_long_texts_are_counted_piece_by_piece(text: str) -> None:
    assert profile.count_words(text) == len(text.split())


@pytest.mark.parametrize("source", ["http://[", "https://", "://", "http://[::1", "\x00://\u202e", "a" * 9_000 + "://"])
def test_a_source_that_is_no_url_stays_short_and_fails_nothing(source: str) -> None:
    assert len(profile.domain(source)) <= profile.MAX_DOMAIN_CHARS


@given(st.lists(st.integers(1, 100_000), min_size=1), st.floats(0, 1))
def test_a_quantile_lies_in_the_bin_of_the_exact_one(chars: Sequence[int], share: float) -> None:
    lengths = [0] * 20
    for each in chars:
        lengths[each.bit_length()] += 1
    found = profile.quantile(lengths, share)
    wanted = share * len(chars)
    exact = next(c for at, c in enumerate(sorted(chars), 1) if at >= wanted)
    low, high = profile.length_bounds(exact.bit_length())
    assert low <= found <= high
    assert profile.quantile((), 0.5) == 0
