"""How long jobs really run: a walltime is a limit, and people ask for more than they use.

What is kept per account is how often a job ran for which share of its walltime, in bins half an octave wide (a factor
of 1.41), from the whole walltime down to a thousandth. What a job is still expected to run is the mean of that share
over the jobs that ran longer than it has run so far, less what it has run, times its walltime. An account with fewer
than `ENOUGH` such jobs is judged by its partner's, those by everybody's; where nobody has enough it is half of what the
walltime leaves. Per account on purpose: users repeat themselves, and their walltimes err by a factor that is their own
(Tsafrir, Etsion, Feitelson: "Backfilling using system-generated predictions", IEEE TPDS 18(6), 2007).

The estimate is checked against itself: before a job's end is counted, what it took is compared with what would have
been expected when it began. `accuracy` is that comparison.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import floor

from consortium.domain import ids
from consortium.errors import ConfigError

ENOUGH = 20
"""Jobs that must have been seen before an account (or partner, or everybody) is judged by them."""
_FORGET = 4096
"""From that many jobs on all counts of an account are halved, so that it is judged by what it does lately."""
_EVERYBODY = ""

_HALF_OCTAVE = 0.7071067811865476
_EDGES = tuple(2.0 ** -(step // 2) * (_HALF_OCTAVE if step % 2 else 1.0) for step in range(20, -1, -1))
"""Upper ends of the bins of ran/walltime below the whole: 2^-10 ... 1. The bin after them is the walltime itself."""
_BINS = len(_EDGES) + 1
_ERROR_EDGES = tuple(sorted({*_EDGES, *(1.0 / edge for edge in _EDGES)}))
"""Upper ends of the bins of actual/expected: 2^-10 ... 2^10."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimes:
    """What accounts' jobs were seen to run for. A value: `observe` gives the next one.

    Keys are accounts, their partners, and `""` for everybody.
    """

    shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Jobs per bin of ran/walltime."""
    errors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Jobs per bin of actual/expected."""

    @classmethod
    def restored(cls, shares: Mapping[str, tuple[int, ...]], errors: Mapping[str, tuple[int, ...]]) -> RunTimes:
        """Return what was kept somewhere. Raises ConfigError where it is not counts as this version keeps them."""
        for counts, bins in ((shares, _BINS), (errors, len(_ERROR_EDGES) + 1)):
            for account in sorted(counts):
                if len(counts[account]) != bins or min(counts[account]) < 0:
                    raise ConfigError(
                        f"the run times of account {account!r} are not {bins} counts",
                        where="run times",
                        fix="forget them",
                    )
        return cls(shares=shares, errors=errors)

    def seen(self, account: str) -> int:
        """How many jobs of the account are counted."""
        return sum(self.shares.get(account, ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """How long a job is still expected to run, in seconds, and from whose jobs that is known."""

    expected_s: int
    low_s: int
    """One in ten comparable jobs ended sooner."""
    high_s: int
    """One in ten comparable jobs ran longer."""
    source: str
    """The account or partner whose jobs it rests on, `everybody`, or `walltime` where too few were seen."""
    jobs: int
    """How many jobs it rests on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Actual run time divided by what was expected: quartiles over an account's jobs. 1 would be exact."""

    jobs: int
    low: float
    median: float
    high: float


def observe(run_times: RunTimes, account: str, walltime_s: int, ran_s: int) -> RunTimes:
    """A job of `account` ended for good after `ran_s` (with what training checkpoints of earlier attempts kept).

    Jobs that were evicted or lost with their site say nothing about themselves: do not count them here.
    """
    ran = max(0, min(ran_s, walltime_s))
    share = _BINS - 1 if ran >= walltime_s else bisect_left(_EDGES, ran / walltime_s)
    error = bisect_left(_ERROR_EDGES, max(1, ran) / estimate(run_times, account, walltime_s).expected_s)
    shares, errors = dict(run_times.shares), dict(run_times.errors)
    for key in _whose(account):
        shares[key] = _count(shares.get(key), share, _BINS)
        errors[key] = _count(errors.get(key), error, len(_ERROR_EDGES) + 1)
    return replace(run_times, shares=shares, errors=errors)


def expected_s(run_times: RunTimes, account: str, walltime_s: int, done_s: int = 0) -> int:
    """Seconds a job of `account` is still expected to run, given that it ran `done_s` without ending; at least 1."""
    return estimate(run_times, account, walltime_s, done_s).expected_s


def estimate(run_times: RunTimes, account: str, walltime_s: int, done_s: int = 0) -> Estimate:
    """The expected remaining run time with the range that holds eight in ten comparable jobs."""
    left_s = max(1, walltime_s - done_s)
    done = min(1.0, max(0, done_s) / walltime_s)
    for key in _whose(account):
        slices = _longer(run_times.shares.get(key), done)
        jobs = sum(weight for weight, _, _ in slices)
        if jobs < ENOUGH:
            continue
        mean = sum(weight * (low + high) / 2 for weight, low, high in slices) / jobs

        def seconds(share: float) -> int:
            return min(left_s, max(1, round((share - done) * walltime_s)))

        return Estimate(
            expected_s=seconds(mean),
            low_s=seconds(_quantile(slices, 0.1)),
            high_s=seconds(_quantile(slices, 0.9)),
            source=key or "everybody",
            jobs=floor(jobs),
        )
    return Estimate(expected_s=max(1, left_s // 2), low_s=1, high_s=left_s, source="walltime", jobs=0)


def accuracy(run_times: RunTimes, account: str) -> Accuracy | None:
    """How the estimates of an account's jobs (a partner's, with `""` everybody's) came out; None before any ended."""
    counts = run_times.errors.get(account)
    if not counts or not sum(counts):
        return None
    edges = (_ERROR_EDGES[0] / 2, *_ERROR_EDGES, _ERROR_EDGES[-1] * 2)
    slices = [(float(count), edges[at], edges[at + 1]) for at, count in enumerate(counts) if count]
    low, median, high = (_quantile(slices, part) for part in (0.25, 0.5, 0.75))
    return Accuracy(jobs=sum(counts), low=low, median=median, high=high)


def _whose(account: str) -> tuple[str, ...]:
    partner = ids.partner_of(account)
    return (account, _EVERYBODY) if partner == account else (account, partner, _EVERYBODY)


def _count(counts: tuple[int, ...] | None, at: int, bins: int) -> tuple[int, ...]:
    before = counts or (0,) * bins
    if sum(before) >= _FORGET:
        before = tuple(count // 2 for count in before)
    return (*before[:at], before[at] + 1, *before[at + 1 :])


def _longer(counts: tuple[int, ...] | None, done: float) -> list[tuple[float, float, float]]:
    """The jobs that ran for more than `done` of their walltime: (how many, from, to), spread evenly inside each bin."""
    slices: list[tuple[float, float, float]] = []
    for at in range(bisect_right(_EDGES, done), len(_EDGES)) if counts else ():
        count, low, high = counts[at] if counts else 0, _EDGES[at - 1] if at else 0.0, _EDGES[at]
        if count:
            start = max(low, done)
            slices.append((count * (high - start) / (high - low), start, high))
    if counts and counts[-1]:
        slices.append((float(counts[-1]), 1.0, 1.0))
    return slices


def _quantile(slices: list[tuple[float, float, float]], part: float) -> float:
    """The value below which `part` of the weight lies."""
    wanted = part * sum(weight for weight, _, _ in slices)
    for weight, low, high in slices:
        if wanted <= weight:
            return low + (high - low) * wanted / weight
        wanted -= weight
    return slices[-1][2]
