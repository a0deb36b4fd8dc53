"""Who runs where and when: pure decisions on a snapshot.

- `schedule(snapshot: Snapshot) -> Plan`: one cycle.
- `apply(snapshot: Snapshot, plan: Plan) -> Snapshot`: the snapshot after the plan; placed jobs hold capacity and quota.
- `explain(snapshot: Snapshot, job: str) -> Funnel`: why a job does not start, over all sites and rules.
- `never_fits(snapshot: Snapshot, job: PendingJob) -> Reason | None`: why it could never start, whatever ends.
- `violations(snapshot: Snapshot, plan: Plan) -> tuple[str, ...]`: an independent check of a plan.

No I/O, no clock, no randomness. `docs/scheduling.md` states the rules.
"""

from __future__ import annotations

from consortium.scheduler.check import violations
from consortium.scheduler.cycle import apply, never_fits, order_of_service, schedule
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
    "Drop",
    "Funnel",
    "FunnelStep",
    "HeldLeg",
    "LegPlacement",
    "PendingJob",
    "Placement",
    "Plan",
    "Reservation",
    "SiteView",
    "Snapshot",
    "StartRange",
    "apply",
    "explain",
    "never_fits",
    "order_of_service",
    "schedule",
    "violations",
]
