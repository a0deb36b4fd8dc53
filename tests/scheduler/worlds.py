"""Small federations for scheduler tests, by hand, and a closed simulation on virtual time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from consortium.domain.decision import ReasonCode
from consortium.domain.job import Priority
from consortium.domain.partner import Site, SiteState
from consortium.domain.quota import Account
from consortium.scheduler import (
    Eviction,
    HeldLeg,
    History,
    PendingJob,
    Plan,
    Settings,
    SiteView,
    Snapshot,
    Window,
    apply,
    schedule,
)
from tests.builders import NOW_MS, account, new_id, site

H100, A100 = "h100-sxm", "a100-80g"
HOUR_MS = 3_600_000
ROOMY = (account("fr", {H100: 64, A100: 0}), account("de", {H100: 0, A100: 64}))
"""Nominal quotas that nobody reaches, so that every job is within its own."""
EVEN_WORK = 40_320
"""GPU-seconds: divisible by every number of GPUs from 1 to 10, and by 12, 14 and 16."""


def job(number: int, **changes: Any) -> PendingJob:
    """A pending job whose id and age follow from `number`: 1 is older than 2."""
    fields: dict[str, Any] = {
        "id": new_id("job", number),
        "account": "fr",
        "priority": Priority.NORMAL,
        "created_ms": NOW_MS - 1_000_000 + number,
        "gpus": 1,
        "gpus_per_worker": 1,
        "flavors": (),
        "walltime_s": 3600,
        "sites": (),
    }
    return PendingJob(**(fields | changes))


def in_turn(number: int, **changes: Any) -> PendingJob:
    """A pending job of as much expected work as every other of this kind, so that age decides: 1 before 2."""
    legs = changes.get("gpus", 1) * max(1, len(changes.get("sites", ())))
    return job(number, **({"expected_s": EVEN_WORK // legs} | changes))


def held(number: int, site_id: str, nodes: dict[str, int], flavor: str = H100, **changes: Any) -> HeldLeg:
    """A leg that started at NOW_MS; its account is the site's partner unless told."""
    holder = changes.pop("account", site_id[:2])
    fields: dict[str, Any] = {
        "leg": new_id("leg", number),
        "job": new_id("job", 10_000 + number),
        "account": holder,
        "partner": holder[:2],
        "site": site_id,
        "flavor": flavor,
        "nodes": nodes,
        "priority": Priority.NORMAL,
        "started_ms": NOW_MS,
        "walltime_s": 3600,
    }
    return HeldLeg(**(fields | changes))


def world(
    *pending: PendingJob,
    sites: tuple[Site, ...] | None = None,
    accounts: tuple[Account, ...] | None = None,
    held: tuple[HeldLeg, ...] = (),
    states: dict[str, SiteState] | None = None,
    cordoned: dict[str, tuple[str, ...]] | None = None,
    now_ms: int = NOW_MS,
    windows: tuple[Window, ...] = (),
    history: tuple[History, ...] = (),
    **settings: Any,
) -> Snapshot:
    """Two states: fr with 16 h100 on two nodes, de with 8 a100 on one; each owns its own and may borrow the other's."""
    sites = (site("fr-1", H100, (8, 8)), site("de-1", A100, (8,))) if sites is None else sites
    if accounts is None:
        accounts = (account("fr", {H100: 16, A100: 0}), account("de", {H100: 0, A100: 8}))
    views = tuple(
        SiteView(
            site=item,
            state=(states or {}).get(item.id, SiteState.ACTIVE),
            cordoned=(cordoned or {}).get(item.id, ()),
        )
        for item in sites
    )
    return Snapshot(
        now_ms=now_ms, sites=views, accounts=accounts, held=held, pending=pending,
        windows=windows, history=history, settings=Settings(**settings),
    )  # fmt: skip


def started(plan: Plan) -> dict[str, list[str]]:
    """Job id to the sites it starts at."""
    return {placement.job: [leg.site for leg in placement.legs] for placement in plan.placements}


def code(plan: Plan, which: PendingJob) -> ReasonCode:
    return plan.reasons[which.id].code


class Closed(NamedTuple):
    """What a closed run came to."""

    starts: dict[str, int]
    """Job id to its first start."""
    rest: Snapshot
    evictions: list[Eviction]


def run_closed(
    snapshot: Snapshot,
    *,
    watch: Callable[[Snapshot, Plan], None] = lambda before, plan: None,
    run_s: Callable[[HeldLeg], int] = lambda leg: leg.walltime_s,
    until_ms: int = 1 << 60,
    cycles: int = 1000,
) -> Closed:
    """Schedule, apply, advance to the next instant at which something may change, until nothing does.

    Evicted legs stop after `stop_s`; then the job waits again, with the run time its last checkpoint keeps.
    """
    starts: dict[str, int] = {}
    evicted: list[Eviction] = []
    specs = {item.id: item for item in snapshot.pending}
    now = snapshot
    for _ in range(cycles):
        plan = schedule(now)
        watch(now, plan)
        for placement in plan.placements:
            starts.setdefault(placement.job, now.now_ms)
        evicted += plan.evictions
        now = apply(now, plan)
        ends = {leg.leg: max(_end_ms(leg, run_s), now.now_ms + 1) for leg in now.held}
        next_ms = min((at for at in _instants(now, ends) if at > now.now_ms), default=None)
        if next_ms is None or next_ms > until_ms:
            return Closed(starts, now, evicted)
        left = tuple(leg for leg in now.held if ends[leg.leg] > next_ms)
        again = {
            leg.job: again_waiting(specs[leg.job], leg, next_ms)
            for leg in now.held
            if leg.stopping_for and ends[leg.leg] <= next_ms and leg.job in specs
        }
        for name in {leg.job for leg in left} & set(again):  # another leg of the gang has not stopped yet
            del again[name]
        specs |= again
        now = replace(now, now_ms=next_ms, held=left, pending=now.pending + tuple(again.values()))
    raise AssertionError(f"still not at rest after {cycles} cycles: {len(now.pending)} jobs wait")


def _end_ms(leg: HeldLeg, run_s: Callable[[HeldLeg], int]) -> int:
    return leg.ends_ms if leg.stopping_for else leg.started_ms + run_s(leg) * 1000


def _instants(now: Snapshot, ends: dict[str, int]) -> Iterator[int]:
    """When something may change: an end, a backoff, a window, a leg that ran for long enough, a grace that is over."""
    rules = now.settings
    yield from ends.values()
    yield from (item.not_before_ms for item in now.pending)
    yield from (window.end_ms for window in now.windows if now.pending)
    if now.pending and now.held:
        yield from (leg.started_ms + rules.min_run_s * 1000 for leg in now.held)
        yield from (item.created_ms + (rules.min_run_s + rules.stop_s) * 1000 for item in now.pending)


def again_waiting(spec: PendingJob, leg: HeldLeg, now_ms: int) -> PendingJob:
    """The evicted job as it waits again: what its last checkpoint keeps need not be run again."""
    kept_ms = leg.checkpoint_every_s and (now_ms - leg.started_ms) // (leg.checkpoint_every_s * 1000)
    done_ms = spec.done_ms + kept_ms * leg.checkpoint_every_s * 1000
    left_s = max(1, spec.walltime_s - kept_ms * leg.checkpoint_every_s)
    return replace(spec, done_ms=done_ms, walltime_s=left_s, nominated=False)
