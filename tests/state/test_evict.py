"""Evictions by a plan, faults of nodes, cordons and windows in the state."""

from __future__ import annotations

from dataclasses import replace

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Epoch, Fault, Job, JobState, Leg, LegState
from consortium.scheduler.types import Eviction, EvictionRule, Placement, Plan, Window, WindowKind
from consortium.state import Database, jobs, nodes, windows
from consortium.state.commit import Committed, commit_plan
from consortium.state.evict import evict, making_way, wait_again
from tests.state.test_jobs import make_job, new_id, place, store


def running(db: Database, sites: tuple[str, ...] = ("fr-1",)) -> Job:
    """A job whose legs run."""
    job = store(db, make_job())
    place(db, job, sites=sites)
    with db.write() as connection:
        placed = jobs.find_job(connection, job.id)
        assert placed.attempt is not None
        for leg in placed.attempt.legs:
            jobs.set_leg(connection, leg, LegState.RUNNING, 20)
        return jobs.update_job(connection, placed, now_ms=20, state=JobState.RUNNING)


def evict_for(db: Database, victim: Job, owner: Job, **seen: int) -> Committed:
    eviction = Eviction(job=victim.id, for_job=owner.id, rule=EvictionRule.GUEST, gpus=2, lost_gpu_ms=1_800_000)
    plan = Plan(placements=(), reasons={}, evictions=(eviction,))
    versions = {victim.id: seen.get("victim_at", victim.version), owner.id: seen.get("owner_at", owner.version)}
    with db.write() as connection:
        return commit_plan(connection, plan, versions, incarnation=7, now_ms=30, new_id=new_id)


def legs_of(db: Database, job: Job) -> list[Leg]:
    with db.read() as connection:
        attempt = jobs.find_job(connection, job.id).attempt
    return list(attempt.legs) if attempt else []


def test_an_eviction_tells_every_leg_to_stop_and_keeps_for_whom(db: Database) -> None:
    victim, owner = running(db, ("de-1", "fr-1")), store(db, make_job())
    done = evict_for(db, victim, owner)
    assert done.evicted == (victim.id,)
    with db.read() as connection:
        shown = jobs.find_job(connection, victim.id)
        assert shown.state is JobState.PREEMPTING
        assert shown.reason is not None
        assert shown.reason.code is ReasonCode.PREEMPTED
        assert shown.reason.numbers == {
            "for_job": owner.id, "rule": "guest", "gpus": 2, "lost_gpu_ms": 1_800_000
        }  # fmt: skip
        assert "0.50 GPU-hours" in shown.reason.message
        assert jobs.open_attempt(connection, victim.id) is not None
        rows = [jobs.leg_row(connection, leg.id) for leg in legs_of(db, victim)]
        assert making_way(connection, legs_of(db, victim)) == {row.id for row in rows}
    assert [(row.state, row.stopping_for) for row in rows] == [("stopping", owner.id)] * 2
    with db.write() as connection:
        for leg in legs_of(db, victim):
            jobs.set_leg(connection, leg, LegState.STOPPED, 40)
        wait_again(connection, victim.id, shown.reason, 40)
        again = jobs.find_job(connection, victim.id)
        assert (again.state, again.reason) == (JobState.PENDING, shown.reason)
        assert jobs.job_row(connection, victim.id).not_before_ms == 0
        assert making_way(connection, legs_of(db, victim)) == set()
    assert place(db, again, version=again.version).placed == (victim.id,)


def test_the_job_that_gpus_are_taken_back_for_is_nominated_until_it_is_placed(db: Database) -> None:
    def nominated(*some: Job) -> list[bool]:
        with db.read() as connection:
            return [jobs.job_row(connection, job.id).nominated for job in some]

    victims, owner = [running(db), running(db)], store(db, make_job())
    both = tuple(
        Eviction(job=victim.id, for_job=owner.id, rule=EvictionRule.GUEST, gpus=2, lost_gpu_ms=0) for victim in victims
    )
    seen = {job.id: job.version for job in (*victims, owner)}
    with db.write() as connection:
        plan = Plan(placements=(), reasons={}, evictions=both)
        done = commit_plan(connection, plan, seen, incarnation=7, now_ms=30, new_id=new_id)
    assert done == Committed(placed=(), evicted=tuple(victim.id for victim in victims))
    assert nominated(owner, *victims) == [True, False, False]
    for victim in victims:
        with db.write() as connection:
            for leg in legs_of(db, victim):
                jobs.set_leg(connection, leg, LegState.STOPPED, 40)
            wait_again(connection, victim.id, None, 40)
    assert nominated(owner, *victims) == [True, False, False], "what they left is not given to anybody else"
    assert place(db, owner).placed == (owner.id,)
    assert nominated(owner) == [False]
    with db.write() as connection:
        placed = jobs.find_job(connection, owner.id)
        jobs.set_leg(connection, legs_of(db, owner)[0], LegState.LOST, 50)
        jobs.update_job(connection, placed, now_ms=50, state=JobState.PENDING)
    assert nominated(owner) == [False], "it has had its turn"


def test_who_makes_way_for_maintenance_makes_way_for_nobody(db: Database) -> None:
    victim, other = running(db), store(db, make_job())
    with db.write() as connection:
        assert evict(connection, victim.id, Reason(code=ReasonCode.PREEMPTED, message="maintenance"), 30)
        assert [jobs.job_row(connection, job.id).nominated for job in (victim, other)] == [False, False]


def test_an_eviction_from_an_older_view_is_left_out(db: Database) -> None:
    victim, owner = running(db), store(db, make_job())
    for seen in ({"victim_at": victim.version - 1}, {"owner_at": owner.version + 1}):
        done = evict_for(db, victim, owner, **seen)
        assert done.evicted == ()
    assert [leg.state for leg in legs_of(db, victim)] == [LegState.RUNNING]


def test_for_a_job_that_was_cancelled_meanwhile_nobody_is_evicted(db: Database) -> None:
    victim, owner = running(db), store(db, make_job())
    with db.write() as connection:
        jobs.update_job(connection, owner, now_ms=25, state=JobState.CANCELLED)
    assert evict_for(db, victim, owner).evicted == ()


def test_an_eviction_is_carried_out_once(db: Database) -> None:
    victim, owner = running(db), store(db, make_job())
    evict_for(db, victim, owner)
    with db.read() as connection:
        current = jobs.find_job(connection, victim.id)
    assert evict_for(db, current, owner).evicted == ()


def test_a_leg_that_waits_for_its_next_epoch_gives_its_gpus_back_at_once(db: Database) -> None:
    victim, owner = running(db), store(db, make_job())
    with db.write() as connection:
        jobs.set_leg(connection, legs_of(db, victim)[0], LegState.FAILED, 25, fault=Fault.SITE, retry_at_ms=99)
        victim = jobs.update_job(connection, victim, now_ms=25, state=JobState.PENDING)
    assert evict_for(db, victim, owner).evicted == (victim.id,)
    with db.read() as connection:
        assert jobs.find_job(connection, victim.id).state is JobState.PENDING
        assert jobs.open_attempt(connection, victim.id) is None
        assert jobs.waiting_legs(connection) == []
        assert jobs.job_row(connection, owner.id).nominated, "they are its, although no leg of the victim stops"


def test_a_plan_places_and_evicts_in_one_transaction(db: Database) -> None:
    victim, owner, third = running(db), store(db, make_job()), store(db, make_job())
    placement = Placement(job=third.id, legs=())
    eviction = Eviction(job=victim.id, for_job=owner.id, rule=EvictionRule.OWN, gpus=2, lost_gpu_ms=0)
    plan = Plan(placements=(placement,), reasons={}, evictions=(eviction,))
    seen = {victim.id: victim.version, owner.id: 1, third.id: 1}
    with db.write() as connection:
        done = commit_plan(connection, plan, seen, incarnation=7, now_ms=30, new_id=new_id)
    assert done == Committed(placed=(third.id,), evicted=(victim.id,))


def test_progress_counts_as_kept_when_it_moves(db: Database) -> None:
    job = running(db)
    leg = legs_of(db, job)[0]
    with db.write() as connection:
        for at_ms, progress in ((30, {"done": 1}), (40, {"done": 1}), (50, {"done": 2})):
            jobs.set_progress(connection, leg, progress, at_ms)
            book = jobs.epoch_row(connection, leg.id, leg.epoch)
            assert book is not None
            assert book.kept_ms == (30 if at_ms < 50 else 50)
        again = jobs.new_epoch(connection, leg, Epoch(incarnation=8, counter=1), 60, nodes={"n2": 2})
        book = jobs.epoch_row(connection, leg.id, again.epoch)
        assert book is not None
        assert (book.kept_ms, again.nodes) == (0, {"n2": 2})


def test_faults_of_a_node_count_until_its_cordon_ends(db: Database) -> None:
    leg = replace(legs_of(db, running(db))[0], nodes={"n1": 2})
    with db.write() as connection:
        nodes.add_fault(connection, leg, Fault.SITE, "Ray died", 100, nodes=())
        nodes.add_fault(connection, leg, Fault.NODE, "ECC", 110, nodes=("n1",))
        assert nodes.count_faults(connection, leg, 100) == 2
        assert nodes.count_faults(connection, leg, 105) == 1
        assert [fault.reason for fault in nodes.node_faults(connection, 0)] == ["ECC"]
        assert nodes.cordon(connection, "fr-1", "n1", by="server", reason="ECC", now_ms=120)
        assert not nodes.cordon(connection, "fr-1", "n1", by="fr/bruno", reason="again", now_ms=121)
        assert [(item.node, item.by) for item in nodes.cordons(connection, site="fr-1")] == [("n1", "server")]
        assert nodes.uncordon(connection, "fr-1", "n1", 130)
        assert not nodes.uncordon(connection, "fr-1", "n1", 131)
        assert nodes.cordons(connection) == []
        assert nodes.node_faults(connection, 0) == []
        nodes.add_fault(connection, leg, Fault.NODE, "ECC", 140, nodes=("n1",))
        assert len(nodes.node_faults(connection, 0)) == 1


def test_windows_stand_until_they_are_over_or_called_off(db: Database) -> None:
    def window(number: int, start_ms: int, end_ms: int) -> Window:
        return Window(
            id=f"win-{number}",
            kind=WindowKind.MAINTENANCE,
            site="fr-1",
            nodes=("n1",),
            start_ms=start_ms,
            end_ms=end_ms,
        )

    first, second = window(1, 50, 100), window(2, 10, 200)
    with db.write() as connection:
        for item in (first, second):
            windows.add(connection, item, by="fr/bruno", now_ms=5)
        assert [item.window for item in windows.standing(connection, 99)] == [second, first]
        assert [item.window for item in windows.standing(connection, 100)] == [second]
        assert windows.standing(connection, 0, site="de-1") == []
        windows.remove(connection, "win-2", 60)
        assert windows.find(connection, "win-2", 60) is None
        found = windows.find(connection, "win-1", 60)
        assert found is not None
        assert (found.by, found.created_ms) == ("fr/bruno", 5)
