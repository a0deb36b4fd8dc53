"""Who runs where and when: pure decisions on a snapshot.

- `schedule(snapshot: Snapshot) -> Plan`: one cycle.
- `Scheduler(snapshot)`: the same with a memory, for those who call it often; `cycle()` decides and books.
- `apply(snapshot: Snapshot, plan: Plan) -> Snapshot`: the snapshot after the plan; placed jobs hold capacity and quota.
- `explain(snapshot: Snapshot, job: str) -> Funnel`: why a job does not start, over all sites and rules.
- `forecast(snapshot: Snapshot, run="walltime" | "expected") -> dict[str, int]`: when each waiting job starts.
- `fair_advance(history, accounts, held, views, settings, ms) -> tuple[History, ...]`: the fair-share history later on.
- `never_fits(snapshot: Snapshot, job: PendingJob) -> Reason | None`: why it could never start, whatever ends.
- `violations(snapshot: Snapshot, plan: Plan) -> tuple[str, ...]`: an independent check of a plan.
- `observe(run_times, account, walltime_s, ran_s) -> RunTimes` and `expected_s(run_times, account, walltime_s, done_s)`:
  what jobs that ended say about those to come.

No I/O, no clock, no randomness. `docs/scheduling.md` states the rules.
"""

from __future__ import annotations

from consortium.scheduler.board import leg_name
from consortium.scheduler.check import violations
from consortium.scheduler.cycle import Scheduler, apply, never_fits, schedule
from consortium.scheduler.estimate import Accuracy, Estimate, RunTimes, accuracy, estimate, expected_s, observe
from consortium.scheduler.explain import explain, start_range
from consortium.scheduler.fair import Factors, Holding, Pool, holdings
from consortium.scheduler.fair import advance as fair_advance
from consortium.scheduler.forecast import forecast
from consortium.scheduler.queue import order_key
from consortium.scheduler.types import (
    Drop,
    Eviction,
    EvictionRule,
    Funnel,
    FunnelStep,
    HeldLeg,
    History,
    LegPlacement,
    PendingJob,
    Placement,
    Plan,
    Reservation,
    Settings,
    SiteView,
    Snapshot,
    StartRange,
    Window,
    WindowKind,
)

__all__ = [
    "Accuracy",
    "Drop",
    "Estimate",
    "Eviction",
    "EvictionRule",
    "Factors",
    "Funnel",
    "FunnelStep",
    "HeldLeg",
    "History",
    "Holding",
    "LegPlacement",
    "PendingJob",
    "Placement",
    "Plan",
    "Pool",
    "Reservation",
    "RunTimes",
    "Scheduler",
    "Settings",
    "SiteView",
    "Snapshot",
    "StartRange",
    "Window",
    "WindowKind",
    "accuracy",
    "apply",
    "estimate",
    "expected_s",
    "explain",
    "fair_advance",
    "forecast",
    "holdings",
    "leg_name",
    "never_fits",
    "observe",
    "order_key",
    "schedule",
    "start_range",
    "violations",
]
