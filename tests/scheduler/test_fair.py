"""Fair share: what an account holds above its own now and held lately, less what it lent; levels, not shares."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.domain.partner import SiteState
from consortium.scheduler import History, Pool, Settings, SiteView, fair_advance, holdings, schedule
from consortium.scheduler.quota import QuotaTree
from tests.builders import account, site
from tests.scheduler.drawn import accounts_of
from tests.scheduler.worlds import A100, H100, held, in_turn, started, world

HOUR_MS, WEEK_MS = 3_600_000, 604_800_000
POOL = (site("fr-1", H100, (8,) * 8), site("de-1", A100, (8,) * 4))
"""64 h100 and 32 a100: 75.008 reference GPUs."""
THREE = (account("fr", {H100: 32, A100: 0}), account("de", {H100: 32, A100: 32}), account("uy", {H100: 0, A100: 0}))


def pool(accounts=THREE, history=(), sites=POOL, **changes) -> Pool:
    views = tuple(SiteView(site=item, state=SiteState.ACTIVE) for item in sites)
    return Pool(views, accounts, history, Settings(**changes))


def holding(accounts, **gpus: int) -> QuotaTree:
    tree = QuotaTree(accounts)
    for name, count in gpus.items():
        tree.charge(name.replace("_", "/"), H100, count)
    return tree


@pytest.mark.parametrize(
    ("story", "asks", "held_h100", "gpus", "level"),
    [
        ("within nominal", "fr", 24, 8, 0),
        ("the first sixteenth of the pool above nominal", "fr", 32, 3, 1),
        ("from a sixteenth on", "fr", 32, 4, 2),
        ("twice that", "fr", 32, 12, 3),
        ("twice that again", "fr", 32, 28, 4),
        ("an account without nominal borrows from the first GPU", "uy", 0, 1, 1),
        ("what is held already counts", "uy", 12, 1, 3),
    ],
)
def test_the_level_rises_with_the_first_sixteenth_and_with_each_doubling(story, asks, held_h100, gpus, level):
    tree = holding(THREE, **{asks: held_h100})
    assert pool().level(asks, tree, H100, gpus) == ((level,) if level else ()), story


def test_a_heavy_borrower_of_one_flavor_is_within_nominal_in_another():
    tree = QuotaTree(THREE)
    tree.charge("de", H100, 60)
    assert pool().level("de", tree, A100, 32) == ()
    assert pool().level("de", tree, A100, 33) == pool().level("de", tree, H100, 1), "above, its dominant share counts"


def test_a_gang_over_two_flavors_comes_after_the_one_of_which_it_borrows():
    accounts = (account("fr", {H100: 8, A100: 8}), account("de", {H100: 0, A100: 8}))
    sites = (site("fr-1", H100), site("de-1", A100))
    gang = in_turn(1, account="de", gpus=8, sites=("de-1", "fr-1"))
    alone = in_turn(2, account="fr", gpus=8, sites=("fr-1",))
    assert list(started(schedule(world(gang, alone, sites=sites, accounts=accounts)))) == [alone.id]
    either = in_turn(1, account="de", gpus=8, flavors=(A100, H100))
    here = in_turn(2, account="de", gpus=8, sites=("de-1",))
    plan = schedule(world(either, here, sites=sites, accounts=accounts))
    assert next(iter(started(plan))) == either.id, "one site of several: the flavor of which it has its own counts"


def test_weights_divide_the_share():
    light, heavy = account("uy", {H100: 0}), account("uy", {H100: 0}, weight=4)
    levels = [pool((*THREE[:2], item)).level("uy", holding((*THREE[:2], item)), H100, 32) for item in (light, heavy)]
    assert levels == [(4,), (2,)]


def test_every_factor_is_told():
    whole = 64 + 32 * 0.344
    history = (History(account="uy", borrowed=round(whole * WEEK_MS / 0.6931471805599453 / 4), lent=0),)
    told = pool(history=history).factors("uy", holding(THREE, uy=8), H100, 8)
    assert (told.account, told.weight, told.flavor, told.lent, told.credit) == ("uy", 1, H100, 0.0, 0.0)
    assert (told.dominant, round(told.borrowed, 9), round(told.share, 9)) == (16 / 64, 0.25, 0.5)
    assert told.level == 4


def test_who_borrowed_lately_comes_after_who_did_not_and_who_lent_before():
    accounts = (account("fr", {H100: 0}), account("de", {H100: 0}), account("uy", {H100: 16}))
    jobs = (in_turn(1, account="fr", gpus=8), in_turn(2, account="de", gpus=8))
    sites = (site("uy-1", H100),)
    much = 300 * 8 * HOUR_MS
    first = {
        (): "fr",
        (History(account="fr", borrowed=much),): "de",
        (History(account="fr", borrowed=much), History(account="de", borrowed=much)): "fr",
        (History(account="fr", borrowed=much, lent=much), History(account="de")): "fr",
        (History(account="de", lent=10 * much),): "de",
    }
    for history, winner in first.items():
        plan = schedule(world(*jobs, sites=sites, accounts=accounts, history=history))
        assert list(started(plan)) == [item.id for item in jobs if item.account == winner], history
    lender = (History(account="de", lent=10 * much),)
    plan = schedule(world(*jobs, sites=sites, accounts=accounts, history=lender, credit_percent=0))
    assert list(started(plan)) == [jobs[0].id], "where lending earns nothing, age decides"


def test_partners_first_then_the_projects_of_one_partner():
    accounts = (
        account("fr", {H100: 0}),
        account("fr/law", {H100: 8}),
        account("fr/med", {H100: 0}),
        account("de", {H100: 0}),
        account("uy", {H100: 56}),
    )
    tree = holding(accounts, fr_law=4)
    levels = {name: pool(accounts).level(name, tree, H100, 4) for name in ("fr/law", "fr/med", "fr", "de")}
    assert levels == {"fr/law": (), "fr/med": (0, 2), "fr": (), "de": (2,)}
    assert sorted(levels, key=lambda name: levels[name]) == ["fr/law", "fr", "fr/med", "de"]


def test_history_halves_in_a_half_life_and_what_is_held_is_added():
    views = tuple(SiteView(site=item, state=SiteState.ACTIVE) for item in POOL)
    past = (History(account="uy", borrowed=1_000_000), History(account="fr", lent=3))
    after = fair_advance(past, THREE, (), views, Settings(), WEEK_MS)
    assert after == (History(account="fr", lent=2), History(account="uy", borrowed=500_000))
    leg = held(1, "fr-1", {"n0": 8}, account="uy")
    hour = {item.account: item for item in fair_advance((), THREE, (leg,), views, Settings(), HOUR_MS)}
    assert hour["uy"].borrowed == pytest.approx(8 * HOUR_MS, rel=0.01)
    assert (hour["fr"].lent, hour["de"].lent) == (pytest.approx(4 * HOUR_MS, rel=0.01),) * 2
    slow = held(2, "de-1", {"n0": 8}, A100, account="uy")
    assert fair_advance((), THREE, (slow,), views, Settings(), HOUR_MS)[1].borrowed == pytest.approx(
        0.344 * 8 * HOUR_MS, rel=0.01
    ), "in reference GPUs"


@pytest.mark.parametrize(
    ("story", "accounts", "legs", "lent"),
    [
        ("in proportion to what is unused", THREE, {"uy": 9, "fr": 16}, {"fr": 3, "de": 6}),
        ("nothing while nobody borrows", THREE, {"fr": 32}, {}),
        ("what may not be lent earns no credit", (account("fr", {H100: (32, None, 0)}), *THREE[1:]),
         {"uy": 8}, {"de": 8}),
        ("nor does who shares with nobody", (account("fr", {H100: 32}, parent=None), *THREE[1:]), {"uy": 8}, {"de": 8}),
        ("a project lends to its siblings before anybody else",
         (account("fr", {H100: 0}), account("fr/law", {H100: 8}), account("fr/med", {H100: 0}), *THREE[1:]),
         {"fr/med": 4}, {"fr/law": 4}),
    ],
)  # fmt: skip
def test_who_lent_what_others_borrow(story, accounts, legs, lent):
    running = [held(n, "fr-1", {"n0": gpus}, account=name) for n, (name, gpus) in enumerate(legs.items())]
    found = holdings(accounts, running, ())
    assert {name: item.lent for (name, flavor), item in found.items() if flavor == H100 and item.lent} == lent, story


@pytest.mark.parametrize(
    ("story", "shut", "lent"),
    [
        ("in proportion to what is unused", {}, {"fr": 11, "de": 5}),
        ("a drained site's GPUs are lent to nobody", {"state": SiteState.DRAINED}, {"de": 16}),
        ("but for those that others hold there", {"state": SiteState.DRAINING}, {"fr": 5, "de": 11}),
        ("nor is a cordoned node's", {"cordoned": ("n2", "n3")}, {"fr": 8, "de": 8}),
    ],
)
def test_what_nobody_could_take_earns_no_credit(story, shut, lent):
    accounts = (account("fr", {H100: 32}), account("de", {H100: 32}), account("uy", {H100: 0}))
    views = (
        SiteView(site=site("fr-1", H100, (8,) * 4), **({"state": SiteState.ACTIVE} | shut)),
        SiteView(site=site("de-1", H100, (8,) * 4), state=SiteState.ACTIVE),
    )
    there = {"fr-1": 0 if shut.get("state") is SiteState.DRAINED else 8}
    there["de-1"] = 16 - there["fr-1"]
    legs = [held(1, name, {f"n{at}": 8 for at in range(gpus // 8)}, account="uy") for name, gpus in there.items()]
    legs.append(held(2, "de-1", {"n2": 8, "n3": 8}, account="de"))
    found = holdings(accounts, legs, views)
    assert {name: item.lent for (name, _), item in found.items() if item.lent} == lent, story


def test_gpus_of_a_removed_project_are_its_partners():
    accounts = (account("fr", {H100: 8}), account("de", {H100: 24}))
    legs = (held(1, "fr-1", {"n0": 8}, account="fr/gone"), held(2, "de-1", {"n0": 8}, account="fr/gone"))
    found = holdings(accounts, legs, ())
    assert (found["fr", H100].held, found["fr", H100].borrowed, found["de", H100].lent) == (16, 8, 8)


@settings(max_examples=50, deadline=None)
@given(accounts_of(("de", "fr", "uy")), st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=8))
def test_among_siblings_no_more_is_lent_than_borrowed_and_nobody_does_both(accounts, moves):
    names = [item.id for item in accounts]
    legs = [held(n, "fr-1", {"n0": gpus}, account=names[which % len(names)]) for n, (which, gpus) in enumerate(moves)]
    found = holdings(accounts, legs, ())
    for parent in {item.parent for item in accounts}:
        family = [found[item.id, H100] for item in accounts if item.parent == parent and (item.id, H100) in found]
        assert sum(item.lent for item in family) <= sum(item.borrowed for item in family)
        assert not any(item.lent and item.borrowed for item in family)
        assert all(item.held - item.nominal == item.borrowed or item.held <= item.nominal for item in family)
