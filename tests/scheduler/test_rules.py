"""Narrative examples of each rule: who starts, who waits, and the reason with its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Priority
from consortium.domain.partner import Cotenancy, SiteState
from consortium.errors import NotFoundError
from consortium.scheduler import (
    StartRange,
    explain,
    never_fits,
    schedule,
)  # fmt: skip
from consortium.scheduler.fit import lay_out
from consortium.scheduler.forecast import EARLY
from tests.builders import NOW_MS, account, site
from tests.scheduler.worlds import A100, H100, HOUR_MS, ROOMY, code, held, in_turn, job, started, world


@pytest.mark.parametrize(
    ("story", "rooms", "gpus", "nodes"),
    [
        ("a small leg takes the tightest node", {"a": 8, "b": 3, "c": 2}, 2, {"c": 2}),
        ("whole nodes first, the rest on the tightest", {"a": 8, "b": 8, "c": 2, "d": 4}, 10, {"a": 8, "c": 2}),
        ("as few nodes as there can be", {"a": 4, "b": 4, "c": 8}, 8, {"c": 8}),
        ("everything there is", {"a": 1, "b": 2}, 3, {"a": 1, "b": 2}),
        ("more than there is", {"a": 1, "b": 2}, 4, None),
        ("ties go to the first id", {"b": 8, "a": 8}, 8, {"a": 8}),
    ],
)
def test_node_layout(story, rooms, gpus, nodes):
    assert lay_out(rooms, gpus) == nodes, story


def test_workers_are_never_split_over_nodes():
    four = job(1, gpus=8, gpus_per_worker=4)
    legs = (held(1, "fr-1", {"n0": 2}), held(2, "fr-1", {"n1": 2}))
    plan = schedule(world(four, job(2, gpus=12, gpus_per_worker=4), held=legs))
    assert plan.placements[0].legs[0].nodes == {"n0": 4, "n1": 4}
    reason = plan.reasons[job(2).id]
    assert (reason.code, reason.numbers["usable"]) == (ReasonCode.CAPACITY, 0)


def test_high_priority_goes_first_then_age():
    late, early, low = job(2, gpus=16), job(1, gpus=16), job(0, gpus=16, priority=Priority.LOW)
    high = job(3, gpus=16, priority=Priority.HIGH)
    assert list(started(schedule(world(late, early, low, high)))) == [high.id]
    assert list(started(schedule(world(late, early, low)))) == [early.id]


def test_the_own_site_before_anothers_and_nominal_before_borrowed():
    mine = job(1, account="de", gpus=4)
    assert started(schedule(world(mine))) == {mine.id: ["de-1"]}
    accounts = (account("fr", {H100: 16, A100: 0}), account("de", {H100: 8, A100: 0}))
    assert started(schedule(world(mine, accounts=accounts))) == {mine.id: ["fr-1"]}


def test_the_preferred_flavor_comes_first_where_all_else_is_equal():
    sites = (site("fr-1", H100), site("fr-2", A100))
    accounts = (account("fr", {H100: 8, A100: 8}),)
    wants = job(1, gpus=4, flavors=(A100, H100))
    assert started(schedule(world(wants, sites=sites, accounts=accounts))) == {wants.id: ["fr-2"]}


def test_over_nominal_waits_says_why_borrows_when_there_is_room_and_starts():
    accounts = (account("fr", {H100: 8}), account("de", {H100: 8}))
    legs = (held(1, "fr-1", {"n0": 8}), held(2, "fr-1", {"n1": 4}, account="de"))
    asks = job(1, gpus=4, sites=("fr-1",))
    lent = schedule(world(asks, accounts=accounts, held=legs[:1]))
    assert (started(lent), lent.placements[0].borrowed) == ({asks.id: ["fr-1"]}, 4)
    tight = (account("fr", {H100: (8, 2, None)}), account("de", {H100: 8}))
    reason = schedule(world(asks, accounts=tight, held=legs[:1])).reasons[asks.id]
    assert reason.code is ReasonCode.QUOTA
    assert reason.numbers == {
        "needed": 4, "held": 8, "available": 2, "bound": "borrowing_limit", "bound_account": "fr",
        "flavor": H100, "nominal": 8, "borrowing_limit": 2,
        "reserved_start_ms": NOW_MS + HOUR_MS, "reserved_at": "fr-1",
    }  # fmt: skip
    assert reason.fix == "ask for gpus=2: it would start now at fr-1"


def test_explain_names_no_change_that_would_only_have_started_at_its_old_turn():
    """With fewer GPUs the job comes later, and jobs that now go first are placed where it would have stood."""
    sites = (site("de-1", H100, nodes=(1, 1, 8)), site("fr-1", H100, nodes=(4,)), site("uy-1", A100, nodes=(1, 1)))
    accounts = (account("de", {A100: 0}), account("fr", {A100: 0}), account("uy", {A100: 1, H100: 8}))
    first = {"priority": Priority.HIGH, "walltime_s": 60}
    pending = (
        job(0, account="uy", gpus=8, gpus_per_worker=4, avoid=(("de-1", "n0"),), **first),
        job(1, account="uy", gpus=1, **first),
        job(2, account="uy", gpus=3, **first),
        job(7, account="de", gpus=1, avoid=(("de-1", "n0"),), **first),
        job(10, account="uy", gpus=1, **first),
    )
    broken = {each.id: ("n0",) for each in sites}
    snapshot = world(*pending, sites=sites, accounts=accounts, cordoned=broken)
    told = schedule(snapshot).reasons[pending[0].id]
    smaller = replace(snapshot, pending=(replace(pending[0], gpus=4), *pending[1:]))
    assert (told.fix, pending[0].id in started(schedule(smaller))) == (
        "ask for gpus=4: it would start now at de-1",
        False,
    )
    assert explain(snapshot, pending[0].id).fix == ""


def test_a_gang_starts_at_all_its_sites_or_not_at_all():
    both = job(1, gpus=8, sites=("de-1", "fr-1"))
    assert started(schedule(world(both))) == {both.id: ["de-1", "fr-1"]}
    snapshot = world(both, held=(held(1, "de-1", {"n0": 1}, A100),))
    plan = schedule(snapshot)
    assert (plan.placements, code(plan, both)) == ((), ReasonCode.CAPACITY)
    assert plan.reasons[both.id].site == "de-1"
    last = explain(snapshot, both.id).steps[-1]
    assert (last.rule, last.sites_left) == ("gang_partner", ())
    assert last.dropped[0].reason.numbers == {"sites": 2, "waits_for": "de-1", "rule": "capacity"}


def test_a_gang_on_one_flavor_needs_quota_for_all_its_legs_together():
    sites = (site("fr-1", H100), site("fr-2", H100))
    gang = job(1, gpus=8, sites=("fr-1", "fr-2"))
    plan = schedule(world(gang, sites=sites, accounts=(account("fr", {H100: 15}),)))
    assert code(plan, gang) is ReasonCode.QUOTA_NEVER
    assert plan.reasons[gang.id].numbers["needed"] == 16
    assert plan.reasons[gang.id].fix.startswith("ask for at most gpus=7")


@pytest.mark.parametrize(
    ("cotenancy", "account_id", "starts"),
    [
        (Cotenancy.PARTNER, "de", False),
        (Cotenancy.PARTNER, "fr", True),
        (Cotenancy.EXCLUSIVE, "fr", False),
        (Cotenancy.OPEN, "de", True),
    ],
)
def test_who_may_share_a_node(cotenancy, account_id, starts):
    sites = (site("fr-1", H100, (8,), cotenancy),)
    accounts = (account("fr", {H100: 8}), account("de", {H100: 0}))
    asks = job(1, account=account_id, gpus=2)
    plan = schedule(world(asks, sites=sites, accounts=accounts, held=(held(1, "fr-1", {"n0": 2}),)))
    assert bool(plan.placements) == starts
    if not starts:
        assert code(plan, asks) is ReasonCode.COTENANCY
        assert plan.reasons[asks.id].numbers == {
            "needed": 2, "free": 6, "shareable": 0, "cotenancy": cotenancy.value,
            "reserved_start_ms": NOW_MS + HOUR_MS, "reserved_at": "fr-1",
        }  # fmt: skip


@pytest.mark.parametrize("state", [item for item in SiteState if item is not SiteState.ACTIVE])
def test_only_active_sites_take_new_legs(state):
    asks = job(1, sites=("fr-1",))
    snapshot = world(asks, states={"fr-1": state})
    reason = schedule(snapshot).reasons[asks.id]
    assert (reason.code, reason.site, reason.numbers) == (ReasonCode.SITE_STATE, "fr-1", {"state": state.value})
    assert "fr-1" in reason.fix
    assert never_fits(snapshot, asks) is None


def test_a_job_goes_to_its_data_and_a_policy_keeps_it_out_with_its_clause():
    clause = Reason(code=ReasonCode.POLICY, message="uy/residency/1 forbids it", site="de-1", fix="run at uy-1")
    denied = job(1, sites=("de-1",), denied={"de-1": clause})
    snapshot = world(denied)
    assert schedule(snapshot).reasons[denied.id] is clause
    funnel = explain(snapshot, denied.id)
    territory, policy = funnel.steps[:2]
    assert (territory.sites_left, territory.dropped[0].site) == (("de-1",), "fr-1")
    assert (policy.sites_left, policy.dropped[0].reason) == ((), clause)
    assert (funnel.position, funnel.estimated_start, funnel.fix) == (0, None, "run at uy-1")


def test_two_clauses_of_one_class_of_jobs_are_not_mixed_up():
    first, second = (
        job(n, sites=("de-1",), denied={"de-1": Reason(code=ReasonCode.POLICY, message=f"clause {n}", site="de-1")})
        for n in (1, 2)
    )
    reasons = schedule(world(first, second)).reasons
    assert [reasons[item.id].message for item in (first, second)] == ["clause 1", "clause 2"]


def test_a_site_that_refused_is_out_and_another_is_tried():
    no = Reason(code=ReasonCode.REFUSED, message="fr-1 refused: code digest", site="fr-1")
    anywhere, there = job(1, unfit={"fr-1": no}), job(2, sites=("fr-1",), unfit={"fr-1": no})
    plan = schedule(world(anywhere, there))
    assert started(plan) == {anywhere.id: ["de-1"]}
    assert plan.reasons[there.id] is no


def test_a_backoff_is_waited_out_and_holds_nobody_up():
    later = job(1, gpus=16, not_before_ms=NOW_MS + 30_000, not_before_reason="site de-1 failed it")
    other = job(2, gpus=16)
    plan = schedule(world(later, other))
    assert started(plan) == {other.id: ["fr-1"]}
    assert plan.reasons[later.id].message == "site de-1 failed it"
    assert plan.reasons[later.id].numbers == {"not_before_ms": NOW_MS + 30_000}
    funnel = explain(world(later, other), later.id)
    assert (funnel.reason.code, funnel.position) == (ReasonCode.HELD, 0)
    assert funnel.estimated_start == StartRange(earliest_ms=NOW_MS + 30_000, latest_ms=NOW_MS + HOUR_MS)


@pytest.mark.parametrize(
    ("story", "changes", "expected", "fix"),
    [
        ("more GPUs than the site has", {"gpus": 17, "flavors": (H100,)}, ReasonCode.GANG_SIZE, "at most gpus=16"),
        ("a worker larger than any node", {"gpus": 16, "gpus_per_worker": 16}, ReasonCode.GANG_SIZE,
         "gpus_per_worker=8 or less"),
        ("a flavor nobody has", {"flavors": ("mi300x",)}, ReasonCode.FLAVOR, "accept h100-sxm as well"),
        ("a site nobody knows", {"sites": ("uy-9",)}, ReasonCode.TERRITORY, "name one of de-1, fr-1"),
        ("quota the cohort could never lend", {"account": "uy", "gpus": 8, "flavors": (A100,)},
         ReasonCode.QUOTA_NEVER, "ask for at most gpus=6"),
        ("an account without quota", {"account": "es", "flavors": (A100,)}, ReasonCode.QUOTA_NEVER, "declare a100-80g"),
        ("min_sites above its sites", {"sites": ("fr-1",), "min_sites": 2}, ReasonCode.GANG_SIZE, "min_sites=1"),
        ("a job that fits", {"gpus": 16}, None, ""),
    ],
)  # fmt: skip
def test_jobs_that_could_never_fit(story, changes, expected, fix):
    accounts = (account("fr", {H100: 16, A100: 0}), account("de", {H100: 0, A100: 8}), account("uy", {A100: (0, 6, 0)}))
    asks = job(1, **changes)
    legs = (held(1, "fr-1", {"n0": 8}), held(2, "de-1", {"n0": 8}, A100))
    snapshot = world(asks, accounts=accounts, held=legs)
    reason = never_fits(snapshot, asks)
    assert (reason.code if reason else None) == expected, story
    if reason is not None:
        assert fix in reason.fix
        assert schedule(snapshot).reasons[asks.id].code is expected


def test_short_jobs_are_backfilled_and_long_ones_would_delay_the_first_in_line():
    busy = held(1, "fr-1", {"n0": 8, "n1": 4})
    head = in_turn(1, gpus=16, sites=("fr-1",))
    long, short = (in_turn(n, gpus=4, sites=("fr-1",), walltime_s=w) for n, w in ((2, 7200), (3, 3600)))
    snapshot = world(head, long, short, accounts=ROOMY, held=(busy,))
    plan = schedule(snapshot)
    assert started(plan) == {short.id: ["fr-1"]}
    assert plan.reservations[0].job == head.id
    assert plan.reservations[0].start_ms == NOW_MS + HOUR_MS
    without = schedule(world(head, long, accounts=ROOMY, held=(busy,)))
    reason = without.reasons[long.id]
    assert reason.code is ReasonCode.PRIORITY
    assert reason.numbers == {
        "ahead": head.id, "ahead_start_ms": NOW_MS + HOUR_MS, "walltime_s": 7200,
    }  # fmt: skip
    assert reason.fix == "ask for walltime_s=3600: it would start now at fr-1"


def test_a_reason_does_not_count_down_while_nothing_changes():
    busy = held(1, "fr-1", {"n0": 8, "n1": 4})
    waiting = (in_turn(1, gpus=16, sites=("fr-1",)), in_turn(2, gpus=4, sites=("fr-1",), walltime_s=7200))
    backoff = in_turn(3, not_before_ms=NOW_MS + 60_000)
    first, second = (
        schedule(world(*waiting, backoff, accounts=ROOMY, held=(busy,), now_ms=NOW_MS + later)) for later in (0, 250)
    )
    assert {name: reason.message for name, reason in first.reasons.items()} == {
        name: reason.message for name, reason in second.reasons.items()
    }
    assert [reason.numbers for reason in first.reasons.values()] == [r.numbers for r in second.reasons.values()]
    assert "reserved for it at fr-1 by 2025-06-15 16:06:40 UTC" in first.reasons[waiting[0].id].message


def test_a_long_job_may_run_beside_the_reservation():
    busy = held(1, "fr-1", {"n0": 8, "n1": 4})
    head = in_turn(1, gpus=8, sites=("fr-1",))
    beside, over = (in_turn(n, gpus=4, sites=("fr-1",), walltime_s=9000) for n in (2, 3))
    plan = schedule(world(head, beside, over, accounts=ROOMY, held=(busy,)))
    assert started(plan) == {beside.id: ["fr-1"]}
    assert plan.reservations[0].legs[0].nodes == {"n0": 8}
    assert code(plan, over) is ReasonCode.CAPACITY


def test_jobs_beside_a_reservation_are_counted_together():
    busy = held(1, "fr-1", {"n0": 8, "n1": 4})
    head = in_turn(1, gpus=12, sites=("fr-1",))
    first, second = (in_turn(n, gpus=2, sites=("fr-1",), walltime_s=9000) for n in (2, 3))
    third = in_turn(4, gpus=1, sites=("fr-1",), walltime_s=9000)
    snapshot = world(head, first, second, third, accounts=ROOMY, held=(busy,))
    assert list(started(schedule(snapshot))) == [first.id, second.id]
    wider = in_turn(1, gpus=14, sites=("fr-1",))
    plan = schedule(world(wider, first, second, third, accounts=ROOMY, held=(busy,)))
    assert list(started(plan)) == [first.id]
    assert {code(plan, item) for item in (second, third)} == {ReasonCode.PRIORITY}


def test_a_node_that_partners_share_from_before_the_rule_takes_neither_until_one_has_left():
    sites = (site("fr-1", H100, (8,)),)
    accounts = (account("fr", {H100: 8}), account("de", {H100: 0}))
    both = (held(1, "fr-1", {"n0": 2}), held(2, "fr-1", {"n0": 2}, account="de"))
    asks = job(1, gpus=2)
    assert code(schedule(world(asks, sites=sites, accounts=accounts, held=both)), asks) is ReasonCode.COTENANCY
    assert started(schedule(world(asks, sites=sites, accounts=accounts, held=both[:1]))) == {asks.id: ["fr-1"]}


def test_a_backfilled_job_may_not_take_the_quota_of_the_first_in_line():
    sites = (site("fr-1", H100), site("fr-2", H100))
    accounts = (account("fr", {H100: 12}), account("fr/law", {H100: 0}))
    busy = held(1, "fr-1", {"n0": 4}, account="fr/law")
    head = in_turn(1, gpus=8, sites=("fr-1",), priority=Priority.HIGH)
    other = in_turn(2, gpus=8, sites=("fr-2",), walltime_s=7200, account="fr/law")
    small = in_turn(3, gpus=4, sites=("fr-2",), walltime_s=7200, account="fr/law")
    plan = schedule(world(head, other, small, sites=sites, accounts=accounts, held=(busy,)))
    assert started(plan) == {small.id: ["fr-2"]}
    assert code(plan, other) is ReasonCode.PRIORITY


def test_each_site_keeps_gpus_for_the_first_in_line_there():
    legs = (held(1, "fr-1", {"n0": 1}), held(2, "de-1", {"n0": 1}, A100, walltime_s=60))
    head_fr, head_de = in_turn(1, gpus=16, sites=("fr-1",)), in_turn(2, gpus=8, sites=("de-1",), account="de")
    long = in_turn(3, gpus=2, sites=("de-1",), account="de", walltime_s=9000)
    plan = schedule(world(head_fr, head_de, long, accounts=ROOMY, held=legs))
    assert [(item.job, item.start_ms) for item in plan.reservations] == [
        (head_fr.id, NOW_MS + HOUR_MS),
        (head_de.id, NOW_MS + 60_000),
    ]
    assert code(plan, long) is ReasonCode.PRIORITY


def test_explain_tells_position_holders_and_a_range_for_the_start():
    legs = (held(1, "fr-1", {"n0": 8}, walltime_s=3600), held(2, "fr-1", {"n1": 8}, account="de", walltime_s=7200))
    accounts = (account("fr", {H100: 16}), account("de", {H100: 0}))
    first, second = job(1, gpus=8, sites=("fr-1",)), job(2, gpus=8, sites=("fr-1",))
    funnel = explain(world(second, first, accounts=accounts, held=legs, preemption=False), second.id)
    assert funnel.position == 2
    assert funnel.holders == {"de": 8, "fr": 8}
    soon_ms = NOW_MS + HOUR_MS // EARLY
    assert funnel.estimated_start == StartRange(earliest_ms=soon_ms, latest_ms=NOW_MS + 2 * HOUR_MS)
    assert [step.rule for step in funnel.steps if step.dropped] == ["territory", "capacity"]
    taken_back = explain(world(second, first, accounts=accounts, held=legs), second.id).estimated_start
    assert taken_back == StartRange(earliest_ms=soon_ms, latest_ms=NOW_MS + HOUR_MS), (
        "what de borrowed is taken back from min_run_s on, by the one that comes first; the other gets fr's own"
    )


def test_explain_of_a_job_whose_site_has_left_the_consortium():
    waits = job(1, gpus=8, sites=("fr-1", "uy-1"))
    funnel = explain(world(waits), waits.id)
    assert (funnel.reason.code, funnel.reason.site) == (ReasonCode.TERRITORY, "uy-1")
    assert funnel.fix == "name one of de-1, fr-1"
    assert funnel.estimated_start is None


def test_explain_of_a_job_that_runs_and_of_one_nobody_knows():
    leg = held(1, "fr-1", {"n0": 8})
    funnel = explain(world(held=(leg,)), leg.job)
    assert (funnel.reason.code, funnel.reason.message) == (ReasonCode.STARTING, "holds 8 GPUs at fr-1")
    with pytest.raises(NotFoundError, match="job-nowhere"):
        explain(world(), "job-nowhere")
