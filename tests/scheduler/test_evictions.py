"""Taking back what was lent: who may, from whom, and who of several goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consortium.domain.job import Priority
from consortium.domain.partner import Cotenancy
from consortium.scheduler import HeldLeg, PendingJob, Snapshot, schedule, violations
from tests.builders import NOW_MS, account, site
from tests.scheduler.worlds import A100, H100, HOUR_MS, held, job, world

LONG_AGO = NOW_MS - 2 * HOUR_MS
LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH
FR_16 = (site("fr-1", H100, (8, 8)),)
LENT = (account("fr", {H100: 16}), account("de", {H100: 0}), account("uy", {H100: 0}))


def runs(name: str, nodes: dict[str, int], site_id: str = "fr-1", **changes) -> HeldLeg:
    """A leg of `job-NAME` that has been running for two hours and may go on for a day."""
    fields = {"job": f"job-{name}", "started_ms": LONG_AGO, "walltime_s": 86_400, "account": "de"}
    return held(sum(map(ord, name)) * 31 + sum(map(ord, site_id)), site_id, nodes, **(fields | changes))


def here(number: int = 1, **changes) -> PendingJob:
    return job(number, **({"sites": ("fr-1",), "gpus": 8} | changes))


def evicted(snapshot: Snapshot) -> dict[str, str]:
    """Names of the evicted jobs, and by which rule."""
    return {item.job.removeprefix("job-"): item.rule.value for item in schedule(snapshot).evictions}


FULL = (runs("a", {"n0": 8}), runs("b", {"n1": 8}))


@pytest.mark.parametrize(
    ("story", "accounts", "asks", "legs", "expected"),
    [
        ("from a borrower, by one within its own", LENT, job(1, gpus=8), FULL, {"a": "borrower"}),
        ("not by a borrower",
         (account("fr", {H100: 4}), *LENT[1:], account("es", {H100: 12})), job(1, gpus=8), FULL, {}),
        ("not from an account within its own, away from home",
         (account("fr", {H100: 16}), account("de", {H100: 16}), account("uy", {H100: 0})),
         job(1, gpus=8, account="de"), (runs("a", {"n0": 8}, account="fr"), runs("b", {"n1": 8}, account="fr")), {}),
        ("from a guest within its own, at home",
         (account("fr", {H100: 16}), account("de", {H100: 16})), job(1, gpus=8), FULL, {"a": "guest"}),
        ("borrowers go before guests, whatever it costs",
         (account("fr", {H100: 16}), account("de", {H100: 16}), account("uy", {H100: 0})), job(1, gpus=8),
         (runs("a", {"n0": 8}, checkpoint_ms=NOW_MS), runs("b", {"n1": 8}, account="uy")), {"b": "borrower"}),
        ("a lower class of the own account goes",
         LENT, job(1, gpus=8, priority=HIGH),
         (runs("a", {"n0": 8}, account="fr", priority=LOW), runs("b", {"n1": 8}, account="fr", started_ms=NOW_MS)), {}),
        ("a lower class of the own account goes while it is within its own",
         (account("fr", {H100: 24}),), job(1, gpus=8, priority=HIGH),
         (runs("a", {"n0": 8}, account="fr", priority=LOW), runs("b", {"n1": 8}, account="fr")), {"a": "own"}),
        ("the same class of the own account stays",
         (account("fr", {H100: 24}),), job(1, gpus=8),
         (runs("a", {"n0": 8}, account="fr"), runs("b", {"n1": 8}, account="fr")), {}),
        ("an own job that may run anywhere goes for one that may run only here",
         LENT, here(), (runs("a", {"n0": 8}, account="fr", anywhere=True), runs("b", {"n1": 8}, account="fr")),
         {"a": "own"}),
        ("and stays for one that may run anywhere itself",
         LENT, job(1, gpus=8), (runs("a", {"n0": 8}, account="fr", anywhere=True), runs("b", {"n1": 8}, account="fr")),
         {}),
        ("a higher class protects nothing on loan", LENT, job(1, gpus=8),
         (runs("a", {"n0": 8}, priority=HIGH), runs("b", {"n1": 8}, priority=HIGH)), {"a": "borrower"}),
        ("nor does preemptible=false", LENT, job(1, gpus=8),
         (runs("a", {"n0": 8}, preemptible=False), runs("b", {"n1": 8}, preemptible=False)), {"a": "borrower"}),
        ("which protects from the own account", LENT, here(),
         (runs("a", {"n0": 8}, account="fr", anywhere=True, preemptible=False), runs("b", {"n1": 8}, account="fr")),
         {}),
        ("a lower class goes first, whatever it costs", LENT, job(1, gpus=8),
         (runs("a", {"n0": 8}, checkpoint_ms=NOW_MS), runs("b", {"n1": 8}, priority=LOW)), {"b": "borrower"}),
        ("who asked not to be preempted goes last", LENT, job(1, gpus=8),
         (runs("a", {"n0": 8}, preemptible=False), runs("b", {"n1": 8})), {"b": "borrower"}),
        ("who stops already is not told again", LENT, job(1, gpus=16),
         (runs("a", {"n0": 8}, stopping_for="job-x", walltime_s=7260), runs("b", {"n1": 8})), {"b": "borrower"}),
        ("who ends by itself in the time it takes to stop is waited for", LENT, job(1, gpus=8),
         (runs("a", {"n0": 8}, walltime_s=7300), runs("b", {"n1": 8})), {}),
        ("a project from its sibling, though their partner is at its nominal",
         (account("fr", {H100: 0}), account("fr/law", {H100: 8}), account("fr/med", {H100: 8})),
         job(1, gpus=8, account="fr/law"),
         (runs("a", {"n0": 8}, account="fr/med"), runs("b", {"n1": 8}, account="fr/med")), {"a": "borrower"}),
        ("a project from its partner's own jobs",
         (account("fr", {H100: 8}), account("fr/law", {H100: 8})), job(1, gpus=8, account="fr/law"),
         (runs("a", {"n0": 8}, account="fr"), runs("b", {"n1": 8}, account="fr")), {"a": "borrower"}),
        ("a partner's own job from its project",
         (account("fr", {H100: 8}), account("fr/law", {H100: 8})), job(1, gpus=8),
         (runs("a", {"n0": 8}, account="fr/law"), runs("b", {"n1": 8}, account="fr/law")), {"a": "borrower"}),
        ("not by a project above its own from its sibling",
         (account("fr", {H100: 0}), account("fr/law", {H100: 0}), account("fr/med", {H100: 16})),
         job(1, gpus=8, account="fr/law"),
         (runs("a", {"n0": 8}, account="fr/med"), runs("b", {"n1": 8}, account="fr/med")), {}),
        ("by a project without its own while its partner is within",
         (account("fr", {H100: 16}), account("fr/law", {H100: 0}), LENT[1]), job(1, gpus=8, account="fr/law"), FULL,
         {"a": "borrower"}),
    ],
)  # fmt: skip
def test_who_may_take_back_what_from_whom(story, accounts, asks, legs, expected):
    assert evicted(world(asks, sites=FR_16, accounts=accounts, held=legs)) == expected, story


@pytest.mark.parametrize(
    ("story", "asks", "legs", "expected"),
    [
        ("the least work since the last checkpoint", here(),
         (runs("a", {"n0": 8}, checkpoint_ms=NOW_MS - 600_000), runs("b", {"n1": 8}, checkpoint_ms=NOW_MS - 60_000)),
         {"b"}),
        ("its own rhythm tells how far the last checkpoint is", here(),
         (runs("a", {"n0": 8}, checkpoint_every_s=1700), runs("b", {"n1": 8}, checkpoint_every_s=1500)), {"a"}),
        ("never a checkpoint: all its run time", here(),
         (runs("a", {"n0": 8}, started_ms=LONG_AGO - 1), runs("b", {"n1": 8})), {"b"}),
        ("of equal losses the newest", here(),
         (runs("a", {"n0": 8}, checkpoint_ms=NOW_MS),
          runs("b", {"n1": 8}, started_ms=LONG_AGO + 1, checkpoint_ms=NOW_MS)), {"b"}),
        ("the reverse pass spares whom the job does not need after all", here(gpus=13),
         (runs("a", {"n0": 3}), runs("b", {"n0": 1}, started_ms=LONG_AGO + 1), runs("c", {"n1": 8})), {"b", "c"}),
        ("whole workers, not only GPUs", here(gpus_per_worker=8),
         (*(runs(f"s{n}", {"n0": 1}, checkpoint_ms=NOW_MS) for n in range(8)), runs("b", {"n1": 8})),
         {f"s{n}" for n in range(8)}),
        ("one is too young on the cheap node: the other node", here(gpus_per_worker=8),
         (*(runs(f"s{n}", {"n0": 1}, checkpoint_ms=NOW_MS) for n in range(7)),
          runs("y", {"n0": 1}, started_ms=NOW_MS - 60_000), runs("b", {"n1": 8})), {"b"}),
    ],
)  # fmt: skip
def test_the_cheapest_go(story, asks, legs, expected):
    sites = (site("fr-1", H100, (8, 8), Cotenancy.OPEN),)
    accounts = (account("fr", {H100: 16}), account("de", {H100: 0}))
    assert set(evicted(world(asks, sites=sites, accounts=accounts, held=legs))) == expected, story


def test_one_whole_leg_goes_rather_than_a_gang_that_loses_less():
    sites = (site("fr-1", H100, (8, 8), Cotenancy.OPEN), site("de-1", H100), site("uy-1", H100))
    gang = tuple(runs("g", {"n0": 4}, where, checkpoint_ms=NOW_MS) for where in ("fr-1", "de-1", "uy-1"))
    legs = (*gang, runs("a", {"n0": 4}), runs("own", {"n1": 8}, account="fr"))
    accounts = (*LENT, account("es", {H100: 16}))
    assert evicted(world(here(gpus=1), sites=sites, accounts=accounts, held=legs)) == {"a": "borrower"}


def test_who_does_not_share_the_node_goes_with_all_its_jobs_there():
    legs = (runs("a", {"n0": 4}), runs("b", {"n0": 2}), runs("c", {"n1": 8}, preemptible=False))
    asks = here(gpus=2, created_ms=LONG_AGO)
    for rule, expected in ((Cotenancy.PARTNER, {"a", "b"}), (Cotenancy.EXCLUSIVE, {"a", "b"}), (Cotenancy.OPEN, set())):
        sites = (site("fr-1", H100, (8, 8), rule),)
        assert set(evicted(world(asks, sites=sites, accounts=LENT, held=legs))) == expected, rule


def test_nobody_goes_before_min_run_s_and_where_preemption_is_off():
    young = tuple(runs(name, {node: 8}, started_ms=NOW_MS - 1_799_000) for name, node in (("a", "n0"), ("b", "n1")))
    asks = here()
    assert evicted(world(asks, sites=FR_16, accounts=LENT, held=young)) == {}
    assert evicted(world(asks, sites=FR_16, accounts=LENT, held=young, min_run_s=1799)) == {"a": "borrower"}
    assert evicted(world(asks, sites=FR_16, accounts=LENT, held=FULL, preemption=False)) == {}


def test_a_gang_is_evicted_at_all_its_sites_and_its_youngest_leg_counts():
    sites = (*FR_16, site("de-1", A100, (8,)))
    accounts = (account("fr", {H100: 16}), account("uy", {H100: 0, A100: 0}), account("de", {A100: 8}))
    asks = here(gpus=16)
    gang = (runs("g", {"n0": 8, "n1": 8}, account="uy"), runs("g", {"n0": 8}, "de-1", flavor=A100, account="uy"))
    plan = schedule(world(asks, sites=sites, accounts=accounts, held=gang))
    assert [(item.job, item.gpus) for item in plan.evictions] == [("job-g", 24)]
    assert plan.evictions[0].lost_gpu_ms == 24 * 2 * HOUR_MS
    newer = (gang[0], runs("g", {"n0": 8}, "de-1", flavor=A100, account="uy", started_ms=NOW_MS - 60_000))
    assert evicted(world(asks, sites=sites, accounts=accounts, held=newer)) == {}


def test_a_gang_takes_back_what_is_its_own_at_every_site_at_once_or_nowhere():
    sites = (*FR_16, site("de-1", A100, (8,)))
    accounts = (account("fr", {H100: 16, A100: 8}), account("uy", {H100: 0, A100: 0}))
    asks = job(1, gpus=8, sites=("de-1", "fr-1"))
    legs = (
        runs("a", {"n0": 8}, account="uy"),
        runs("b", {"n1": 8}, account="uy"),
        runs("c", {"n0": 8}, "de-1", flavor=A100, account="uy"),
    )
    assert evicted(world(asks, sites=sites, accounts=accounts, held=legs)) == {"a": "borrower", "c": "borrower"}
    stays = (*legs[:2], runs("c", {"n0": 8}, "de-1", flavor=A100, account="uy", started_ms=NOW_MS))
    assert evicted(world(asks, sites=sites, accounts=accounts, held=stays)) == {}


def test_one_flavors_borrowing_never_costs_another_flavors_nominal():
    """`de` borrows far above its own in h100; its a100 are its own, and a lender of h100 has no right to them."""
    sites = (*FR_16, site("de-1", A100, (8,)))
    accounts = (account("fr", {H100: 16, A100: 0}), account("de", {H100: 0, A100: 8}))
    legs = (runs("a", {"n0": 8, "n1": 8}, account="de"), runs("b", {"n0": 8}, "de-1", flavor=A100, account="de"))
    takes_h100 = job(1, gpus=8)
    assert evicted(world(takes_h100, sites=sites, accounts=accounts, held=legs)) == {"a": "borrower"}
    wants_a100 = job(1, gpus=8, flavors=(A100,))
    assert evicted(world(wants_a100, sites=sites, accounts=accounts, held=legs)) == {}
    own = job(1, gpus=8, account="de", flavors=(A100,))
    lent = (legs[0], runs("b", {"n0": 8}, "de-1", flavor=A100, account="fr"))
    assert evicted(world(own, sites=sites, accounts=accounts, held=lent)) == {"b": "borrower"}, (
        "and it takes back its own"
    )


def test_borrowers_that_come_and_go_do_not_starve_a_large_job_within_nominal():
    """Kueue#13320: each borrower is too young to be evicted, and its place is taken by the next."""
    large = job(1, gpus=16, sites=("fr-1",))
    young = tuple(
        runs(f"b{number}", {f"n{number // 8}": 1}, started_ms=NOW_MS - 60_000 * (number + 1), walltime_s=1_500)
        for number in range(15)
    )
    borrowers = tuple(job(100 + number, account="de", walltime_s=1_400) for number in range(4))
    snapshot = world(large, *borrowers, sites=FR_16, accounts=LENT, held=young)
    plan = schedule(snapshot)
    assert plan.placements == ()
    assert plan.evictions == ()
    assert all(plan.reasons[item.id].numbers["ahead"] == large.id for item in borrowers)
    assert "what is its own" in plan.reasons[borrowers[0].id].message


def test_a_gang_of_two_flavors_within_its_own_of_both_starts_beside_a_claim():
    """What is on loan at a claimed site is counted per flavor: 8 of 12 h100 are, with 8 a100, not 16 of 12."""
    sites = (
        site("fr-1", H100, (8, 8), Cotenancy.OPEN),
        site("fr-2", A100, (8,), Cotenancy.OPEN),
        site("de-1", H100, (8,)),
    )
    accounts = (account("fr", {H100: 12, A100: 8}), account("de", {H100: 4}))
    young = runs("young", {"n0": 8}, started_ms=NOW_MS - 60_000)
    claims = job(1, gpus=12, sites=("fr-1",), created_ms=NOW_MS - HOUR_MS, expected_s=1)
    mixed = job(2, gpus=8, sites=("fr-1", "fr-2"), walltime_s=60)
    snapshot = world(claims, mixed, sites=sites, accounts=accounts, held=(young,))
    plan = schedule(snapshot)
    assert [placement.job for placement in plan.placements] == [mixed.id]
    assert violations(snapshot, plan) == ()
    loan = replace(mixed, gpus=4, account="de", sites=("de-1", "fr-1"))
    plan = schedule(replace(snapshot, pending=(claims, loan)))
    assert plan.placements == ()
    assert plan.reasons[loan.id].numbers["ahead"] == claims.id


def gang(number: int, account_id: str) -> PendingJob:
    return job(number, account=account_id, gpus=8, sites=("de-1", "fr-1"))


def gang_runs(number: int, account_id: str) -> tuple[HeldLeg, ...]:
    name = job(number).id
    return tuple(
        runs("gang", {"n0": 8}, where, job=name, leg=f"{name}@{where}", account=account_id, anywhere=False)
        for where in ("de-1", "fr-1")
    )


@pytest.mark.parametrize(
    ("story", "asks", "legs", "expected"),
    [
        ("an earlier gang takes its home back from a later one", gang(1, "fr"), gang_runs(2, "de"), 1),
        ("a later gang waits for an earlier one", gang(2, "fr"), gang_runs(1, "de"), 0),
        ("a later gang takes its home back from a job of one site",
         gang(2, "fr"), (runs("a", {"n0": 8}, "fr-1"),), 1),
        ("a job of one site takes its home back from an earlier gang",
         job(2, account="fr", gpus=8, sites=("fr-1",)), gang_runs(1, "de"), 1),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_of_two_gangs_at_each_others_home_only_the_earlier_evicts_the_later(
    story: str, asks: PendingJob, legs: tuple[HeldLeg, ...], expected: int
):
    own = (account("fr", {H100: 16}), account("de", {H100: 24}))
    sites = (site("de-1", H100, (8, 8)), site("fr-1", H100, (8,)))
    assert len(schedule(world(asks, sites=sites, accounts=own, held=legs)).evictions) == expected, story


def test_a_job_for_which_room_was_made_at_home_stays_there():
    """Elsewhere it would be a guest, and the gang that made room for it could have it evicted in turn."""
    own = (account("fr", {H100: 16}), account("de", {H100: 16}))
    sites = (site("de-1", H100, (8,)), site("fr-1", H100, (8,)))
    bound = job(3, account="de", gpus=8, sites=("de-1",), created_ms=NOW_MS)
    moved = job(1, account="de", gpus=8, nominated=True)
    plan = schedule(world(moved, bound, sites=sites, accounts=own))
    assert {placed.job: placed.legs[0].site for placed in plan.placements} == {moved.id: "de-1"}


def test_what_was_taken_back_for_a_job_is_reserved_for_it_and_not_what_another_waits_for():
    """Once all have stopped both sites are free; the second job is not put where the first goes."""
    sites = (site("de-1", H100, (8,)), site("es-1", H100, (8,)))
    accounts = (account("uy", {H100: 16}), account("de", {H100: 0}), account("es", {H100: 0}))
    legs = (runs("a", {"n0": 8}, "de-1", account="de"), runs("b", {"n0": 8}, "es-1", account="es"))
    first, second = here(1, account="uy", sites=("de-1",), priority=HIGH), job(2, account="uy", gpus=8)
    plan = schedule(world(first, second, sites=sites, accounts=accounts, held=legs))
    assert {item.job: item.for_job for item in plan.evictions} == {"job-a": first.id, "job-b": second.id}
    reserved = {item.job: [leg.site for leg in item.legs] for item in plan.reservations}
    assert reserved == {first.id: ["de-1"], second.id: ["es-1"]}
