"""Who runs where and when: pure decisions on a snapshot.

- `schedule(snapshot: Snapshot) -> Plan`: one cycle.
- `apply(snapshot: Snapshot, plan: Plan) -> Snapshot`: the snapshot after the plan; placed jobs hold capacity and quota.
- `explain(snapshot: Snapshot, job: str) -> Funnel`: why a job does not start, over all sites and rules.
- `never_fits(snapshot: Snapshot, job: PendingJob) -> Reason | None`: why it could never start, whatever ends.
- `violations(snapshot: Snapshot, plan: Plan) -> tuple[str, ...]`: an independent check of a plan.
- `observe(run_times, account, walltime_s, ran_s) -> RunTimes`, `expected_s(run_times, account, walltime_s, done_s) -> int`:
  what jobs that ended say about those to come.

No I/O, no clock, no randomness. `docs/scheduling.md` states the rules.
"""

from __future__ import annotations

from consortium.scheduler.check import violations
from consortium.scheduler.cycle import apply, never_fits, order_of_service, schedule
from consortium.scheduler.estimate import Accuracy, Estimate, RunTimes, accuracy, estimate, expected_s, observe
from consortium.scheduler.explain import explain
from consortium.scheduler.types import (
    Drop,
    Funnel,
    FunnelStep,
    HeldLeg,
    LegPlacement,
    PendingJob,
    Placement,
    Plan,
    Reservation,
    SiteView,
    Snapshot,
    StartRange,
)

__all__ = [
    "Accuracy",
    "Drop",
    "Estimate",
    "Funnel",
    "FunnelStep",
    "HeldLeg",
    "LegPlacement",
    "PendingJob",
    "Placement",
    "Plan",
    "Reservation",
    "RunTimes",
    "SiteView",
    "Snapshot",
    "StartRange",
    "accuracy",
    "apply",
    "estimate",
    "expected_s",
    "explain",
    "never_fits",
    "observe",
    "order_of_service",
    "schedule",
    "violations",
]
