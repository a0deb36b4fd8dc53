"""One vote a partner, whatever number of sites it brings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.train.votes import chosen, majority

THREE = ("de-1", "fr-1", "uy-1")
LARGE = ("fr-1", "fr-2", "fr-3", "fr-4", "de-1", "uy-1")


@pytest.mark.parametrize(
    ("what", "yes", "of", "passes"),
    [
        ("two of three", ("de-1", "uy-1"), THREE, True),
        ("one of three", ("de-1",), THREE, False),
        ("one of two is half", ("de-1",), THREE[:2], False),
        ("four sites of one partner among three", LARGE[:4], LARGE, False),
        ("two partners with a site each against it", LARGE[4:], LARGE, True),
        ("half of a partner's sites are half of its vote", ("fr-1", "fr-2", "de-1"), LARGE, False),
        ("and more than half decide beside another's", ("fr-1", "fr-2", "fr-3", "de-1"), LARGE, True),
        ("a partner alone decides among its sites", ("fr-1", "fr-2"), ("fr-1", "fr-2", "fr-3"), True),
        ("a site that is not asked has no vote", ("at-1", "be-1", "ch-1"), THREE, False),
        ("nobody is no majority of nobody", (), (), False),
    ],
)
def test_a_majority_is_of_partners(what, yes, of, passes):
    assert majority(yes, of) is passes, what


sites = st.sets(st.builds("{}-{}".format, st.sampled_from(["aa", "bb", "cc", "dd"]), st.integers(1, 4)), max_size=9)


@given(sites, sites)
def test_no_two_values_have_a_majority_and_it_is_the_partners_that_count(yes, of):
    no = of - yes
    assert not (majority(yes, of) and majority(no, of))
    behind = {site[:2] for site in yes & of}
    if majority(yes, of):
        assert 2 * len(behind) > len({site[:2] for site in of})
    said = dict.fromkeys(yes & of, "yes") | dict.fromkeys(no, "no")
    expected = "yes" if majority(yes, of) else "no" if majority(no, of) else None
    assert chosen(said, of) == expected
