"""Quota in a tree of cohorts: narrative tables, and the closed form against an independent count."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.errors import ConfigError
from consortium.scheduler.check_quota import wrong_quotas
from consortium.scheduler.quota import QuotaTree, Room
from tests.builders import account
from tests.scheduler.drawn import accounts_of
from tests.scheduler.worlds import H100, held

THREE = (account("fr", {H100: 8}), account("de", {H100: (8, 4, None)}), account("uy", {H100: (4, None, 2)}))


@pytest.mark.parametrize(
    ("story", "accounts", "holds", "asks", "room"),
    [
        ("alone, an account may take all that its cohort lends", THREE, {}, "fr", Room(18, "cohort", "")),
        ("a borrowing limit bounds it", THREE, {}, "de", Room(12, "borrowing_limit", "de")),
        ("what is never lent stays with its owner", THREE, {}, "uy", Room(20, "cohort", "")),
        ("others who borrowed leave less", THREE, {"fr": 14}, "de", Room(4, "cohort", "")),
        ("what is kept from lending survives any borrowing", THREE, {"fr": 18}, "uy", Room(2, "cohort", "")),
        ("own use counts against the borrowing limit", THREE, {"de": 10}, "de", Room(2, "borrowing_limit", "de")),
        ("an undeclared flavor cannot be borrowed", (*THREE, account("es")), {}, "es", Room(0, "undeclared", "es")),
        ("declaring 0 is enough to borrow", (*THREE, account("es", {H100: 0})), {}, "es", Room(18, "cohort", "")),
        ("without a parent nobody shares", (account("fr", {H100: 8}, parent=None), *THREE[1:]), {}, "fr",
         Room(8, "cohort", "fr")),
        ("a quota lowered below what is held leaves nothing", (account("fr", {H100: 2}),), {"fr": 6}, "fr",
         Room(0, "cohort", "")),
    ],
)  # fmt: skip
def test_what_an_account_may_take(story, accounts, holds, asks, room):
    tree = QuotaTree(accounts)
    for name, gpus in holds.items():
        tree.charge(name, H100, gpus)
    assert tree.available(asks, H100) == room, story


def test_a_partner_and_its_projects_share_before_they_borrow_outside():
    tree = QuotaTree(
        (
            account("fr", {H100: (4, 2, None)}),
            account("fr/health", {H100: (4, 0, 1)}),
            account("fr/law", {H100: 0}),
            account("de", {H100: 100}),
        )
    )
    assert tree.available("fr/health", H100).gpus == 4, "its borrowing limit of 0 keeps it at its nominal"
    assert tree.available("fr/law", H100).gpus == 7, "fr's 4, 1 lent by fr/health, and 2 that fr may borrow for all"
    tree.charge("fr/law", H100, 6)
    assert tree.borrowed("fr/law", H100, 1) == 1
    assert tree.available("fr", H100) == Room(1, "borrowing_limit", "fr")
    assert tree.available("fr/health", H100).gpus == 4, "3 it never lends, and the 1 left under fr's limit"
    tree.charge("fr/health", H100, 4)
    assert tree.available("fr/law", H100) == Room(0, "borrowing_limit", "fr")


def test_what_is_never_lent_counts_for_nobody_above():
    tree = QuotaTree((account("fr", {H100: 4}), account("fr/law", {H100: (6, None, 2)}), account("de", {H100: 8})))
    assert tree.passes("fr/law", H100, 6) == [("fr/law", 6), ("fr", 2), ("", 2)]
    tree.charge("fr/law", H100, 3)
    assert tree.passes("fr/law", H100, 6) == [("fr/law", 6), ("fr", 5), ("", 5)]
    tree.charge("fr/law", H100, 6)
    assert [tree.used(name, H100) for name in ("fr/law", "fr", "")] == [9, 5, 5]
    assert tree.passes("de", H100, 3) == [("de", 3), ("", 3)]


def test_gpus_of_a_removed_account_count_for_its_partner():
    tree = QuotaTree(THREE)
    tree.charge("fr/gone", H100, 3)
    assert tree.used("fr", H100) == 3
    tree.charge("xx", H100, 5)
    assert tree.available("fr", H100).gpus == 18 - 8


@pytest.mark.parametrize(
    ("accounts", "words"),
    [
        ((account("fr/health", {}, parent="fr"),), "does not exist"),
        ((account("fr", parent="fr/health"), account("fr/health", parent="fr")), "is below it"),
    ],
)
def test_accounts_that_are_no_tree_are_refused(accounts, words):
    with pytest.raises(ConfigError, match=words):
        QuotaTree(accounts)


_moves = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=8)


@settings(max_examples=150, deadline=None)
@given(accounts_of(("de", "fr", "uy")), _moves)
def test_available_is_the_most_that_breaks_no_limit(accounts, moves):
    tree, legs = QuotaTree(accounts), []
    names = [item.id for item in accounts]
    for number, (which, gpus) in enumerate(moves):
        name = names[which % len(names)]
        if tree.available(name, H100).gpus >= gpus:
            tree.charge(name, H100, gpus)
            legs.append(held(number, "fr-1", {"n0": gpus}, account=name))
    for name in names:
        room = tree.available(name, H100).gpus
        more = [held(99, "fr-1", {"n0": room + 1}, account=name)]
        assert wrong_quotas(accounts, legs, legs + more, {(name, H100)})
        if room:
            most = [held(99, "fr-1", {"n0": room}, account=name)]
            assert not wrong_quotas(accounts, legs, legs + most, {(name, H100)})
            assert tree.potential(name, H100).gpus >= room


@settings(max_examples=150, deadline=None)
@given(accounts_of(("de", "fr", "uy")), _moves, st.randoms(use_true_random=False))
def test_releases_undo_charges_in_any_order(accounts, moves, random):
    tree, names = QuotaTree(accounts), [item.id for item in accounts]
    tree.charge(names[0], H100, 2)
    before = [tree.used(name, H100) for name in ["", *names]]
    twin = tree.copy()
    charged = [(names[which % len(names)], gpus) for which, gpus in moves]
    for name, gpus in charged:
        tree.charge(name, H100, gpus)
    assert [twin.used(name, H100) for name in ["", *names]] == before
    for name, gpus in random.sample(charged, len(charged)):
        tree.release(name, H100, gpus)
    assert [tree.used(name, H100) for name in ["", *names]] == before
