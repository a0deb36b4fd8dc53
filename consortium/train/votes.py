"""Votes of a job's sites: each partner has one, which its sites share equally.

So who brings more sites has no more say: a state with ten of a job's twelve sites is one of three partners.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from fractions import Fraction
from typing import TypeVar

from consortium.domain.ids import partner_of

Said = TypeVar("Said", bound=Hashable)


def majority(yes: Collection[str], of: Collection[str]) -> bool:
    """Return whether those of the sites `of` that are in `yes` have strictly more than half of the votes of all."""
    sites = Counter(partner_of(site) for site in set(of))
    votes = sum((Fraction(1, sites[partner_of(site)]) for site in set(yes) & set(of)), Fraction(0))
    return 2 * votes > len(sites)


def shares(sites: Collection[str]) -> dict[str, int]:
    """Return the votes of sites as whole numbers, each partner's summing up to the same."""
    known = Counter(partner_of(site) for site in set(sites))
    whole = math.lcm(*known.values())
    return {site: whole // known[partner_of(site)] for site in sorted(set(sites))}


def medians(values: Mapping[str, float]) -> tuple[float, float]:
    """Return the lower and the upper median of values by site, of which each partner has one vote; 0 of none.

    At most half of the votes are below the lower one, at most half above the upper one; they differ where a value
    divides the votes in halves.
    """
    sites = Counter(partner_of(site) for site in values)
    half, below, lower = Fraction(len(sites), 2), Fraction(0), None
    for site in sorted(values, key=lambda site: values[site]):
        below += Fraction(1, sites[partner_of(site)])
        if lower is None and below >= half:
            lower = values[site]
        if below > half:
            return lower if lower is not None else values[site], values[site]
    return 0.0, 0.0


def chosen(said: Mapping[str, Said], of: Collection[str]) -> Said | None:
    """Return what a majority of the sites `of` said; `said` is by site. None where none of it has one."""
    for value in set(said.values()):
        if majority([site for site, one in said.items() if one == value], of):
            return value
    return None
