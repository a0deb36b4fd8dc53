"""Nodes set aside at times, cordoned nodes, and nodes a job failed on."""

from __future__ import annotations

import pytest

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Priority
from consortium.scheduler import PendingJob, Window, WindowKind, explain, schedule
from tests.builders import NOW_MS, account, site
from tests.scheduler.worlds import H100, HOUR_MS, ROOMY, code, held, in_turn, job, started, world


def window(start_h: float, end_h: float, kind: WindowKind = WindowKind.MAINTENANCE, **changes) -> Window:
    """A window at fr-1, in hours from now."""
    fields = {
        "id": "win-1", "kind": kind, "site": "fr-1", "nodes": (),
        "start_ms": NOW_MS + round(start_h * HOUR_MS), "end_ms": NOW_MS + round(end_h * HOUR_MS),
    }  # fmt: skip
    return Window(**(fields | changes))


def there(number: int, **changes) -> PendingJob:
    return job(number, sites=("fr-1",), **changes)


@pytest.mark.parametrize(
    ("story", "windows", "asks", "starts"),
    [
        ("it would still run when maintenance begins", (window(0.5, 2),), there(1), False),
        ("it ends as maintenance begins", (window(1, 2),), there(1), True),
        ("maintenance is under way", (window(-1, 1),), there(1), False),
        ("maintenance is over", (window(-2, 0),), there(1), True),
        ("only one node is set aside", (window(0.5, 2, nodes=("n0",)),), there(1, gpus=8), True),
        ("the other node is too small", (window(0.5, 2, nodes=("n0",)),), there(1, gpus=9), False),
        ("another site's window", (window(0.5, 2, site="de-1"),), there(1), True),
        ("somebody else's reservation", (window(0.5, 2, WindowKind.RESERVATION, account="de"),), there(1), False),
        ("its own account's reservation", (window(0.5, 2, WindowKind.RESERVATION, account="fr"),), there(1), True),
        ("its partner's reservation", (window(0.5, 2, WindowKind.RESERVATION, account="fr"),),
         there(1, account="fr/law"), True),
        ("its sibling's reservation", (window(0.5, 2, WindowKind.RESERVATION, account="fr/med"),),
         there(1, account="fr/law"), False),
        ("maintenance inside its own reservation",
         (window(0.5, 2, WindowKind.RESERVATION, account="fr"), window(0.7, 1, id="win-2")), there(1), False),
        ("long before it", (window(48, 50),), there(1), True),
    ],
)  # fmt: skip
def test_nobody_starts_what_would_run_into_a_window(story, windows, asks, starts):
    accounts = (account("fr", {H100: 16}), account("fr/law", {H100: 0}), account("fr/med", {H100: 0}), account("de"))
    plan = schedule(world(asks, accounts=accounts, windows=windows))
    assert bool(plan.placements) == starts, story
    if not starts:
        assert code(plan, asks) is ReasonCode.WINDOW


def test_the_reason_names_the_window_that_is_in_the_way_and_not_the_jobs_own():
    own = window(0.2, 2, WindowKind.RESERVATION, account="fr", id="win-0")
    asks = there(1)
    reason = schedule(world(asks, windows=(own, window(0.5, 1)))).reasons[asks.id]
    assert reason.numbers["window"] == "win-1"
    assert "maintenance from 2025-06-15 15:36:40 UTC to 2025-06-15 16:06:40 UTC" in reason.message
    assert "a walltime of 1 h would run into it" in reason.message
    other = window(0.2, 2, WindowKind.RESERVATION, account="de", id="win-0")
    assert "a reservation of de" in schedule(world(asks, windows=(other,))).reasons[asks.id].message


def test_a_job_is_reserved_for_the_end_of_the_window_and_a_shorter_one_goes_before_it():
    closed = window(1, 3)
    long, short = in_turn(1, sites=("fr-1",), walltime_s=7200), in_turn(2, sites=("fr-1",), walltime_s=3600)
    snapshot = world(long, short, windows=(closed,))
    plan = schedule(snapshot)
    assert started(plan) == {short.id: ["fr-1"]}
    assert [(item.job, item.start_ms) for item in plan.reservations] == [(long.id, closed.end_ms)]
    assert explain(snapshot, long.id).estimated_start.earliest_ms == closed.end_ms


def test_a_reservation_in_a_window_is_planned_around_the_legs_that_run():
    busy = held(1, "fr-1", {"n0": 8, "n1": 8}, walltime_s=2 * 3600)
    asks = there(1, gpus=16, walltime_s=2 * 3600)
    for begins, start_h in ((3, 5), (4, 2)):
        plan = schedule(world(asks, held=(busy,), accounts=ROOMY, windows=(window(begins, 5),)))
        assert plan.reservations[0].start_ms == NOW_MS + start_h * HOUR_MS


def test_a_gang_is_reserved_for_when_no_window_is_in_the_way_at_any_of_its_sites():
    """fr-1 is open until maintenance begins, and de-1 from the middle of that on."""
    asks = job(1, sites=("de-1", "fr-1"), walltime_s=1800)
    windows = window(1, 4), window(-1, 3, WindowKind.RESERVATION, site="de-1", id="win-2", account="de")
    (reserved,) = schedule(world(asks, accounts=ROOMY, windows=windows)).reservations
    assert reserved.start_ms == NOW_MS + 4 * HOUR_MS


def test_a_job_is_reserved_for_when_quota_and_windows_allow_it():
    """Quota is free in two hours, when maintenance has begun at the site that is open until then."""
    asks = job(1, gpus=8, sites=("fr-1",), walltime_s=1800)
    runs = held(1, "de-1", {"n0": 4}, walltime_s=7200, account="fr")
    sites = site("fr-1", H100, (8,)), site("de-1", H100, (8,))
    accounts = account("fr", {H100: (8, 0, None)}), account("de", {H100: 8})
    plan = schedule(world(asks, sites=sites, accounts=accounts, held=(runs,), windows=(window(1, 4),)))
    (reserved,) = plan.reservations
    assert reserved.start_ms == NOW_MS + 4 * HOUR_MS


def test_a_cordoned_node_takes_no_new_legs_and_keeps_those_it_has():
    runs = held(1, "fr-1", {"n0": 4})
    asks = there(1, gpus=8)
    assert schedule(world(asks, held=(runs,), cordoned={"fr-1": ("n0",)})).placements[0].legs[0].nodes == {"n1": 8}
    wide = there(2, gpus=12)
    plan = schedule(world(wide, held=(runs,), cordoned={"fr-1": ("n0",)}))
    assert (code(plan, wide), plan.reservations) == (ReasonCode.CAPACITY, ()), "not even when all legs have ended"
    open_again = schedule(world(wide, held=(runs,)))
    assert started(open_again) == {wide.id: ["fr-1"]}


def test_a_job_avoids_the_node_it_failed_on_and_takes_the_rest():
    failed = there(1, gpus=8, avoid=(("fr-1", "n0"),))
    assert schedule(world(failed)).placements[0].legs[0].nodes == {"n1": 8}
    busy = held(1, "fr-1", {"n1": 8})
    plan = schedule(world(failed, held=(busy,), accounts=ROOMY))
    reason = plan.reasons[failed.id]
    assert (reason.code, reason.numbers["nodes"]) == (ReasonCode.WINDOW, "n0")
    assert reason.message.startswith("it failed on n0 of fr-1")
    assert plan.reservations[0].legs[0].nodes == {"n1": 8}
    elsewhere = job(2, gpus=8, avoid=(("de-1", "n0"),), sites=("fr-1",))
    assert schedule(world(elsewhere)).placements[0].legs[0].nodes == {"n0": 8}, "the same name at another site"


@pytest.mark.parametrize("reason_code", [ReasonCode.DEPENDENCY, ReasonCode.BUDGET, ReasonCode.ARRAY])
def test_a_job_that_waits_for_something_else_is_not_in_line_and_keeps_its_reason(reason_code):
    why = Reason(code=reason_code, message="comes after job-x", numbers={"after": "job-x"})
    apart, other = job(1, gpus=16, waits_for=why, priority=Priority.HIGH), job(2, gpus=16)
    snapshot = world(apart, other)
    plan = schedule(snapshot)
    assert started(plan) == {other.id: ["fr-1"]}
    assert plan.reasons[apart.id] is why
    assert plan.reservations == ()
    funnel = explain(snapshot, apart.id)
    assert (funnel.reason, funnel.position, funnel.estimated_start) == (why, 0, None)
    assert {step.rule for step in funnel.steps} >= {"capacity", "quota"}, "and the funnel says what else is in the way"


def test_windows_and_cordons_hold_for_what_is_taken_back_too():
    accounts = (account("fr", {H100: 16}), account("de", {H100: 0}))
    sites = (site("fr-1", H100, (8, 8)),)
    lent = tuple(
        held(n, "fr-1", {f"n{n}": 8}, account="de", started_ms=NOW_MS - 2 * HOUR_MS, walltime_s=86_400) for n in (0, 1)
    )
    asks = there(1, gpus=8)

    def evicted(**changes) -> list[str]:
        plan = schedule(world(asks, sites=sites, accounts=accounts, held=lent, **changes))
        return [item.job for item in plan.evictions]

    assert len(evicted()) == 1
    assert evicted(cordoned={"fr-1": ("n0",)}) == [lent[1].job]
    assert evicted(windows=(window(0.5, 2, nodes=("n1",)),)) == [lent[0].job]
    assert evicted(windows=(window(0.5, 2),)) == []
