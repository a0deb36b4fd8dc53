"""What an interruption costs, what a cycle may cost, and that everything that can run does, without a violation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium.config import Scenario
from consortium.config.quota import QuotaEntry
from consortium.config.scenario import ChangeEntry, JobEntry, Sharing, SiteEntry, WindowEntry
from consortium.domain.job import Priority
from consortium.domain.partner import Cotenancy, SiteState
from consortium.scheduler import WindowKind
from consortium.simulate.audit import Auditor
from consortium.simulate.engine import Engine
from consortium.simulate.estimates import Estimates
from consortium.simulate.events import Event, Kind
from consortium.simulate.run import workload
from tests.simulate.builders import H, scenario


def _entry(**changes: Any) -> JobEntry:
    fields: dict[str, Any] = {"account": "fr", "run_s": 3600, "walltime_s": 36_000, "gpus": 8}
    return JobEntry(**(fields | changes))


def _run(what: Scenario) -> tuple[Engine, list[Event]]:
    auditor, events = Auditor(what), list[Event]()

    def see(event: Event) -> None:
        auditor.see(event)
        events.append(event)

    engine = Engine(what, workload(what, None)[0], see)
    engine.run()
    auditor.close()
    assert auditor.found == []
    return engine, events


BORROWED = {
    "own": _entry(run_s=20_000, preemptible=False),
    "borrower": _entry(run_s=9000, at_s=60),
    "owner": _entry(account="de", at_s=4000),
}


def test_an_eviction_costs_the_work_since_the_checkpoint_and_two_minutes() -> None:
    """It ran from 60 s to 4000 s: 3940 s, of which two half hours are kept, 340 s done again and 120 s spent stopping.

    The owner then holds the node from 4120 s to 7720 s; the 5400 s left of 9000 s end at 13120 s.
    """
    engine, events = _run(scenario(jobs=BORROWED))
    totals = engine.totals
    assert totals.evictions == 1
    assert totals.evicted_gpu_ms == 8 * 3_940_000
    assert totals.lost_gpu_ms == 8 * (340_000 + 120_000)
    assert totals.waits_ms == {"own": 0, "owner": 120_000, "borrower": 13_120_000 - 60_000 - 9_000_000}
    assert [event.t_ms for event in events if event.kind is Kind.PREEMPT] == [4_120_000]


def test_an_evicted_job_waits_with_all_of_its_walltime_as_in_the_server() -> None:
    """The rest of it, 6400 s, would end before the window of 16,200 s; all of it, 10,000 s, would not."""
    jobs = BORROWED | {
        "borrower": _entry(run_s=9000, at_s=60, walltime_s=10_000),
        "owner": _entry(account="de", at_s=4000, walltime_s=4000),
    }
    windows = {"upkeep": WindowEntry(kind=WindowKind.MAINTENANCE, site="de-1", from_h=4.5, until_h=5)}
    _, events = _run(scenario(jobs=jobs, windows=windows))
    starts = [event.t_ms for event in events if event.kind is Kind.START and event.job.id == "borrower"]
    assert starts == [60_000, 18_000_000]


def test_a_job_without_checkpoints_starts_again_from_nothing() -> None:
    jobs = BORROWED | {"borrower": _entry(run_s=9000, at_s=60, checkpoint_every_s=0)}
    engine, _ = _run(scenario(jobs=jobs))
    assert engine.totals.lost_gpu_ms == 8 * (3_940_000 + 120_000)
    assert engine.totals.waits_ms["borrower"] == 7_720_000 + 9_000_000 - 60_000 - 9_000_000


def test_of_two_that_borrow_the_one_that_asked_not_to_be_preempted_stays() -> None:
    """`own` is at home, but its account holds twice its nominal: either could go, and the other asked to stay."""
    jobs = BORROWED | {"own": _entry(run_s=20_000), "borrower": _entry(run_s=9000, at_s=60, preemptible=False)}
    _, events = _run(scenario(jobs=jobs))
    assert [event.job.id for event in events if event.kind is Kind.PREEMPT] == ["own"]


def test_stopping_takes_as_long_as_the_settings_say() -> None:
    engine, _ = _run(scenario(jobs=BORROWED, settings={"stop_s": 600}))
    assert engine.totals.lost_gpu_ms == 8 * (340_000 + 600_000)
    assert engine.totals.waits_ms["owner"] == 600_000


def test_cycles_keep_their_distance_and_none_is_had_for_nothing() -> None:
    """One job per second for a minute: a cycle at once, then every thirty seconds; none while nobody waits."""
    jobs = {f"j{at:02}": _entry(gpus=1, run_s=7200, at_s=at) for at in range(16)}
    engine, events = _run(scenario(jobs=jobs))
    assert sorted({event.t_ms for event in events if event.kind is Kind.START}) == [0, 30_000]
    assert engine.totals.cycles == 2


def test_jobs_that_can_never_start_are_told_and_the_rest_runs() -> None:
    jobs = {"huge": _entry(gpus=64), "plain": _entry(), "odd": _entry(flavors=("other",))}
    what = scenario(jobs=jobs, flavors={"gpu": "1.0", "other": "1.0"})
    engine, events = _run(what)
    assert set(engine.totals.infeasible) == {"huge", "odd"}
    assert all(engine.totals.infeasible.values())
    assert set(engine.totals.waits_ms) == {"plain"}
    assert {event.job.id for event in events if event.kind is Kind.SUBMIT} == set(jobs)


def test_a_gang_over_sites_that_its_partner_does_not_own_is_told_where_nothing_is_shared() -> None:
    jobs = {"gang": _entry(gpus=4, sites=("de-1", "fr-1"))}
    engine, _ = _run(scenario(jobs=jobs, sharing=Sharing.NONE))
    assert "de-1" in engine.totals.infeasible["gang"]


def test_a_job_that_none_of_its_partners_sites_could_hold_is_told_where_another_could() -> None:
    sites = {"fr-1": SiteEntry(gpus=2), "fr-2": SiteEntry(gpus=2), "de-1": SiteEntry(gpus=8)}
    jobs = {"wide": _entry(gpus=4), "plain": _entry(gpus=2)}
    engine, _ = _run(scenario(jobs=jobs, sites=sites, sharing=Sharing.NONE))
    assert "fr-1 can never hold 4 GPUs" in engine.totals.infeasible["wide"]
    assert (set(engine.totals.infeasible), set(engine.totals.waits_ms)) == ({"wide"}, {"plain"})


def test_a_site_that_never_returns_leaves_its_jobs_unfinished_and_the_replay_ends() -> None:
    jobs = {"bound": _entry(account="de", sites=("de-1",), at_s=7200), "plain": _entry()}
    loss = {"loss": ChangeEntry(at_h=1, site="de-1", state=SiteState.LOST)}
    engine, _ = _run(scenario(jobs=jobs, changes=loss))
    assert (set(engine.totals.infeasible), set(engine.totals.waits_ms)) == (set(), {"plain"})


def test_a_site_that_comes_back_before_its_notice_is_over_keeps_its_jobs() -> None:
    jobs = {"long": _entry(account="de", run_s=20_000, sites=("de-1",))}
    changes = {
        "recall": ChangeEntry(at_h=1, site="de-1", state=SiteState.WITHDRAWN, notice_h=2),
        "stay": ChangeEntry(at_h=2, site="de-1", state=SiteState.ACTIVE),
    }
    engine, _ = _run(scenario(jobs=jobs, changes=changes))
    assert (engine.totals.interruptions, engine.totals.waits_ms) == (0, {"long": 0})


def test_a_second_withdrawal_has_its_own_notice() -> None:
    jobs = {"long": _entry(account="de", run_s=90_000, walltime_s=100_000, sites=("de-1",))}
    changes = {
        "recall": ChangeEntry(at_h=1, site="de-1", state=SiteState.WITHDRAWN, notice_h=10),
        "stay": ChangeEntry(at_h=2, site="de-1", state=SiteState.ACTIVE),
        "again": ChangeEntry(at_h=9, site="de-1", state=SiteState.WITHDRAWN, notice_h=10),
    }
    _, events = _run(scenario(jobs=jobs, changes=changes))
    assert [event.t_ms for event in events if event.kind is Kind.PREEMPT] == [19 * 3_600_000 + 120_000]


def test_a_drained_site_finishes_what_runs_and_takes_nothing_new() -> None:
    jobs = {"runs": _entry(account="de", sites=("de-1",)), "waits": _entry(account="de", sites=("de-1",), at_s=1900)}
    changes = {
        "drain": ChangeEntry(at_h=0.5, site="de-1", state=SiteState.DRAINING),
        "resume": ChangeEntry(at_h=3, site="de-1", state=SiteState.ACTIVE),
    }
    engine, _ = _run(scenario(jobs=jobs, changes=changes))
    assert engine.totals.waits_ms == {"runs": 0, "waits": 3 * H - 1_900_000}


def test_estimated_starts_are_judged_by_what_came() -> None:
    """`next` is told that it starts by the walltime's end of the first at the latest, and starts when that one ends.

    `last` is told the same of `next` behind it; but then shorter jobs come, go first, and it starts after all of them.
    """
    jobs = {
        "first": _entry(run_s=3600, walltime_s=4000, sites=("fr-1",)),
        "next": _entry(run_s=3600, walltime_s=4000, sites=("fr-1",), at_s=100),
        "last": _entry(run_s=3600, walltime_s=8000, sites=("fr-1",), at_s=200),
    }
    jobs |= {f"short-{at}": _entry(run_s=1500, walltime_s=1600, sites=("fr-1",), at_s=300 + at) for at in range(6)}
    what = scenario(jobs=jobs)
    estimates = Estimates(every=1)
    engine = Engine(what, workload(what, None)[0], estimates.see, estimates)
    engine.run()
    told = estimates.judge()
    assert told["jobs"] == told["sampled"] == 8
    assert told["later"] >= 1
    assert told["inside"] >= 1
    assert told["inside"] + told["sooner"] + told["later"] == 8


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """A federation of two to four states with limits, rules, windows and losses, and up to thirty jobs."""
    partners = ("de", "es", "fr", "uy")[: draw(st.integers(2, 4))]
    flavors = {"gpu": "1.0", "fast": "2.5"}
    sites = {
        f"{name}-1": SiteEntry(
            gpus=draw(st.integers(1, 24)),
            node_gpus=draw(st.sampled_from((4, 8))),
            flavor=draw(st.sampled_from(sorted(flavors))),
            cotenancy=draw(st.sampled_from(tuple(Cotenancy))),
        )
        for name in partners
    }
    limit = st.one_of(st.none(), st.integers(0, 12))
    quotas: dict[str, dict[str, QuotaEntry]] = {}
    for name in partners:
        if draw(st.booleans()):
            own = {
                flavor: sum(s.gpus for k, s in sites.items() if k[:2] == name and s.flavor == flavor)
                for flavor in flavors
            }
            quotas[name] = {
                flavor: QuotaEntry(
                    borrowing_limit=draw(limit),
                    lending_limit=draw(st.one_of(st.none(), st.integers(0, own[flavor]))),
                )
                for flavor in flavors
            }  # fmt: skip
    jobs = {}
    for number in range(draw(st.integers(1, 30))):
        run_s = draw(st.integers(60, 20_000))
        at = draw(st.sampled_from((0, 0, 0, 1, 2)))
        jobs[f"j{number:02}"] = JobEntry(
            account=draw(st.sampled_from(partners)),
            at_s=draw(st.integers(0, 20_000)),
            run_s=run_s,
            walltime_s=draw(st.integers(run_s, 10 * run_s)),
            gpus=draw(st.sampled_from((1, 1, 2, 3, 4, 8, 12, 16))),
            priority=draw(st.sampled_from(tuple(Priority))),
            flavors=draw(st.sampled_from(((), (), ("gpu",), ("fast", "gpu")))),
            sites=tuple(sorted(draw(st.permutations(sorted(sites)))[:at])),
            preemptible=draw(st.sampled_from((True, True, False))),
        )
    changes, windows = {}, {}
    lost = draw(st.sampled_from((None, *sorted(sites))))
    if lost is not None:
        begun = draw(st.floats(0, 6))
        state = draw(st.sampled_from((SiteState.LOST, SiteState.DRAINING, SiteState.WITHDRAWN)))
        notice = draw(st.floats(0, 2)) if state is SiteState.WITHDRAWN else 0.0
        changes["gone"] = ChangeEntry(at_h=begun, site=lost, state=state, notice_h=notice)
        changes["back"] = ChangeEntry(at_h=begun + draw(st.floats(0.1, 6)), site=lost, state=SiteState.ACTIVE)
    if draw(st.booleans()):
        begun = draw(st.floats(0, 6))
        windows["w"] = WindowEntry(
            kind=WindowKind.MAINTENANCE, site=draw(st.sampled_from(sorted(sites))), from_h=begun,
            until_h=begun + draw(st.floats(0.1, 3)),
        )  # fmt: skip
    return scenario(
        sites=sites, flavors=flavors, quotas=quotas, jobs=jobs, changes=changes, windows=windows,
        settings={"min_run_s": draw(st.sampled_from((60, 1800)))},
    )  # fmt: skip


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(scenarios())
def test_whatever_happens_every_job_that_can_run_finishes_and_no_rule_is_broken(what: Scenario) -> None:
    engine, events = _run(what)
    assert set(engine.totals.waits_ms) | set(engine.totals.infeasible) == set(what.jobs)
    assert all(wait_ms >= 0 for wait_ms in engine.totals.waits_ms.values())
    ran: dict[str, int] = {}
    began: dict[str, int] = {}
    for event in events:
        if event.kind is Kind.START:
            began[event.job.id] = event.t_ms
        elif event.kind in (Kind.FINISH, Kind.PREEMPT):
            ran[event.job.id] = ran.get(event.job.id, 0) + event.t_ms - began[event.job.id]
    assert all(ran[name] >= what.jobs[name].run_s * 1000 for name in engine.totals.waits_ms)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_scenario_has_the_same_events(seed: int) -> None:
    from consortium.config import load_scenario

    what = load_scenario("site-loss", [f"seed={seed}", "streams.ca.until_h=30", "streams.es.until_h=30"])
    assert _run(what)[1] == _run(what)[1]
