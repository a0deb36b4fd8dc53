"""Who holds whose GPUs, and every factor of the fair share: per account and flavor. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from consortium.scheduler import Accuracy, Estimate, Factors, History, Pool, RunTimes, Snapshot, accuracy, estimate
from consortium.scheduler import holdings as who_holds
from consortium.scheduler.quota import QuotaTree

_WHOLE_S = 1_000_000
"""A walltime of which a second is a millionth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """GPUs of one flavor in the hands of an account and the projects below it, and what its fair share is made of.

    All but the first six fields are the account's, the same in each of its rows. Shares are of the pool's GPUs.
    """

    account: str
    flavor: str
    nominal: int
    held: int
    borrowed: int
    """Held above nominal."""
    lent: int
    """Of its unused nominal, what others hold above theirs; where several could lend, in proportion."""
    weight: int
    dominant_share: float
    """The largest share it holds above nominal of any flavor."""
    dominant_flavor: str
    borrowed_reference_gpu_ms: int
    """Reference GPU-milliseconds it held above nominal so far, decayed by half-life."""
    lent_reference_gpu_ms: int
    """Reference GPU-milliseconds of its own that others held, decayed by half-life."""
    borrowed_share: float
    """`borrowed_reference_gpu_ms` over what the whole pool counts for with the same decay."""
    lent_share: float
    credit: float
    """What `lent_share` is worth against what it borrows."""
    share: float
    """max(0, dominant_share + borrowed_share - credit) / weight."""
    level: int
    """Place in the order of service of a job that borrows, 1 first; jobs within nominal come before (0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTime:
    """How much of their walltime an account's jobs use, as estimated from those that ended, and how right that was."""

    account: str
    jobs: int
    """How many jobs of its own, with its projects, were seen to end."""
    expected_percent: float
    low_percent: float
    """One in ten uses less."""
    high_percent: float
    source: str
    """Whose jobs the estimate rests on, or `walltime` where too few are known."""
    error: Accuracy | None
    """Actual over expected run time; None before any job ended."""


def shares(snapshot: Snapshot) -> tuple[Share, ...]:
    """Return the shares of every account but the root, by account and flavor."""
    tree = QuotaTree(snapshot.accounts)
    for leg in snapshot.held:
        tree.charge(leg.account, leg.flavor, leg.gpus)
    pool = Pool(snapshot.sites, snapshot.accounts, snapshot.history, snapshot.settings)
    past = {item.account: item for item in snapshot.history}
    known = who_holds(snapshot.accounts, snapshot.held, snapshot.sites)
    factors: dict[str, Factors] = {account: pool.factors(account, tree) for account, _ in known}
    found = []
    for (account, flavor), holding in sorted(known.items()):
        made, before = factors[account], past.get(account, History(account=account))
        found.append(
            Share(
                account=account,
                flavor=flavor,
                nominal=holding.nominal,
                held=holding.held,
                borrowed=holding.borrowed,
                lent=holding.lent,
                weight=made.weight,
                dominant_share=made.dominant,
                dominant_flavor=made.flavor,
                borrowed_reference_gpu_ms=before.borrowed,
                lent_reference_gpu_ms=before.lent,
                borrowed_share=made.borrowed,
                lent_share=made.lent,
                credit=made.credit,
                share=made.share,
                level=made.level,
            )
        )
    return tuple(found)


def run_times(snapshot: Snapshot, seen: RunTimes) -> tuple[RunTime, ...]:
    """Return the run-time estimates of every account but the root, by id."""
    return tuple(
        _run_time(account.id, seen, estimate(seen, account.id, _WHOLE_S))
        for account in sorted(snapshot.accounts, key=lambda item: item.id)
        if account.id
    )


def _run_time(account: str, seen: RunTimes, found: Estimate) -> RunTime:
    return RunTime(
        account=account,
        jobs=seen.seen(account),
        expected_percent=found.expected_s * 100 / _WHOLE_S,
        low_percent=found.low_s * 100 / _WHOLE_S,
        high_percent=found.high_s * 100 / _WHOLE_S,
        source=found.source,
        error=accuracy(seen, account),
    )
