"""The order of service: class, fair-share level, then expected work and age."""

from __future__ import annotations

import pytest

from consortium.domain.job import Priority
from consortium.scheduler import schedule
from tests.builders import NOW_MS, account, site
from tests.scheduler.worlds import H100, in_turn, job, started, world

DAY_MS = 86_400_000
OLD, NEW = {"created_ms": NOW_MS - 2 * DAY_MS}, {"created_ms": NOW_MS}


def one_each(first: dict, second: dict, **settings) -> str:
    """Who of two whole-site jobs starts, `first` or `second`; the second is the younger and has the larger id."""
    accounts = (account("fr", {H100: 8}), account("fr/law", {H100: 0}), account("de", {H100: 8}))
    jobs = (job(1, gpus=8, **first), job(2, gpus=8, **second))
    sites = (site("fr-1", H100),)
    (winner,) = started(schedule(world(*jobs, sites=sites, accounts=accounts, **settings)))
    return {jobs[0].id: "first", jobs[1].id: "second"}[winner]


@pytest.mark.parametrize(
    ("story", "first", "second", "winner"),
    [
        ("equal work: the older", {}, {}, "first"),
        ("a higher class before any work or age", {"priority": Priority.NORMAL},
         {"priority": Priority.HIGH, "walltime_s": 360_000}, "second"),
        ("the shorter before the older", {"walltime_s": 7200}, {"walltime_s": 3600}, "second"),
        ("the expected time counts, not the walltime", {"walltime_s": 7200, "expected_s": 600}, {}, "first"),
        ("who waited for ageing_s longer may have twice the work", {"walltime_s": 7100} | OLD, NEW, "first"),
        ("and not more than twice", {"walltime_s": 7300} | OLD, NEW, "second"),
        ("in time the largest is first", {"walltime_s": 360_000, "created_ms": NOW_MS - 20 * DAY_MS}, NEW, "first"),
        ("a nominated job before everything", {"nominated": True, "priority": Priority.LOW, "walltime_s": 360_000},
         {"priority": Priority.HIGH}, "first"),
        ("within nominal before a borrower", {"account": "fr/law", "walltime_s": 60}, {"account": "de"}, "second"),
    ],
)  # fmt: skip
def test_who_of_two_is_served_first(story, first, second, winner):
    assert one_each(first, second) == winner, story


def test_ageing_is_a_setting():
    old, new = {"walltime_s": 7100, "created_ms": NOW_MS - DAY_MS}, {"created_ms": NOW_MS}
    assert one_each(old, new) == "second"
    assert one_each(old, new, ageing_s=86_400) == "first"


def test_a_project_within_its_nominal_is_not_behind_the_jobs_of_another_partner_itself():
    accounts = (account("fr", {H100: 0}), account("fr/law", {H100: 8}), account("de", {H100: 8}))
    project, partner = in_turn(1, gpus=8, account="fr/law"), in_turn(2, gpus=8, account="de")
    plan = schedule(world(project, partner, sites=(site("fr-1", H100),), accounts=accounts))
    assert list(started(plan)) == [project.id]
