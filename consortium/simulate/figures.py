"""What a replay is judged by. `docs/simulate.md` states every formula."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from consortium.config import Scenario
from consortium.domain import ids
from consortium.domain.units import MS_PER_HOUR
from consortium.simulate import world
from consortium.simulate.events import Event, Kind
from consortium.simulate.workload import Job


@dataclass(slots=True)
class Totals:
    """What the engine counts while it runs. Times times GPUs are GPU-milliseconds."""

    cycles: int = 0
    starts: int = 0
    evictions: int = 0
    interruptions: int = 0
    """Jobs stopped because their site was lost or withdrawn."""
    evicted_gpu_ms: int = 0
    lost_gpu_ms: int = 0
    interrupted_lost_gpu_ms: int = 0
    waits_ms: dict[str, int] = field(default_factory=dict)
    """Of finished jobs."""
    infeasible: dict[str, str] = field(default_factory=dict)
    """Jobs that no site they may use, or no quota, could ever hold, and why."""


@dataclass(frozen=True, slots=True)
class Moment:
    """For the plot: what every partner holds, borrows and lends from `t_ms` on, and the GPUs that jobs wait for."""

    t_ms: int
    held: tuple[int, ...]
    borrowed: tuple[int, ...]
    lent: tuple[float, ...]
    queued: int


class Meter:
    """Integrates who holds whose GPUs, event by event. `moments` are kept only where `watch` is set.

    Of a flavor, a partner with its projects borrows what it holds above its nominal; what all borrow is lent by those
    who hold less than theirs, in proportion to what they leave unused.
    """

    def __init__(self, scenario: Scenario, *, until_ms: int, from_ms: int, watch: bool = False) -> None:
        sites = world.sites(scenario)
        self.partners = sorted({site.partner for site in sites} | {ids.partner_of(name) for name in scenario.quotas})
        self.moments: list[Moment] = []
        self.capacity = sum(site.gpus for site in sites)
        count = len(self.partners)
        self.delivered, self.consumed, self.borrowed = [0] * count, [0] * count, [0] * count
        self.lent = [0.0] * count
        self.busy_gpu_ms = 0
        """GPU-milliseconds held between `from_ms` and `until_ms`."""
        self._span = (from_ms, until_ms)
        self._watch = watch
        self._at = {name: at for at, name in enumerate(self.partners)}
        self._flavor = {site.id: site.flavor.id for site in sites}
        flavors = sorted({*self._flavor.values()})
        self._nominal = {flavor: [0] * count for flavor in flavors}
        for account in world.accounts(scenario):
            for quota in account.quotas:
                if quota.flavor in self._nominal:
                    self._nominal[quota.flavor][self._at[account.id[:2]]] += quota.nominal
        self._held = {flavor: [0] * count for flavor in flavors}
        self._rates: dict[str, Rates] = dict.fromkeys(flavors, ((), ()))
        self._stale: set[str] = set()
        self._since_ms = 0
        self._queued = 0
        self._began: dict[tuple[str, str], int] = {}

    def see(self, event: Event) -> None:
        """Count one event."""
        t_ms, kind, job, site, gpus, _ = event
        if t_ms != self._since_ms:
            self._integrate(t_ms)
        if kind is Kind.SUBMIT:
            self._queued += job.gpus_in_all
            return
        flavor = self._flavor[site]
        partner = self._at[job.partner]
        if kind is Kind.START:
            self._queued -= gpus
            self._began[job.id, site] = t_ms
            self._held[flavor][partner] += gpus
        else:
            self._queued += gpus if kind is Kind.PREEMPT else 0
            begun_ms = self._began.pop((job.id, site))
            self.consumed[partner] += gpus * (t_ms - begun_ms)
            self.delivered[self._at[site[:2]]] += gpus * (t_ms - begun_ms)
            self.busy_gpu_ms += gpus * max(0, min(t_ms, self._span[1]) - max(begun_ms, self._span[0]))
            self._held[flavor][partner] -= gpus
        self._stale.add(flavor)

    def close(self, t_ms: int) -> None:
        """Count until the end."""
        self._integrate(t_ms)
        self._integrate(t_ms)

    def _integrate(self, t_ms: int) -> None:
        """Bring the integrals to `t_ms`, at what has been held since the last change."""
        for flavor in sorted(self._stale):
            self._rates[flavor] = _rates(self._held[flavor], self._nominal[flavor])
        self._stale.clear()
        passed_ms = t_ms - self._since_ms
        for borrowed, lent in self._rates.values():
            for at, gpus in borrowed:
                self.borrowed[at] += gpus * passed_ms
            for at, share in lent:
                self.lent[at] += share * passed_ms
        if self._watch:
            self.moments.append(self._moment())
        self._since_ms = t_ms

    def _moment(self) -> Moment:
        held = tuple(sum(column) for column in zip(*self._held.values(), strict=True))
        borrowed, lent = [0] * len(held), [0.0] * len(held)
        for more, less in self._rates.values():
            for at, gpus in more:
                borrowed[at] += gpus
            for at, share in less:
                lent[at] += share
        return Moment(self._since_ms, held, tuple(borrowed), tuple(lent), self._queued)


Rates = tuple[Sequence[tuple[int, int]], Sequence[tuple[int, float]]]
"""Who borrows how many GPUs, and who lends how many; only those who do."""


def _rates(held: Sequence[int], nominal: Sequence[int]) -> Rates:
    """Who holds more than its nominal, and whose idle nominal that is, in proportion to what each leaves unused."""
    borrowed: list[tuple[int, int]] = []
    idle: list[tuple[int, int]] = []
    for at, gpus in enumerate(held):
        above = gpus - nominal[at]
        if above > 0:
            borrowed.append((at, above))
        elif above < 0:
            idle.append((at, -above))
    if not borrowed:
        return (), ()
    total = sum(share for _, share in idle)
    moved = min(sum(gpus for _, gpus in borrowed), total)
    return borrowed, [(at, moved * share / total) for at, share in idle]


def hours(values_ms: Iterable[float]) -> dict[str, float]:
    """Return mean, median, p95 and p99 of times in hours; zeros where there is none."""
    ordered = sorted(values_ms)
    named = {"median": 0.5, "p95": 0.95, "p99": 0.99}
    found = {"mean": math.fsum(ordered) / len(ordered) if ordered else 0.0}
    found |= {name: quantile(ordered, part) for name, part in named.items()}
    return {name: round(value / MS_PER_HOUR, 6) for name, value in found.items()}


def quantile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which `part` of the sorted values lies, interpolated linearly between neighbours."""
    if not ordered:
        return 0.0
    at = part * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def summary(jobs: Sequence[Job], totals: Totals, meter: Meter) -> dict[str, object]:
    """Return the figures of a replay, but for what depends on the machine that ran it."""
    waits = hours(totals.waits_ms.values())
    by_partner: dict[str, list[int]] = defaultdict(list)
    for job in jobs:
        if job.id in totals.waits_ms:
            by_partner[job.partner].append(totals.waits_ms[job.id])
    first_ms, last_ms = (jobs[0].submit_ms, jobs[-1].submit_ms) if jobs else (0, 0)
    span_gpu_ms = meter.capacity * (last_ms - first_ms)
    per_partner = {}
    for at, partner in enumerate(meter.partners):
        own = hours(by_partner[partner])
        per_partner[partner] = {
            "mean_wait_h": own["mean"],
            "p95_wait_h": own["p95"],
            "gpu_hours_delivered": _gpu_hours(meter.delivered[at]),
            "gpu_hours_consumed": _gpu_hours(meter.consumed[at]),
            "gpu_hours_lent": _gpu_hours(meter.lent[at]),
            "gpu_hours_borrowed": _gpu_hours(meter.borrowed[at]),
        }
    return {
        "jobs": len(jobs),
        "completed": len(totals.waits_ms),
        "infeasible": len(totals.infeasible),
        "mean_wait_h": waits["mean"],
        "median_wait_h": waits["median"],
        "p95_wait_h": waits["p95"],
        "p99_wait_h": waits["p99"],
        "utilisation": round(meter.busy_gpu_ms / span_gpu_ms, 6) if span_gpu_ms else 0.0,
        "preemptions": totals.evictions,
        "interruptions": totals.interruptions,
        "evicted_gpu_hours": _gpu_hours(totals.evicted_gpu_ms),
        "lost_gpu_hours": _gpu_hours(totals.lost_gpu_ms),
        "interrupted_lost_gpu_hours": _gpu_hours(totals.interrupted_lost_gpu_ms),
        "gpu_hours": _gpu_hours(sum(meter.consumed)),
        "cycles": totals.cycles,
        "decisions": totals.starts + totals.evictions,
        "per_partner": per_partner,
    }


def _gpu_hours(gpu_ms: float) -> float:
    return round(gpu_ms / MS_PER_HOUR, 4)
