"""The checker is what the properties rest on, so it must be able to fail: broken plans, and what it says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Priority
from consortium.domain.partner import SiteState
from consortium.scheduler import (
    Eviction,
    EvictionRule,
    HeldLeg,
    LegPlacement,
    PendingJob,
    Placement,
    Plan,
    Snapshot,
    Window,
    WindowKind,
    violations,
)
from tests.builders import NOW_MS, account, site
from tests.scheduler.worlds import A100, H100, HOUR_MS, held, job, world

NO = Reason(code=ReasonCode.POLICY, message="no", site="fr-1")
CLOSED = Window(
    id="win-1", kind=WindowKind.MAINTENANCE, site="fr-1", nodes=("n0",), start_ms=NOW_MS + 1, end_ms=NOW_MS + HOUR_MS
)


@pytest.mark.parametrize(
    ("rule", "which", "legs"),
    [
        ("reason", job(1), ()),
        ("gang", job(1, sites=("de-1", "fr-1")), (("fr-1", H100, {"n0": 1}),)),
        ("gang", job(1), (("fr-1", H100, {"n0": 2}),)),
        ("gang", job(1, gpus=2, gpus_per_worker=2), (("fr-1", H100, {"n0": 1, "n1": 1}),)),
        ("territory", job(1, sites=("de-1",)), (("fr-1", H100, {"n0": 1}),)),
        ("policy", job(1, denied={"fr-1": NO}), (("fr-1", H100, {"n0": 1}),)),
        ("policy", job(1, unfit={"fr-1": NO}), (("fr-1", H100, {"n0": 1}),)),
        ("flavor", job(1, flavors=(A100,)), (("fr-1", H100, {"n0": 1}),)),
        ("capacity", job(1, gpus=9), (("fr-1", H100, {"n0": 9}),)),
        ("cotenancy", job(1), (("fr-1", H100, {"n1": 1}),)),
        ("quota", job(1, gpus=9), (("de-1", A100, {"n0": 9}),)),
        ("quota", job(1, account="es"), (("fr-1", H100, {"n0": 1}),)),
        ("site_state", job(1), (("de-1", A100, {"n0": 1}),)),
        ("window", job(1), (("fr-1", H100, {"n0": 1}),)),
        ("cordon", job(1), (("fr-1", H100, {"n2": 1}),)),
        ("avoid", job(1, avoid=(("fr-1", "n3"),)), (("fr-1", H100, {"n3": 1}),)),
        ("line", job(1, not_before_ms=NOW_MS + 1), (("fr-1", H100, {"n3": 1}),)),
        ("line", job(1, waits_for=NO), (("fr-1", H100, {"n3": 1}),)),
    ],
)
def test_a_placement_against_a_rule_is_found(rule, which, legs):
    snapshot = world(
        which,
        sites=(site("fr-1", H100, (8, 8, 8, 8)), site("de-1", A100, (8,))),
        held=(held(1, "fr-1", {"n1": 1}, account="de"),),
        states={"de-1": SiteState.DRAINED},
        cordoned={"fr-1": ("n2",)},
        windows=(CLOSED,),
    )
    placed = Placement(job=which.id, legs=tuple(LegPlacement(site=s, flavor=f, nodes=n) for s, f, n in legs))
    plan = Plan(placements=(placed,) if legs else (), reasons={})
    assert any(found.startswith(rule + ":") for found in violations(snapshot, plan))
    assert violations(replace(snapshot, pending=()), Plan(placements=(), reasons={})) == ()


def test_a_sound_plan_is_found_sound():
    asks = job(1, gpus=8)
    placed = Placement(job=asks.id, legs=(LegPlacement(site="fr-1", flavor=H100, nodes={"n1": 8}),))
    assert violations(world(asks, windows=(CLOSED,)), Plan(placements=(placed,), reasons={})) == ()


def test_a_limit_that_was_broken_before_is_no_fault_of_who_adds_nothing_to_it():
    """A quota was lowered while uy held 12 of it; what de keeps to itself counts for nobody but de."""
    accounts = (account("de", {H100: (8, None, 0)}), account("fr", {H100: 0}), account("uy", {H100: 4}))
    over = held(1, "fr-1", {"n0": 8, "n1": 4}, account="uy")
    for name, found in (("de", False), ("fr", True)):
        asks = job(1, account=name)
        placed = Placement(job=asks.id, legs=(LegPlacement(site="fr-1", flavor=H100, nodes={"n1": 1}),))
        snapshot = world(asks, accounts=accounts, held=(over,))
        told = [what for what in violations(snapshot, Plan(placements=(placed,), reasons={})) if "quota:" in what]
        assert bool(told) is found


BIG = (account("fr", {H100: 16}), account("de", {H100: 0}), account("uy", {H100: 16}))
SITES = (site("fr-1", H100, (8, 8)), site("uy-1", H100, (8, 8)))


def runs(name: str, where: str, node: str, account_id: str, **changes) -> HeldLeg:
    """A leg of 8 GPUs that started two hours ago."""
    number = sum(map(ord, name + where))
    fields = {"job": name, "account": account_id, "started_ms": NOW_MS - 2 * HOUR_MS, "walltime_s": 86_400} | changes
    return held(number, where, {node: 8}, **fields)


def evicting(asks: PendingJob, *legs: HeldLeg, rule: EvictionRule, **changes) -> tuple[Snapshot, Plan]:
    """A world and a plan that evicts each job of `legs` for `asks`."""
    names = sorted({leg.job for leg in legs})
    told = tuple(
        Eviction(
            job=name,
            for_job=asks.id,
            rule=rule,
            gpus=sum(leg.gpus for leg in legs if leg.job == name),
            lost_gpu_ms=sum((NOW_MS - leg.started_ms) * leg.gpus for leg in legs if leg.job == name),
        )
        for name in names
    )
    snapshot = world(asks, sites=SITES, accounts=changes.pop("accounts", BIG), held=legs, **changes)
    why = Reason(code=ReasonCode.MAKING_ROOM, message="room is made")
    return snapshot, Plan(placements=(), reasons={asks.id: why}, evictions=told)


BORROWS, GUESTS, OWN = EvictionRule.BORROWER, EvictionRule.GUEST, EvictionRule.OWN
LENT = runs("a", "fr-1", "n0", "de")
TWO = (runs("a", "fr-1", "n0", "uy"), runs("b", "fr-1", "n1", "uy"))


@pytest.mark.parametrize(
    ("story", "asks", "legs", "rule", "changes", "words"),
    [
        ("a borrower for one within its own", job(1, gpus=8), (LENT,), BORROWS, {}, ""),
        ("preemption is off", job(1, gpus=8), (LENT,), BORROWS, {"preemption": False}, "preemption is off"),
        ("it is too young", job(1, gpus=8), (replace(LENT, started_ms=NOW_MS - 1_799_999),), BORROWS, {}, "min_run_s"),
        ("it stops already", job(1, gpus=8), (replace(LENT, stopping_for="job-x"),), BORROWS, {}, "stops already"),
        ("the job is not within its own", job(1, gpus=17), (LENT,), BORROWS, {}, "no right"),
        ("the borrower is within its own", job(1, gpus=8), (runs("a", "uy-1", "n0", "uy"),), BORROWS, {}, "no right"),
        ("one borrower too many", job(1, gpus=16), TWO,
         BORROWS, {"accounts": (*BIG[:2], account("uy", {H100: 8}))}, "no right"),
        ("the last one crosses the line", job(1, gpus=16), TWO,
         BORROWS, {"accounts": (*BIG[:2], account("uy", {H100: 7}))}, ""),
        ("a guest at home", job(1, gpus=8), (runs("a", "fr-1", "n0", "uy"),), GUESTS, {}, ""),
        ("a guest elsewhere", job(1, gpus=8), (runs("a", "uy-1", "n0", "de"),), GUESTS, {}, "no right"),
        ("a guest of the own partner", job(1, gpus=8), (runs("a", "fr-1", "n0", "fr"),), GUESTS, {}, "no right"),
        ("its own of a lower class", job(1, gpus=8, priority=Priority.HIGH), (runs("a", "fr-1", "n0", "fr"),), OWN,
         {}, ""),
        ("its own of the same class", job(1, gpus=8), (runs("a", "fr-1", "n0", "fr"),), OWN, {}, "no right"),
        ("its own that could go elsewhere", job(1, gpus=8, sites=("fr-1",)),
         (runs("a", "fr-1", "n0", "fr", anywhere=True),), OWN, {}, ""),
        ("its own that may not be preempted", job(1, gpus=8, sites=("fr-1",)),
         (runs("a", "fr-1", "n0", "fr", anywhere=True, preemptible=False),), OWN, {}, "may not be preempted"),
        ("somebody else's as its own", job(1, gpus=8, sites=("fr-1",)), (replace(LENT, anywhere=True),), OWN, {},
         "no right"),
        ("four legs for one", job(1, gpus=2), (LENT, runs("a", "uy-1", "n0", "de")), BORROWS, {}, "GPUs are evicted"),
        ("one whole leg for less", job(1, gpus=2), (LENT,), BORROWS, {}, ""),
        ("its budget has doubled", job(1, gpus=4, created_ms=NOW_MS - HOUR_MS), (LENT, runs("a", "uy-1", "n0", "de")),
         BORROWS, {}, ""),
        ("and no more than doubled", job(1, gpus=3, created_ms=NOW_MS - HOUR_MS), (LENT, runs("a", "uy-1", "n0", "de")),
         BORROWS, {}, "GPUs are evicted"),
    ],
)  # fmt: skip
def test_an_eviction_without_right_is_found(story, asks, legs, rule, changes, words):
    found = violations(*evicting(asks, *legs, rule=rule, **changes))
    assert (not found) if not words else (len(found) >= 1 and words in found[0] + found[-1]), story


def test_evictions_that_are_wrongly_told_are_found():
    asks = job(1, gpus=8)
    snapshot, plan = evicting(asks, LENT, rule=BORROWS)
    (told,) = plan.evictions
    assert violations(snapshot, plan) == ()
    for wrong, words in (
        (replace(told, gpus=7), "does not hold 7 GPUs"),
        (replace(told, lost_gpu_ms=1), "does not lose 1 GPU-ms"),
        (replace(told, job="job-nowhere"), "holds nothing"),
        (replace(told, for_job="job-nowhere"), "does not wait"),
    ):
        assert words in violations(snapshot, replace(plan, evictions=(wrong,)))[0]
    assert "evicted twice" in violations(snapshot, replace(plan, evictions=(told, told)))[0]


def test_what_is_promised_already_is_not_taken_back_again():
    """`fr` owns 8: a job of it waits for 8 that are being freed, and another has no right to 8 more."""
    accounts = (account("fr", {H100: 8}), account("de", {H100: 0}), account("uy", {H100: 24}))
    first = job(2, gpus=8, nominated=True)
    stops = replace(runs("b", "fr-1", "n1", "de"), stopping_for=first.id)
    snapshot, plan = evicting(job(1, gpus=8), LENT, rule=BORROWS, accounts=accounts)
    assert violations(snapshot, plan) == ()
    both = replace(snapshot, held=(LENT, stops), pending=(*snapshot.pending, first))
    plan = replace(plan, reasons={**plan.reasons, first.id: NO})
    assert "no right" in violations(both, plan)[0]
