"""Pictures of a training: what is drawn, from rounds and from what legs measured."""

from __future__ import annotations

from dataclasses import replace
from xml.dom.minidom import parseString

import pytest

from consortium.domain.training import Certificate, Commit, Contribution, Round, RoundPhase
from consortium.train.plot import Curves, Measured, Point, Span, draw, points, spans

JOB = "job-0000000000000000000000000a"


def closed(number: int, losses: dict[str, float], refused: tuple[str, ...] = ()) -> Round:
    commits = [
        Commit(job=JOB, round=number, site=site, tokens=100, steps=5, digest=site, norm=(1.0).hex(), loss=loss.hex())
        for site, loss in losses.items()
    ]
    counted = tuple(
        Contribution(site=site, digest=site, tokens=100, weight=(0.5).hex(), clip=(1.0).hex())
        for site in sorted(losses)
        if site not in refused
    )
    return Round(
        job=JOB,
        number=number,
        phase=RoundPhase.CLOSED,
        expected=tuple(losses),
        commits=tuple(commits),
        certificate=Certificate(job=JOB, round=number, previous_outer="", contributions=counted, verdicts_digest=""),
    )


def test_a_refused_contribution_and_an_open_round_are_no_part_of_the_curve():
    first = closed(1, {"de-1": 3.0, "fr-1": 2.5, "uy-1": 9.0}, refused=("uy-1",))
    running = replace(closed(3, {"de-1": 2.0}), phase=RoundPhase.JUDGING)
    found = points([running, closed(2, {"de-1": 2.5, "fr-1": 2.0}), first])
    assert found == (
        Point(round=1, tokens=200, losses={"de-1": 3.0, "fr-1": 2.5}),
        Point(round=2, tokens=200, losses={"de-1": 2.5, "fr-1": 2.0}),
    )


def test_a_loss_that_is_none_is_no_point():
    (one,) = points([closed(1, {"de-1": 3.0, "fr-1": float("nan"), "uy-1": 1e300})])
    assert one.losses == {"de-1": 3.0}


def test_a_round_that_was_logged_twice_counts_as_it_was_last_and_half_a_round_does_not():
    history = {
        "training_s": [(1, 1000, 5.0), (1, 2000, 6.0), (2, 3000, 7.0)],
        "waiting_s": [(1, 1000, 1.0), (1, 2000, 2.0)],
        "sending_s": [(1, 2000, 0.5)],
        "loss": [(1, 2000, 3.0)],
    }
    assert spans("fr-1", history) == (
        Span(site="fr-1", round=1, end_ms=2000, training_s=6.0, waiting_s=2.0, sending_s=0.5),
    )


def test_the_picture_names_sites_languages_and_times_and_is_the_same_again():
    curves = Curves(
        job=JOB,
        name="laws",
        languages={"de-1": ("de",), "fr-1": ("fr",)},
        points=points([closed(n, {"de-1": 3.0 / n, "fr-1": 2.5 / n}) for n in (1, 2)]),
        spans=tuple(
            Span(site=site, round=n, end_ms=100_000 * n, training_s=70, waiting_s=30, sending_s=sending, fetching_s=1)
            for site, sending in (("de-1", 5), ("fr-1", 60))
            for n in (1, 2)
        ),
        held_out=(Measured(language="fr", round=0, loss=4.0), Measured(language="fr", round=2, loss=2.0)),
    )
    once = draw(curves, "svg")
    assert once == draw(curves, "svg")
    assert b"<svg" in once
    text = once.decode()
    for said in ("de-1 (de) training", "fr held out", "tokens, all sites (2 rounds)", "computing 70.0% of the time",
                 "minutes", "communicate"):  # fmt: skip
        assert f"<!-- {said} -->" in text
    bare = draw(replace(curves, spans=(), held_out=()), "png")
    assert bare.startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_what_is_no_time_is_left_out(value):
    history = {"training_s": [(1, 1000, 5.0), (2, 2000, value)], "waiting_s": [(1, 1000, value), (2, 2000, 1.0)]}
    assert spans("fr-1", history | {"sending_s": [(1, 1000, value)]}) == ()
    history = {"training_s": [(1, 1000, 5.0)], "waiting_s": [(1, 1000, 1.0)], "sending_s": [(1, 1000, value)]}
    assert spans("fr-1", history) == (Span(site="fr-1", round=1, end_ms=1000, training_s=5.0, waiting_s=1.0),)


def test_a_language_that_looks_like_a_formula_is_drawn_as_it_is():
    curves = Curves(
        job=JOB,
        name="laws",
        languages={"fr-1": ("$\\frac{", "<&>")},
        points=(Point(round=1, tokens=1, losses={"fr-1": 2.0}),),
        held_out=(Measured(language="$\\frac{$", round=1, loss=1.0),),
    )
    text = parseString(draw(curves, "svg")).toxml()  # well-formed
    assert "$\\frac{$ held out" in text


def test_the_picture_of_a_long_training_can_be_opened():
    sites = ("de-1", "fr-1", "uy-1")
    numbers = range(1, 1_001)
    curves = Curves(
        job=JOB,
        name="laws",
        languages={},
        points=tuple(Point(round=n, tokens=100, losses=dict.fromkeys(sites, 5 / n)) for n in numbers),
        spans=tuple(
            Span(site=site, round=n, end_ms=60_000 * n, training_s=40, waiting_s=20, sending_s=3)
            for site in sites
            for n in numbers
        ),
    )
    once = draw(curves, "svg")
    assert once == draw(curves, "svg")
    assert len(once) < 200_000
    assert "<!-- computing 66.7% of the time -->" in once.decode()
