"""How long one scheduling cycle and one `explain` take: `python -m tests.benchmarks.scheduler [--json] [--pending N]`.

A synthetic federation of 10 partners and 40 sites with 2,000 nodes of 8 GPUs; jobs of 1 to 256 GPUs with walltimes from
10 minutes to 3 days, some federated, some bound to their data, from 60 accounts. The reference is the same cycle with
one tenth of the pending jobs: a scheduler whose cost is linear in the queue takes at most ten times as long.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace

from consortium.domain.job import Priority
from consortium.domain.partner import SiteState
from consortium.domain.quota import Account
from consortium.scheduler import PendingJob, SiteView, Snapshot, apply, explain, schedule, violations
from tests.builders import NOW_MS, account, new_id, site

PARTNERS = ("br", "de", "es", "fr", "in", "it", "ke", "pl", "pt", "uy")
FLAVORS = ("h100-sxm", "a100-80g", "a100-40g", "mi300x")
NODES = 50
TARGET_S = 1.0


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


def full(pending: int) -> Snapshot:
    """The federation after a first cycle and the ends of the shortest jobs: a busy one with a queue."""
    start = federation(pending)
    busy = apply(start, schedule(start))
    now_ms = NOW_MS + 600_000
    return replace(busy, now_ms=now_ms, held=tuple(leg for leg in busy.held if leg.ends_ms > now_ms))


def measure(pending: int) -> list[dict[str, object]]:
    """The rows of the table."""
    rows: list[dict[str, object]] = []
    small_s, _ = _timed(full(pending // 10))
    busy = full(pending)
    cycle_s, placed = _timed(busy)
    first_s, started = _timed(federation(pending))
    found = len(violations(busy, schedule(busy)))
    last = max(busy.pending, key=lambda item: (item.priority.rank, item.created_ms, item.id))
    begun = time.perf_counter()
    explain(busy, last.id)
    explain_s = time.perf_counter() - begun
    queue, linear = len(busy.pending), 10 * small_s
    rows.append(_row(f"cycle, {queue} pending, {len(busy.held)} held, {placed} start", cycle_s, linear, TARGET_S))
    rows.append(_row(f"first cycle, {pending} pending, {started} start", first_s, linear, 10 * TARGET_S))
    rows.append(_row("explain the last in line", explain_s, cycle_s, 2 * TARGET_S))
    rows.append({
        "what": "violations found by the independent check", "value": found, "unit": "count", "reference": 0,
        "target": 0, "met": found == 0,
    })  # fmt: skip
    return rows


def _timed(snapshot: Snapshot) -> tuple[float, int]:
    begun = time.perf_counter()
    plan = schedule(snapshot)
    return time.perf_counter() - begun, len(plan.placements)


def _row(what: str, value: float, reference: float, target: float) -> dict[str, object]:
    return {
        "what": what, "value": round(value, 3), "unit": "s", "reference": round(reference, 3), "target": target,
        "met": value <= target,
    }  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pending", type=int, default=20_000)
    choice = parser.parse_args()
    rows = measure(choice.pending)
    if choice.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        mark = "met" if row["met"] else "MISSED"
        print(f"{row['what']:60} {row['value']:>8} {row['unit']:6} (reference {row['reference']}, "
              f"target {row['target']}: {mark})")  # fmt: skip


if __name__ == "__main__":
    main()
