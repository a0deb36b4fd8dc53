"""Small federations for scheduler tests, by hand and by Hypothesis, and a closed simulation on virtual time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Priority
from consortium.domain.partner import Cotenancy, Site, SiteState
from consortium.domain.quota import Account
from consortium.scheduler import (
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


def run_closed(
    snapshot: Snapshot,
    *,
    watch: Callable[[Snapshot, Plan], None] = lambda before, plan: None,
    run_s: Callable[[HeldLeg], int] = lambda leg: leg.walltime_s,
    cycles: int = 500,
) -> tuple[dict[str, int], Snapshot]:
    """Schedule, apply, advance to the next end, until nothing changes; job id to start, and what is left."""
    starts: dict[str, int] = {}
    now = snapshot
    for _ in range(cycles):
        plan = schedule(now)
        watch(now, plan)
        starts |= {placement.job: now.now_ms for placement in plan.placements}
        now = apply(now, plan)
        ends = {leg.leg: max(leg.started_ms + run_s(leg) * 1000, now.now_ms + 1) for leg in now.held}
        events = [*ends.values(), *(item.not_before_ms for item in now.pending if item.not_before_ms > now.now_ms)]
        if not events:
            return starts, now
        next_ms = min(events)
        now = replace(now, now_ms=next_ms, held=tuple(leg for leg in now.held if ends[leg.leg] > next_ms))
    raise AssertionError(f"still not at rest after {cycles} cycles: {len(now.pending)} jobs wait")


_LIMIT = st.one_of(st.none(), st.integers(0, 12))


@st.composite
def accounts_of(draw: st.DrawFn, partners: tuple[str, ...]) -> tuple[Account, ...]:
    names = [*partners, *(f"{partner}/lab" for partner in partners if draw(st.booleans()))]
    made = []
    for name in names:
        quotas: dict[str, int | tuple[int, int | None, int | None]] = {}
        for flavor in (H100, A100):
            if draw(st.integers(0, 9)):
                nominal = draw(st.integers(0, 12))
                lending = draw(st.one_of(st.none(), st.integers(0, nominal)))
                quotas[flavor] = (nominal, draw(_LIMIT), lending)
        made.append(account(name, quotas))
    return tuple(made)


@st.composite
def pending_jobs(
    draw: st.DrawFn, accounts: tuple[str, ...], sites: tuple[str, ...], most: int = 14
) -> list[PendingJob]:
    no = {name: Reason(code=ReasonCode.POLICY, message=f"{name}: not for this purpose", site=name) for name in sites}
    jobs = []
    for number in range(draw(st.integers(1, most))):
        worker = draw(st.sampled_from((1, 1, 1, 2, 4)))
        named = draw(st.sampled_from((0, 0, 0, 1, 2, 3)))
        where = tuple(sorted(draw(st.permutations(sites))[: min(named, len(sites))]))
        barred = draw(st.sampled_from((0, 0, 0, 1)))
        jobs.append(
            job(
                number,
                account=draw(st.sampled_from(accounts)),
                priority=draw(st.sampled_from(tuple(Priority))),
                gpus=worker * draw(st.sampled_from((1, 1, 2, 3, 4, 8))),
                gpus_per_worker=worker,
                flavors=draw(st.sampled_from(((), (), (H100,), (A100,), (A100, H100)))),
                walltime_s=draw(st.sampled_from((60, 300, 900, 3600))),
                sites=where,
                denied={name: no[name] for name in draw(st.permutations(sites))[:barred]},
            )
        )
    return jobs


@st.composite
def snapshots(draw: st.DrawFn, *, all_active: bool = False) -> Snapshot:
    """A federation of up to three states, up to four sites, jobs waiting, some legs held (by an earlier cycle)."""
    partners = ("de", "fr", "uy")[: draw(st.integers(1, 3))]
    sites = []
    for partner in partners:
        for number in range(1, draw(st.sampled_from((1, 1, 2))) + 1):
            nodes = tuple(draw(st.lists(st.sampled_from((1, 2, 4, 8)), min_size=1, max_size=3)))
            flavor, rule = draw(st.sampled_from((H100, A100))), draw(st.sampled_from(tuple(Cotenancy)))
            sites.append(site(f"{partner}-{number}", flavor, nodes, rule))
    states = tuple(SiteState) if not all_active else (SiteState.ACTIVE,)
    picked = [SiteState.ACTIVE if draw(st.integers(0, 3)) else draw(st.sampled_from(states)) for _ in sites]
    accounts = draw(accounts_of(partners))
    names, homes = tuple(item.id for item in accounts), tuple(item.id for item in sites)
    jobs = draw(pending_jobs(names, homes))
    early = draw(st.integers(0, len(jobs)))
    first = Snapshot(
        now_ms=NOW_MS - 200_000,
        sites=tuple(SiteView(site=item, state=SiteState.ACTIVE) for item in sites),
        accounts=accounts,
        held=(),
        pending=tuple(jobs[:early]),
    )
    after = apply(first, schedule(first))
    return replace(
        after,
        now_ms=NOW_MS,
        sites=tuple(SiteView(site=item, state=state) for item, state in zip(sites, picked, strict=True)),
        held=tuple(leg for leg in after.held if leg.ends_ms > NOW_MS),
        pending=after.pending + tuple(jobs[early:]),
    )
