"""Invariants of taking back, over federations whose GPUs are in everybody's hands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given

from consortium.domain.job import Priority
from consortium.domain.partner import Cotenancy
from consortium.scheduler import PendingJob, Plan, Snapshot, apply, schedule, violations
from tests.builders import NOW_MS
from tests.scheduler.drawn import few, lent_out
from tests.scheduler.worlds import job, run_closed


@few
@given(lent_out())
def test_nobody_is_evicted_without_right_and_nobody_is_evicted_for_ever(snapshot: Snapshot):
    def sound(before: Snapshot, plan: Plan) -> None:
        assert violations(before, plan) == ()

    _, rest, evictions = run_closed(snapshot, watch=sound)
    assert rest.held == ()
    assert {item.for_job for item in evictions}.isdisjoint(item.id for item in rest.pending)
    victims = Counter(item.job for item in evictions)
    assert all(count <= len(snapshot.pending) for count in victims.values())
    assert len(evictions) <= len(snapshot.pending) + len(snapshot.held)


@few
@given(lent_out())
def test_an_evicted_job_makes_room_for_one_that_starts_as_soon_as_it_has_stopped(snapshot: Snapshot):
    """No GPUs freed for a job go to somebody else, and nobody is evicted in vain.

    Not promised where room is made for several at one time and another of them may run anywhere: it starts at home
    first, also where room was made for this one, which then waits until something else ends.
    """
    promised: dict[str, int] = {}
    roaming = {item.id for item in snapshot.pending if not item.sites}
    together: set[str] = set()

    def note(before: Snapshot, plan: Plan) -> None:
        served = {item.for_job for item in plan.evictions} | {item.id for item in before.pending if item.nominated}
        together.update(name for name in served if roaming & served - {name})
        for item in plan.evictions:
            promised[item.for_job] = before.now_ms + before.settings.stop_s * 1000 + 1000

    starts = run_closed(snapshot, watch=note).starts
    for name, latest_ms in promised.items():
        assert starts[name] <= latest_ms or name in together


def nominal_jobs(snapshot: Snapshot) -> Iterator[PendingJob]:
    """For every account and home site the largest job within nominal that other partners' legs can make room for.

    What stays: its partner's own legs, and gangs, which the disruption budget may protect. For the same reason sites
    are left out where GPUs are being freed for a gang. It asks for so little work (14 GPUs for a second are less than
    all that is drawn) that nobody within his own comes before it.
    """
    legs = Counter(leg.job for leg in snapshot.held)
    for owner in snapshot.accounts:
        stays = tuple(leg for leg in snapshot.held if leg.partner == owner.id[:2] or legs[leg.job] > 1)
        alone = replace(snapshot, held=stays, settings=replace(snapshot.settings, preemption=False))
        for view in snapshot.sites:
            home = view.site.id
            promised = any(item.nominated and home in item.sites and len(item.sites) > 1 for item in snapshot.pending)
            if view.site.partner != owner.id[:2] or promised:
                continue
            for gpus in range(min(view.site.gpus, 14), 0, -1):
                mine = job(99, account=owner.id, gpus=gpus, sites=(home,), created_ms=NOW_MS, expected_s=1)
                mine = replace(mine, priority=Priority.HIGH)
                fits = bool(schedule(replace(alone, pending=(mine,))).placements)
                if fits and within_nominal(snapshot, mine, view.site.flavor.id):
                    yield mine
                    break


def within_nominal(snapshot: Snapshot, mine: PendingJob, flavor: str) -> bool:
    """Whether what its partner and its account hold, wherever that is, leaves room for the job within nominal."""
    for scope in {mine.account, mine.account[:2]}:
        below = [item for item in snapshot.accounts if item.id == scope or item.id.startswith(f"{scope}/")]
        nominal = sum(quota.nominal for item in below for quota in item.quotas if quota.flavor == flavor)
        names = {item.id for item in below}
        held = sum(leg.gpus for leg in snapshot.held if leg.account in names and leg.flavor == flavor)
        if held + mine.gpus > nominal:
            return False
    return True


@few
@given(lent_out())
def test_nominal_is_available_within_the_grace_whatever_others_borrowed(snapshot: Snapshot):
    """At a site of its own partner, for a job of one site that comes first of those within their own.

    So age counts for little here (`ageing_s`). Who is within his own too and comes before it may start there as a guest
    first, and has `min_run_s` from then on.
    Where partners do not share nodes a small job may need a whole node, and the budget decides.
    """
    rules = replace(snapshot.settings, ageing_s=172_800)
    views = tuple(replace(view, site=replace(view.site, cotenancy=Cotenancy.OPEN)) for view in snapshot.sites)
    snapshot = replace(snapshot, sites=views, settings=rules)
    full = apply(snapshot, schedule(snapshot))
    grace_ms = (rules.min_run_s + 2 * rules.stop_s + 1) * 1000
    for mine in nominal_jobs(full):
        others = tuple(item for item in full.pending if item.account[:2] != mine.account[:2])
        starts = run_closed(replace(full, pending=(*others, mine)), until_ms=NOW_MS + grace_ms).starts
        assert mine.id in starts, f"{mine.account} waits for {mine.gpus} GPUs at {mine.sites[0]}"
