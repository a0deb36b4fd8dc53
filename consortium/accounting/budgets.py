"""Budgets: reference GPU-time that an account, with the projects below it, may use in a period.

A budget is spent by what sites metered, and bound by what running jobs may still use until their walltimes end, and by
what legs used that their sites have yet to report; all are cut at the end of the period. Sums are exact fractions,
rounded up once to whole reference GPU-milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from consortium.accounting.periods import bounds, period_of
from consortium.domain.quota import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """GPUs at a site that an account may use in [start_ms, end_ms)."""

    account: str
    site: str
    gpus: int
    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a budget stands, in reference GPU-milliseconds."""

    account: str
    period: str
    budget: int
    used: int
    """Metered in the period, as far as sites have reported."""
    promised: int
    """What running jobs may use on top, if they take their whole walltime, and what was used and is not metered yet."""

    @property
    def left(self) -> int:
        """What other jobs may use; never below 0."""
        return max(0, self.budget - self.used - self.promised)


def standings(
    budgets: Iterable[Budget],
    used_gpu_ms: Mapping[tuple[str, str], int],
    claims: Iterable[Claim],
    factors: Mapping[str, str],
    now_ms: int,
) -> dict[str, Standing]:
    """Return how the budgets of the present period stand, by account.

    `used_gpu_ms` is what was metered in the period by account and site, `factors` the sites' reference factors; a site
    whose factor is unknown counts with 1.
    """
    period = period_of(now_ms)
    span = bounds(period)
    running = list(claims)
    found = {}
    for budget in sorted(budgets, key=lambda item: item.account):
        if budget.period != period:
            continue
        used = sum(
            (
                _factor(factors, site) * gpu_ms
                for (account, site), gpu_ms in used_gpu_ms.items()
                if _in(account, budget)
            ),
            Fraction(0),
        )
        promised = sum(
            (_factor(factors, claim.site) * _gpu_ms(claim, span) for claim in running if _in(claim.account, budget)),
            Fraction(0),
        )
        found[budget.account] = Standing(
            account=budget.account,
            period=period,
            budget=budget.reference_gpu_ms,
            used=ceil(used),
            promised=ceil(promised),
        )
    return found


def cost(gpus: int, sites: Iterable[str], walltime_s: int, factors: Mapping[str, str], now_ms: int) -> int:
    """Return what a job that starts now at `sites` may use of the present period: reference GPU-milliseconds."""
    span = bounds(period_of(now_ms))
    end_ms = now_ms + walltime_s * 1000
    each = (Claim(account="", site=site, gpus=gpus, start_ms=now_ms, end_ms=end_ms) for site in sites)
    return ceil(sum((_factor(factors, claim.site) * _gpu_ms(claim, span) for claim in each), Fraction(0)))


def _in(account: str, budget: Budget) -> bool:
    return account == budget.account or account.startswith(budget.account + "/")


def _factor(factors: Mapping[str, str], site: str) -> Fraction:
    return Fraction(factors.get(site, "1"))


def _gpu_ms(claim: Claim, span: tuple[int, int]) -> int:
    return claim.gpus * max(0, min(claim.end_ms, span[1]) - max(claim.start_ms, span[0]))
