from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from consortium.domain import ids

_times = st.integers(0, (1 << 48) - 1)
_entropy = st.binary(min_size=10, max_size=10)
_prefixes = st.sampled_from(ids.PREFIXES)


@given(_prefixes, _times, _times, _entropy, _entropy)
def test_ids_of_one_prefix_sort_by_time(prefix, earlier, later, one, other):
    assume(earlier < later)
    assert ids.make_id(prefix, earlier, one) < ids.make_id(prefix, later, other)


@given(_prefixes, _prefixes, _times, _times, _entropy, _entropy)
def test_two_ids_are_equal_only_if_all_they_were_made_from_is(prefix, prefix_2, at, at_2, entropy, entropy_2):
    same = (prefix, at, entropy) == (prefix_2, at_2, entropy_2)
    assert (ids.make_id(prefix, at, entropy) == ids.make_id(prefix_2, at_2, entropy_2)) == same


@given(_prefixes, _times, _entropy)
def test_an_id_is_well_formed_for_its_prefix_and_is_nothing_else(prefix, at, entropy):
    made = ids.make_id(prefix, at, entropy)
    assert ids.is_id(made)
    assert [name for name in ids.PREFIXES if ids.is_id(made, name)] == [prefix]
    assert [check(made) for check in (ids.is_partner, ids.is_site, ids.is_account)] == [False, False, False]
    assert not ids.is_id(made + "0")
    assert not ids.is_id(made.upper())


@pytest.mark.parametrize(
    ("prefix", "at", "entropy"),
    [("run", 0, bytes(10)), ("job", -1, bytes(10)), ("job", 1 << 48, bytes(10)), ("job", 0, bytes(9))],
)
def test_an_id_of_anything_else_is_refused(prefix, at, entropy):
    with pytest.raises(ValueError, match="id"):
        ids.make_id(prefix, at, entropy)


@pytest.mark.parametrize(
    ("text", "partner", "site", "account", "name"),
    [
        ("fr", True, False, True, True),
        ("fr-1", False, True, False, True),
        ("fr-1000", False, False, False, True),
        ("fr/health", False, False, True, False),
        ("fr/", False, False, False, False),
        ("fr/a/b", False, False, False, False),
        ("FR", False, False, False, False),
        ("fra", False, False, False, True),
        ("laws-fr.2", False, False, False, True),
        ("../etc", False, False, False, False),
        ("", False, False, False, False),
    ],
)
def test_forms_of_names(text, partner, site, account, name):
    assert (ids.is_partner(text), ids.is_site(text), ids.is_account(text), ids.is_name(text)) == (
        partner, site, account, name,
    )  # fmt: skip


@pytest.mark.parametrize("ending", ["\n", " ", "\x00"])
def test_no_form_accepts_a_trailing_newline(ending):
    for check, text in ((ids.is_partner, "fr"), (ids.is_site, "fr-1"), (ids.is_account, "fr/lab"), (ids.is_name, "a")):
        assert check(text)
        assert not check(text + ending)
    assert not ids.is_id(ids.make_id("job", 0, bytes(10)) + ending)


@pytest.mark.parametrize("text", ["fr", "fr/health", "fr-1", "fr/amelie"])
def test_everything_names_its_partner_first(text):
    assert ids.partner_of(text) == "fr"


@pytest.mark.parametrize("text", ["consortium", "server", ""])
def test_what_is_of_no_partner_has_none(text):
    assert ids.partner_of(text) == ""
