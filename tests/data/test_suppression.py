"""What is published of a collection, and that nobody can subtract his way to a small number."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.data import profile
from consortium.data.counts import Counts
from consortium.data.documents import Document
from consortium.data.profile import LanguageProfile, Profile, Tally
from consortium.data.suppression import Band, bands, clean_numbers, is_host, is_language, pooled, suppressed
from consortium.domain.codec import to_json
from consortium.errors import UsageError

LANGUAGES = ("fr", "de", "es", "a text of somebody")
RULES = ("length.min", "dedup.exact", "c4.lorem_ipsum", "language.other")
SIZES = st.one_of(st.just(0), st.integers(0, 14), st.integers(0, 60))


def profile_of(languages: dict[str, int], domains: dict[str, int] | None = None) -> Profile:
    found = {code: Tally(documents=n, chars=100 * n, words=10 * n) for code, n in languages.items()}
    whole = sum(found.values(), start=Tally())
    named = {name: Tally(documents=n, chars=100 * n, words=10 * n) for name, n in (domains or {}).items()}
    return Profile(
        languages={code: LanguageProfile(tally=tally, lengths=(0, tally.documents)) for code, tally in found.items()},
        domains=named or {"a.fr": whole},
    )


def test_a_small_cell_is_pooled_with_the_next_smallest_so_that_the_total_does_not_tell_it() -> None:
    found = suppressed(profile_of({"fr": 500, "de": 3, "es": 40, "it": 200}))
    assert {code: tally.documents for code, tally in found.languages.items()} == {"fr": 500, "it": 200}
    assert found.other_languages == Tally(documents=43, chars=4300, words=430)
    assert found.total.documents == 743


def test_cells_of_ten_and_more_are_published_as_they_are() -> None:
    found = suppressed(profile_of({"fr": 500, "de": 10}))
    assert {code: tally.documents for code, tally in found.languages.items()} == {"fr": 500, "de": 10}
    assert found.other_languages == Tally()


def test_two_small_cells_that_are_ten_together_hide_each_other() -> None:
    found = suppressed(profile_of({"fr": 500, "de": 6, "es": 7}))
    assert (list(found.languages), found.other_languages.documents) == (["fr"], 13)


def test_of_fewer_documents_than_ten_nothing_is_told() -> None:
    found = suppressed(profile_of({"fr": 9}))
    assert found.withheld
    assert (found.total, found.languages, found.domains, found.lengths) == (Tally(), {}, {}, ())


def test_a_source_that_is_no_host_and_a_language_that_is_no_code_are_told_to_nobody() -> None:
    secret = "The patients of Dr Example"
    found = suppressed(profile_of({"fr": 50, secret: 50}, {"a.fr": 60, secret: 30, "10.0.0.1": 10}))
    assert secret not in str(to_json(found))
    assert (list(found.languages), list(found.domains)) == ([], ["a.fr"])  # fr is what is left: it joins the pool
    assert found.other_languages.documents == 100


def test_domains_that_a_profile_does_not_list_are_in_other_from_the_start() -> None:
    found = suppressed(profile_of({"fr": 100}, {"a.fr": 60, "b.fr": 25}))
    assert (list(found.domains), found.other_domains.documents) == (["a.fr", "b.fr"], 15)
    found = suppressed(profile_of({"fr": 100}, {"a.fr": 70, "b.fr": 25}))
    assert (list(found.domains), found.other_domains.documents) == (["a.fr"], 30)


def test_a_bound_of_two_would_tell_that_a_small_cell_is_one() -> None:
    with pytest.raises(UsageError, match="at least 3"):
        suppressed(profile_of({"fr": 500}), at_least=2)


@pytest.mark.parametrize("name", ["fr", "zh-Hant", "deu"])
def test_language_codes(name: str) -> None:
    assert is_language(name)


@pytest.mark.parametrize("name", ["", "French", "fr\n", "other", "x" * 9])
def test_no_language_codes(name: str) -> None:
    assert not is_language(name)


def test_hosts_are_told_from_addresses_paths_and_text() -> None:
    assert all(map(is_host, ["www.legifrance.gouv.fr", "a.xn--p1ai", "x-1.de"]))
    assert not any(map(is_host, ["", "localhost", "10.0.0.1", "::1", "a/b.md", "a b.de", "a..de", "-a.de", "a.de\n"]))


def test_length_bins_are_joined_until_before_and_after_tell_of_no_few_documents() -> None:
    found = bands([(0, 4, 30, 100, 2), (0, 0, 26, 85, 1)], 10)
    assert found == [Band(0, 0, (0, 0)), Band(1, 15, (136, 112))]
    assert bands([(0, 0, 3)], 10) == [Band(0, 3, (3,))]


def test_numbers_for_the_tracking_server_hide_a_rule_that_hit_three_documents() -> None:
    counts = Counts(
        documents_in={"fr": 1000, "de": 14},
        documents_out={"fr": 900, "de": 11},
        removed={"length.min": {"fr": 60, "de": 3}, "dedup.exact": {"fr": 37}, "c4.lorem_ipsum": {"fr": 3}},
        edits={"redact.email": 70, "redact.iban": 2},
        chars_in=5000,
        chars_out=4000,
    ).check()
    before, after = (Profile(languages={"fr": LanguageProfile(tally=Tally(), lengths=lengths)}, domains={})
                     for lengths in ((0, 0, 114, 900), (0, 0, 11, 900)))  # fmt: skip
    assert clean_numbers(counts, before, after) == {
        "documents_in": 1014,
        "documents_out": 911,
        "chars_in": 5000,
        "chars_out": 4000,
        "removed.length.min": 63,
        "removed.other": 40,
        "edits.redact.email": 70,
        "language.other.documents_in": 1014,
        "language.other.documents_out": 911,
        "length.p10_in": 3,
        "length.p50_in": 5,
        "length.p90_in": 7,
        "length.p10_out": 4,
        "length.p50_out": 5,
        "length.p90_out": 7,
    }


def test_characters_that_stay_do_not_tell_how_long_the_one_removed_document_was() -> None:
    counts = Counts(
        documents_in={"fr": 50}, documents_out={"fr": 49}, removed={"length.max": {"fr": 1}}, chars_in=900, chars_out=1
    )
    assert "chars_out" not in clean_numbers(counts)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 60), min_size=1), st.integers(3, 12))
def test_who_knows_the_rule_but_not_how_many_rows_were_pooled_cannot_tell_a_small_one(
    rows: dict[str, int], at_least: int
) -> None:
    """For every small cell there is another table, with another number there, that is published as the same."""

    def publish(table: dict[str, int]) -> object:
        return pooled({name: (n,) for name, n in table.items()}, named=bool, at_least=at_least)

    if sum(rows.values()) < at_least:
        return
    for name in [name for name, documents in rows.items() if documents < at_least]:
        shown, (pool,) = pooled({name: (n,) for name, n in rows.items()}, named=bool, at_least=at_least)
        assert name not in shown
        assert pool >= at_least
        others = [rows | {name: 2, partner: rows[partner] - 1} for partner in rows if partner not in (name, *shown)]
        if rows[name] > 1:
            others.append(rows | {name: rows[name] - 1, "new": 1})
        alike = [{n: documents for n, documents in other.items() if documents} for other in others if other != rows]
        assert any(publish(other) == publish(rows) for other in alike)


@given(st.lists(st.lists(SIZES, min_size=5, max_size=5), min_size=4, max_size=4), st.integers(3, 12))
def test_no_number_for_the_tracking_server_reveals_a_small_cell_by_subtraction(
    table: list[list[int]], at_least: int
) -> None:
    """Whatever adds and subtracts published numbers, and knows where they say "none", finds no small cell.

    Rows are languages; the columns what stays, then what each rule removed. A cell can be worked out if and only if its
    sum is a linear combination of the published ones. The dataset's own numbers, in and out, are no secret.
    """
    cells = np.array(table)
    counts = Counts(
        documents_in={code: int(row.sum()) for code, row in zip(LANGUAGES, cells, strict=True) if row.sum()},
        documents_out={code: int(row[0]) for code, row in zip(LANGUAGES, cells, strict=True) if row[0]},
        removed={
            rule: {code: int(n) for code, n in zip(LANGUAGES, column, strict=True) if n}
            for rule, column in zip(RULES, cells.T[1:], strict=True)
            if column.sum()
        },
    ).check()
    numbers = clean_numbers(counts, at_least=at_least)
    published = _masks(numbers)
    assert all(int(cells[mask].sum()) == value for mask, value in published)
    known = [mask for mask, _ in published]
    for mask, _ in published:
        for less in [mask, *(mask & ~other for other, _ in published if (other & mask).sum() == other.sum())]:
            if cells[less].sum() == 0:
                known += [_one(at) for at in zip(*np.nonzero(less), strict=True)]
    public = [np.ones_like(cells, bool), _column(0), ~_column(0)]
    knowledge = np.array([mask.ravel() for mask in known], dtype=float)
    rank = np.linalg.matrix_rank(knowledge)
    for secret in _secrets():
        value = int(cells[secret].sum())
        if not 0 < value < at_least or any(int(cells[p].sum()) == value and _same(cells, p, secret) for p in public):
            continue
        assert np.linalg.matrix_rank(np.vstack([knowledge, secret.ravel()])) > rank, (numbers, secret)


def _same(cells: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether two sums count the same documents."""
    return not cells[one ^ other].any()


def _masks(numbers: dict[str, int]) -> list[tuple[np.ndarray, int]]:
    """Return which cells each published number sums up."""
    rules = {rule: _column(1 + at) for at, rule in enumerate(RULES) if f"removed.{rule}" in numbers}
    codes = {code: _row(at) for at, code in enumerate(LANGUAGES) if f"language.{code}.documents_in" in numbers}
    everything = np.ones((4, 5), bool)
    rules["other"] = everything & ~_column(0) & ~sum(rules.values(), start=~everything)
    codes["other"] = everything & ~sum(codes.values(), start=~everything)
    found = [(everything, numbers["documents_in"]), (_column(0), numbers["documents_out"])]
    found += [(mask, numbers[f"removed.{rule}"]) for rule, mask in rules.items() if f"removed.{rule}" in numbers]
    for code, mask in codes.items():
        if f"language.{code}.documents_in" in numbers:
            found.append((mask, numbers[f"language.{code}.documents_in"]))
            found.append((mask & _column(0), numbers[f"language.{code}.documents_out"]))
    return found


def _secrets() -> list[np.ndarray]:
    """Return what must not be known where it is small: rows, what stays and goes of them, rules, single cells."""
    lines = [_row(at) for at in range(4)]
    return [
        *lines,
        *(line & _column(0) for line in lines),
        *(line & ~_column(0) for line in lines),
        *(_column(at) for at in range(1, 5)),
        *(line & _column(at) for line in lines for at in range(1, 5)),
        *(_column(a) | _column(b) for a, b in combinations(range(1, 5), 2)),
    ]


def _row(at: int) -> np.ndarray:
    mask = np.zeros((4, 5), bool)
    mask[at] = True
    return mask


def _column(at: int) -> np.ndarray:
    mask = np.zeros((4, 5), bool)
    mask[:, at] = True
    return mask


def _one(at: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((4, 5), bool)
    mask[at] = True
    return mask


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.lists(st.integers(0, 40), min_size=12, max_size=12),
    st.integers(3, 12),
)
def test_bands_hold_every_document_once_and_tell_of_no_few(came: list[int], gone: list[int], at_least: int) -> None:
    stay = [max(0, n - g) for n, g in zip(came, gone, strict=False)]
    found = bands([came, stay], at_least)
    assert [sum(band.figures[at] for band in found) for at in (0, 1)] == [sum(came), sum(stay)]
    assert all(one.max_chars + 1 == other.min_chars for one, other in pairwise(found))
    told = [figure for band in found for figure in (*band.figures, band.figures[0] - band.figures[1])]
    assert not any(0 < figure < at_least for figure in told) or len([b for b in found if any(b.figures)]) == 1


def test_a_statistic_of_real_documents_adds_up() -> None:
    documents = [
        Document(id=f"{n}", text="mot " * n, row=n, language=code, declared=code, source=f"https://{host}/{n}")
        for n, (code, host) in enumerate([("fr", "a.fr")] * 40 + [("de", "b.de")] * 12 + [("es", "c.es")] * 2)
    ]
    found = suppressed(profile.of(documents))
    for rows, other in ((found.languages, found.other_languages), (found.domains, found.other_domains)):
        assert sum(rows.values(), start=other) == found.total
    assert sum(documents for _, _, documents in found.lengths) == found.total.documents == 54
