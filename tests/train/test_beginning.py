"""What a training begins with, also where the site that drew it was withdrawn before all held it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from consortium.train.disputes import beginning
from tests.train.hub import Hub
from tests.train.test_leg import CrashError, Site, digests, together

SITES = ("de-1", "fr-1", "uy-1")
LEFT = SITES[1:]


def dies(site: Site, *crash: Any) -> None:
    """A leg's one life, which ends there."""
    with suppress(CrashError):
        site._run(crash)


def begun(leg: Any) -> list[Site]:
    """Sites of which the first drew a state and sent it, and nobody has taken it yet."""
    hub = Hub(SITES)
    sites = [Site(hub, *leg(site, SITES)) for site in SITES]
    dies(sites[0], "commit", 1, "before")
    return sites


def placed_again(leg: Any, sites: list[Site]) -> list[Site]:
    """The job at the sites that are left: the first is withdrawn, and its store gone."""
    hub = sites[0].hub
    hub.sites = LEFT
    hub.artifacts.clear()
    return [Site(hub, _unlike(leg(site.context.site, LEFT)[0]), site.store) for site in sites[1:]]


def _unlike(context: Any) -> Any:
    """On another processor the same seed gives other bits."""
    return replace(context, params={**context.params, "seed": 8})


@pytest.mark.parametrize(("said", "begins"), [
    ({}, ""),
    ({"fr-1": "own"}, "own"),
    ({"uy-1": "evil"}, ""),
    ({"de-1": "drawn"}, ""),
    ({"de-1": "drawn", "uy-1": "drawn"}, "drawn"),
    ({"de-1": "drawn", "uy-1": "evil"}, ""),
    ({"de-1": "drawn", "fr-1": "own", "uy-1": "drawn"}, "own"),
])  # fmt: skip
def test_a_withdrawn_sites_word_stands_until_the_first_spoke_where_one_that_is_left_has_what_it_drew(said, begins):
    assert beginning(LEFT, said, resumed=False) == begins


@pytest.mark.integration
def test_who_is_first_once_the_first_site_is_withdrawn_begins_with_the_state_that_others_hold(leg):
    sites = begun(leg)
    dies(sites[2], "commit", 1, "before")
    left = placed_again(leg, sites)
    together(left)
    assert len(digests(left)) == 1
    said = sites[0].hub.agreed["outer/0"]
    assert said == dict.fromkeys(SITES, said["de-1"])


@pytest.mark.integration
def test_a_state_that_nobody_who_is_left_published_is_drawn_anew(leg):
    sites = begun(leg)
    dies(sites[2], "outer/0", 0, "before")
    left = placed_again(leg, sites)
    together(left)
    assert len(digests(left)) == 1
    said = sites[0].hub.agreed["outer/0"]
    assert said["de-1"] != said["fr-1"] == said["uy-1"]
