"""A large synthetic federation: 10 partners, 40 sites with 2,000 nodes of 8 GPUs, 60 accounts, and its queue.

Jobs of 1 to 256 GPUs with walltimes from 10 minutes to 3 days, some federated, some bound to their data.
"""

from __future__ import annotations

import random

from consortium.domain.job import Priority
from consortium.domain.partner import SiteState
from consortium.domain.quota import Account
from consortium.scheduler import PendingJob, Scheduler, SiteView, Snapshot
from tests.builders import NOW_MS, account, new_id, site

PARTNERS = ("br", "de", "es", "fr", "in", "it", "ke", "pl", "pt", "uy")
FLAVORS = ("h100-sxm", "a100-80g", "a100-40g", "mi300x")
NODES = 50


def federation(pending: int, seed: int = 0) -> Snapshot:
    """The federation, empty, with `pending` jobs."""
    draw = random.Random(seed)
    sites = tuple(
        SiteView(site=site(f"{partner}-{n + 1}", FLAVORS[n], (8,) * NODES), state=SiteState.ACTIVE)
        for partner in PARTNERS
        for n in range(4)
    )
    accounts: list[Account] = []
    for partner in PARTNERS:
        accounts.append(account(partner, {flavor: NODES * 8 - 100 for flavor in FLAVORS}))
        accounts += [account(f"{partner}/p{n}", {flavor: (20, 200, 10) for flavor in FLAVORS}) for n in range(5)]
    names = [item.id for item in accounts]
    homes = [view.site.id for view in sites]
    jobs = tuple(_job(number, draw, names, homes) for number in range(pending))
    return Snapshot(now_ms=NOW_MS, sites=sites, accounts=tuple(accounts), held=(), pending=jobs)


def _job(number: int, draw: random.Random, names: list[str], homes: list[str]) -> PendingJob:
    kind = draw.random()
    where: tuple[str, ...] = ()
    if kind < 0.05:
        where = tuple(sorted(draw.sample(homes, 3)))
    elif kind < 0.3:
        where = (draw.choice(homes),)
    return PendingJob(
        id=new_id("job", number),
        account=draw.choice(names),
        priority=draw.choice((Priority.HIGH, *(Priority.NORMAL,) * 6, Priority.LOW)),
        created_ms=NOW_MS - draw.randrange(1_000_000),
        gpus=draw.choice((1, 1, 1, 2, 4, 8, 8, 16, 32, 64, 256)),
        gpus_per_worker=1,
        flavors=draw.choice(((), (), FLAVORS[:2], FLAVORS[:1])),
        walltime_s=draw.choice((600, 1800, 3600, 4 * 3600, 24 * 3600, 72 * 3600)),
        sites=where,
    )


def busy(pending: int, hours: int = 0) -> Snapshot:
    """The federation after a first cycle and the ends of the shortest jobs, then a cycle every ten minutes."""
    scheduler = Scheduler(federation(pending))
    scheduler.cycle(reasons=False)
    _advance(scheduler)
    for _ in range(6 * hours):
        scheduler.cycle(reasons=False)
        _advance(scheduler)
    return scheduler.snapshot()


def _advance(scheduler: Scheduler) -> None:
    scheduler.advance(scheduler.now_ms + 600_000)
    for leg in scheduler.board.legs():
        if leg.ends_ms <= scheduler.now_ms:
            scheduler.end(leg.leg)
