"""Fair share: who has had more than its own, now and lately, and who has lent.

For an account `a`, over flavors f with `total(f)` GPUs in the pool:

- `dominant(a)` = max over f of above(a, f) / total(f), where above is what it holds beyond its nominal: the dominant
  share of what it borrows (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011, here above nominal, as in Kueue).
- `borrowed(a)`, `lent(a)`: the same kind of share, averaged over the past with half-life H: the integral of reference
  GPUs above nominal (of own nominal GPUs in others' hands), each instant weighted 2**(-age/H), over H / ln 2 times the
  pool's reference GPUs.
- `share(a)` = max(0, dominant + borrowed - credit * lent) / weight(a).
- `level(a)` = 0 for a job that keeps its account within nominal; else 1 + floor(log2(1 + 16 * share)).

Levels, not shares, order the queue, so that small differences do not hinder short jobs from going first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import log
from typing import NamedTuple

from consortium.domain import ids
from consortium.domain.partner import SiteState
from consortium.domain.quota import Account
from consortium.scheduler.quota import ROOT, QuotaTree
from consortium.scheduler.types import HeldLeg, History, Settings, SiteView

STEPS = 16
"""The level rises with the first 1/16 of the pool above nominal, and with each doubling from there."""


class Factors(NamedTuple):
    """Everything that makes an account's level; shares are of the whole pool."""

    account: str
    weight: int
    dominant: float
    flavor: str
    """The flavor of the dominant share; empty where nothing is borrowed."""
    borrowed: float
    lent: float
    credit: float
    """What `lent` is worth: `lent` times the credit in the settings."""
    share: float
    level: int
    """The level of a job that borrows; one within nominal has level 0."""


class Pool:
    """The GPUs of the federation, and what each account borrowed and lent: what shares are measured against."""

    def __init__(
        self,
        views: Iterable[SiteView],
        accounts: Iterable[Account],
        history: Iterable[History],
        settings: Settings,
    ) -> None:
        self.totals: dict[str, int] = {}
        factors: dict[str, Fraction] = {}
        for view in views:
            flavor = view.site.flavor
            self.totals[flavor.id] = self.totals.get(flavor.id, 0) + view.site.gpus
            factors[flavor.id] = Fraction(flavor.reference_factor)
        self._reference = float(sum(factors[flavor] * gpus for flavor, gpus in self.totals.items()))
        self._weights = {account.id: account.weight for account in accounts}
        self._history = {item.account: item for item in history}
        self._credit = settings.credit_percent / 100
        self._window_ms = settings.half_life_s * 1000 / log(2)
        self._levels: dict[str, dict[tuple[str, int], int]] = {}
        self._of_jobs: dict[str, dict[tuple[str, tuple[tuple[str, int], ...], bool], tuple[int, ...]]] = {}
        """Answers of `level_of`, by the partner whose accounts they are of."""

    def factors(self, account: str, quota: QuotaTree, flavor: str = "", gpus: int = 0) -> Factors:
        """The factors of an account, were it to hold `gpus` more of `flavor`."""
        dominant, where = 0.0, ""
        for name, total in sorted(self.totals.items()):
            above = quota.above(account, name, gpus if name == flavor else 0)
            if above and above / total > dominant:
                dominant, where = above / total, name
        past = self._history.get(account)
        whole = self._reference * self._window_ms
        borrowed = past.borrowed / whole if past and whole else 0.0
        lent = past.lent / whole if past and whole else 0.0
        weight = self._weights.get(account, 1)
        share = max(0.0, dominant + borrowed - self._credit * lent) / weight
        level = (1 + int(STEPS * share)).bit_length()
        return Factors(account, weight, dominant, where, borrowed, lent, self._credit * lent, share, level)

    def level(self, account: str, quota: QuotaTree, flavor: str, gpus: int) -> tuple[int, ...]:
        """The level of a job, of its partner first and of its project after; zeros at the end are left out.

        So a partner's own jobs and those of its projects compare: () is within nominal all the way.
        """
        levels = [
            self._level(node, quota, flavor, more) if more else 0
            for node, more in reversed(quota.passes(account, flavor, gpus))
            if node != ROOT
        ]
        while levels and not levels[-1]:
            levels.pop()
        return tuple(levels)

    def level_of(
        self, account: str, quota: QuotaTree, need: tuple[tuple[str, int], ...], *, everywhere: bool
    ) -> tuple[int, ...]:
        """The level of a job that needs so many GPUs of all of these flavors, or of any: the highest, or the lowest."""
        path = quota.path(account)
        top = path[-2] if len(path) > 1 else account
        known = self._of_jobs.get(top)
        if known is None:
            known = self._of_jobs[top] = {}
        answer = known.get((account, need, everywhere))
        if answer is None:
            levels = (self.level(account, quota, flavor, gpus) for flavor, gpus in need)
            answer = known[account, need, everywhere] = max(levels) if everywhere else min(levels)
        return answer

    def forget(self, nodes: Iterable[str]) -> None:
        """Note that accounts hold something else now: those of a leg's account and above."""
        for node in nodes:
            self._levels.pop(node, None)
            self._of_jobs.pop(node, None)

    def _level(self, node: str, quota: QuotaTree, flavor: str, gpus: int) -> int:
        known = self._levels.get(node)
        if known is None:
            known = self._levels[node] = {}
        level = known.get((flavor, gpus))
        if level is None:
            level = self.factors(node, quota, flavor, gpus).level if quota.above(node, flavor, gpus) else 0
            known[flavor, gpus] = level
        return level


def advance(
    history: Iterable[History],
    accounts: tuple[Account, ...],
    held: Iterable[HeldLeg],
    views: Iterable[SiteView],
    settings: Settings,
    ms: int,
) -> tuple[History, ...]:
    """Return the history `ms` later, had `held` been held all that time: older parts decay, new ones are added."""
    views = tuple(views)
    factors = {view.site.flavor.id: Fraction(view.site.flavor.reference_factor) for view in views}
    kept = 0.5 ** (ms / (settings.half_life_s * 1000))
    added_ms = settings.half_life_s * 1000 / log(2) * (1 - kept)
    now = holdings(accounts, held, views)
    old = {item.account: item for item in history}
    borrowed: dict[str, Fraction] = {}
    lent: dict[str, Fraction] = {}
    for (account, flavor), holding in now.items():
        factor = factors.get(flavor, Fraction(1))
        borrowed[account] = borrowed.get(account, Fraction(0)) + factor * holding.borrowed
        lent[account] = lent.get(account, Fraction(0)) + factor * holding.lent
    moved = []
    for account in sorted({*old, *borrowed}):
        past = old.get(account, History(account=account))
        moved.append(
            History(
                account=account,
                borrowed=round(past.borrowed * kept + float(borrowed.get(account, Fraction(0))) * added_ms),
                lent=round(past.lent * kept + float(lent.get(account, Fraction(0))) * added_ms),
            )
        )
    return tuple(item for item in moved if item.borrowed or item.lent)


class Holding(NamedTuple):
    """GPUs of one flavor in the hands of an account and the projects below it."""

    nominal: int
    held: int
    borrowed: int
    """Held above nominal."""
    lent: int
    """Of its unused nominal that it may lend, what others hold above theirs; where several could, in proportion.

    What lies idle at its sites because they take no new legs is lent to nobody.
    """


def holdings(
    accounts: tuple[Account, ...], held: Iterable[HeldLeg], views: Iterable[SiteView]
) -> dict[tuple[str, str], Holding]:
    """Return account and flavor to who holds whose GPUs, the root left out."""
    held = tuple(held)
    closed = _closed(held, views)
    parents = {account.id: account.parent or ROOT for account in accounts if account.id}
    lines = {account: _line(parents, account) for account in parents}
    limits = {
        (quota.account, quota.flavor): quota.lending_limit
        for account in accounts
        for quota in account.quotas
        if quota.lending_limit is not None
    }
    nominal: dict[tuple[str, str], int] = {}
    using: dict[tuple[str, str], int] = {}
    for account in accounts:
        for quota in account.quotas:
            for name in lines.get(account.id, ()):
                nominal[name, quota.flavor] = nominal.get((name, quota.flavor), 0) + quota.nominal
    for leg in held:
        for name in lines.get(leg.account) or _line(parents, ids.partner_of(leg.account)):  # of a removed project
            using[name, leg.flavor] = using.get((name, leg.flavor), 0) + leg.gpus
    families: dict[str, list[str]] = {}
    for account in sorted(accounts, key=lambda account: account.id):
        if account.id:  # one without a parent shares with nobody
            family = account.id if account.parent is None else account.parent
            families.setdefault(family, []).append(account.id)
    found: dict[tuple[str, str], Holding] = {}
    for flavor in sorted({key[1] for key in (*nominal, *using)}):
        for siblings in families.values():
            found |= _family(flavor, siblings, nominal, using, limits, closed)
    return found


def _closed(held: Iterable[HeldLeg], views: Iterable[SiteView]) -> dict[tuple[str, str], int]:
    """Partner and flavor to the GPUs of its sites that nobody holds and nobody may take: nobody borrows them."""
    at: dict[str, int] = {}
    on: dict[tuple[str, str], int] = {}
    for leg in held:
        at[leg.site] = at.get(leg.site, 0) + leg.gpus
        for node, gpus in leg.nodes.items():
            on[leg.site, node] = on.get((leg.site, node), 0) + gpus
    closed: dict[tuple[str, str], int] = {}
    for view in views:
        site = view.site
        if view.state is SiteState.ACTIVE:
            shut = (node for node in site.nodes if node.id in view.cordoned)
            idle = sum(max(0, node.gpus - on.get((site.id, node.id), 0)) for node in shut)
        else:
            idle = max(0, site.gpus - at.get(site.id, 0))
        key = site.partner, site.flavor.id
        closed[key] = closed.get(key, 0) + idle
    return closed


def _family(
    flavor: str,
    siblings: list[str],
    nominal: Mapping[tuple[str, str], int],
    using: Mapping[tuple[str, str], int],
    limits: Mapping[tuple[str, str], int],
    closed: Mapping[tuple[str, str], int],
) -> dict[tuple[str, str], Holding]:
    has = {name: nominal.get((name, flavor), 0) for name in siblings}
    holds = {name: using.get((name, flavor), 0) for name in siblings}
    borrowed = sum(max(0, holds[name] - has[name]) for name in siblings)
    idle = {
        name: min(
            max(0, has[name] - holds[name] - closed.get((name, flavor), 0)), limits.get((name, flavor), has[name])
        )
        for name in siblings
    }
    lent = _divide(min(borrowed, sum(idle.values())), idle)
    return {
        (name, flavor): Holding(has[name], holds[name], max(0, holds[name] - has[name]), lent[name])
        for name in siblings
        if has[name] or holds[name]
    }


def _divide(amount: int, idle: dict[str, int]) -> dict[str, int]:
    """Divide `amount` GPUs in proportion to `idle`, whole GPUs only, largest remainders first, ties by name."""
    total = sum(idle.values())
    if not total:
        return dict.fromkeys(idle, 0)
    parts = {name: amount * count // total for name, count in idle.items()}
    rest = amount - sum(parts.values())
    for name in sorted(idle, key=lambda name: (-(amount * idle[name] % total), name))[:rest]:
        parts[name] += 1
    return parts


def _line(parents: Mapping[str, str], account: str) -> tuple[str, ...]:
    """The account and every account above it, the root left out."""
    line = []
    current = account
    while current:
        line.append(current)
        current = parents.get(current, ROOT)
    return tuple(line)
