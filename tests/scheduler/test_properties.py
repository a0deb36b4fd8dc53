"""Invariants of the scheduler over random federations and workloads."""

from __future__ import annotations

import re
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.decision import ReasonCode
from consortium.domain.job import Priority
from consortium.scheduler import Plan, Scheduler, Snapshot, apply, explain, never_fits, schedule, violations
from consortium.scheduler.cycle import Cycle
from consortium.scheduler.fit import find_legs
from tests.builders import account
from tests.scheduler.drawn import few, snapshots
from tests.scheduler.worlds import A100, H100, job, run_closed


def roomy(snapshot: Snapshot) -> Snapshot:
    """The same with quotas that nobody reaches and nothing taken back: the order of service stays as it is."""
    accounts = tuple(account(item.id, {H100: 500, A100: 500}) for item in snapshot.accounts)
    return replace(snapshot, accounts=accounts, settings=replace(snapshot.settings, preemption=False))


@few
@given(snapshots())
def test_no_plan_breaks_a_rule_or_leaves_a_job_without_reason(snapshot: Snapshot):
    """Quota, gang, node, border, cotenancy, window, cordon, and whom it evicts: see `violations`."""

    def sound(before: Snapshot, plan: Plan) -> None:
        assert violations(before, plan) == ()

    run_closed(snapshot, watch=sound)


@few
@given(snapshots(), st.randoms(use_true_random=False))
def test_the_order_in_which_a_snapshot_lists_things_changes_nothing(snapshot: Snapshot, random):
    def shuffled(items: tuple) -> tuple:
        return tuple(random.sample(items, len(items)))

    same = replace(
        snapshot,
        sites=shuffled(snapshot.sites),
        accounts=shuffled(snapshot.accounts),
        held=shuffled(snapshot.held),
        pending=shuffled(snapshot.pending),
        windows=shuffled(snapshot.windows),
        history=shuffled(snapshot.history),
    )
    assert repr(schedule(same)) == repr(schedule(snapshot))


@few
@given(snapshots(all_active=True, lasting=False), st.integers(1, 100))
def test_every_job_that_could_ever_fit_starts_in_finite_time(snapshot: Snapshot, share: int):
    _, rest, _ = run_closed(snapshot, run_s=lambda leg: max(1, leg.walltime_s * share // 100))
    for waiting in rest.pending:
        permitted = [view.site.id for view in rest.sites if view.site.id not in waiting.denied]
        barred = set(waiting.sites) & set(waiting.denied) if waiting.sites else not _fits_at(rest, waiting, permitted)
        assert barred or never_fits(rest, waiting) is not None


def _fits_at(snapshot: Snapshot, waiting, permitted: list[str]) -> bool:
    sites = tuple(view for view in snapshot.sites if view.site.id in permitted)
    return bool(sites) and never_fits(replace(snapshot, sites=sites), waiting) is None


@few
@given(snapshots(), st.integers(1, 100))
def test_the_first_in_line_never_starts_later_than_its_reservation(snapshot: Snapshot, share: int):
    """Unless somebody comes who is served before it; so backoffs, after which a job lines up anew, are left out."""
    snapshot = replace(snapshot, pending=tuple(replace(item, not_before_ms=0) for item in snapshot.pending))
    promised: dict[str, int] = {}

    def note(before: Snapshot, plan: Plan) -> None:
        if plan.reservations:
            first = plan.reservations[0]
            assert first.start_ms <= promised.get(first.job, first.start_ms)
            promised[first.job] = first.start_ms

    starts, _, _ = run_closed(roomy(snapshot), watch=note, run_s=lambda leg: max(1, leg.walltime_s * share // 100))
    for waiting, latest_ms in promised.items():
        assert starts[waiting] <= latest_ms


@few
@given(snapshots())
def test_what_starts_behind_the_first_in_line_leaves_it_its_start(snapshot: Snapshot):
    """The same where shares and evictions move the order about: seen from one cycle."""

    def kept(before: Snapshot, plan: Plan) -> None:
        if plan.reservations:
            first = plan.reservations[0]
            after = apply(before, plan)
            (head,) = (item for item in after.pending if item.id == first.job)
            calm = replace(after, pending=(head,), settings=replace(after.settings, preemption=False))
            assert schedule(calm).reservations[0].start_ms <= first.start_ms

    run_closed(snapshot, watch=kept)


@few
@given(snapshots())
def test_what_a_cycle_leaves_free_fits_no_job_it_left_waiting(snapshot: Snapshot):
    scheduler = Scheduler(snapshot)
    cycle = Cycle(scheduler)
    cycle.run()
    heads = {shadow.job.id for shadow in cycle.shadows}
    for line in scheduler.queue.lines.values():
        for _, name in line.keys:
            waiting = scheduler.queue.jobs[name]
            if line.usable and name not in heads:
                assert find_legs(scheduler.board, waiting, line.usable, cycle.layers(waiting)) is None


@few
@given(snapshots(all_active=True))
def test_never_fits_is_right_about_an_empty_federation(snapshot: Snapshot):
    views = tuple(replace(view, cordoned=()) for view in snapshot.sites)
    for waiting in snapshot.pending:
        eager = replace(waiting, denied={}, avoid=(), waits_for=None, not_before_ms=0)
        reason = never_fits(snapshot, waiting)
        plan = schedule(replace(snapshot, sites=views, held=(), windows=(), pending=(eager,)))
        assert bool(plan.placements) == (reason is None)
        assert reason is None or (reason.fix and reason.message)


@few
@given(snapshots())
def test_explain_agrees_with_the_plan_and_drops_every_site_once(snapshot: Snapshot):
    plan = schedule(snapshot)
    placed = {placement.job for placement in plan.placements}
    for waiting in snapshot.pending:
        funnel = explain(snapshot, waiting.id)
        apart = waiting.waits_for is not None or waiting.not_before_ms > snapshot.now_ms
        assert (funnel.reason.code is ReasonCode.STARTING) == (waiting.id in placed)
        if waiting.id not in placed:
            assert funnel.reason.code is plan.reasons[waiting.id].code
        dropped = [drop.site for step in funnel.steps for drop in step.dropped]
        kept = funnel.steps[-1].sites_left
        assert sorted([*dropped, *kept]) == sorted(view.site.id for view in snapshot.sites)
        assert funnel.reason.message
        assert funnel.reason.numbers or funnel.reason.code is ReasonCode.POLICY
        assert funnel.reason.site or apart or waiting.id in placed
        if waiting.id in placed:
            assert kept
            assert funnel.estimated_start is not None
        if (start := funnel.estimated_start) is not None and start.latest_ms is not None:
            assert snapshot.now_ms <= start.earliest_ms <= start.latest_ms


@few
@given(snapshots())
def test_a_change_that_explain_suggests_does_start_the_job(snapshot: Snapshot):
    for waiting in snapshot.pending:
        fix = explain(snapshot, waiting.id).fix
        if ": it would start now" not in fix:
            continue
        if found := re.match(r"ask for (gpus|walltime_s)=(\d+):", fix):
            changed = replace(waiting, **{found[1]: int(found[2])})
        else:
            found = re.match(r"accept (\S+) as well:", fix)
            assert found is not None
            changed = replace(waiting, flavors=(*waiting.flavors, found[1]))
        pending = tuple(changed if item.id == waiting.id else item for item in snapshot.pending)
        plan = schedule(replace(snapshot, pending=pending))
        assert waiting.id in {placement.job for placement in plan.placements}


@few
@given(snapshots(all_active=True, lasting=False))
def test_within_nominal_at_a_free_site_a_job_starts_whatever_others_want(snapshot: Snapshot):
    """Sharing: with nothing held and nobody in line before it, nominal quota is there to be used."""
    empty = replace(snapshot, held=(), windows=())
    quotas = [quota for owner in empty.accounts for quota in owner.quotas if quota.nominal]
    for quota in quotas:
        homes = [view.site for view in empty.sites if view.site.partner == quota.account[:2]]
        for home in (item for item in homes if item.flavor.id == quota.flavor):
            gpus = min(quota.nominal, home.gpus)
            mine = job(99, account=quota.account, gpus=gpus, sites=(home.id,), priority=Priority.HIGH, created_ms=0)
            plan = schedule(replace(empty, pending=(*empty.pending, mine)))
            assert plan.placements[0].job == mine.id


@few
@given(snapshots())
def test_apply_moves_the_placed_jobs_marks_the_evicted_ones_and_changes_nothing_else(snapshot: Snapshot):
    plan = schedule(snapshot)
    after = apply(snapshot, plan)
    placed = {placement.job for placement in plan.placements}
    evicted = {item.job: item.for_job for item in plan.evictions}
    assert {item.id for item in after.pending} == set(plan.reasons)
    for was, now in zip(snapshot.held, after.held, strict=False):
        if was.job in evicted:
            assert (now.nodes, now.stopping_for) == (was.nodes, evicted[was.job])
            assert now.ends_ms <= max(was.ends_ms, snapshot.now_ms + snapshot.settings.stop_s * 1000 + 999)
            assert now == replace(was, stopping_for=now.stopping_for, walltime_s=now.walltime_s)
        else:
            assert now == was
    assert {leg.job for leg in after.held[len(snapshot.held) :]} == placed
    assert {item.id for item in after.pending if item.nominated} == set(evicted.values())
    assert replace(after, held=snapshot.held, pending=snapshot.pending) == snapshot


@few
@given(snapshots())
def test_a_second_cycle_at_the_same_instant_starts_nobody(snapshot: Snapshot):
    snapshot = roomy(snapshot)
    assert schedule(apply(snapshot, schedule(snapshot))).placements == ()
