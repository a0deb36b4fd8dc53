"""What people see of a running stage."""

from __future__ import annotations

from typing import Any

from consortium.data.progress import Advance, Meter


def test_rates_and_time_left_are_said_at_most_once_a_second_and_at_the_end() -> None:
    now = [100.0]
    said: list[dict[str, Any]] = []
    progress = Meter(lambda **numbers: said.append(numbers), clock=lambda: now[0]).over("laws")
    for done in range(1, 41):
        now[0] += 0.25
        progress(Advance("screen", done, 40, documents=100 * done, text_bytes=1_000_000 * done))
    assert len(said) == 11  # the first, one a second, the last
    assert said[0] == {
        "dataset": "laws", "phase": "screen", "done": 1, "of": 40,
        "seconds_left": 10, "documents": 100, "documents_per_s": 400, "mb_per_s": 4.0,
    }  # fmt: skip
    half = said[5]
    assert (half["done"], half["documents"], half["documents_per_s"], half["mb_per_s"]) == (21, 2_100, 400, 4.0)
    assert half["seconds_left"] == round(0.25 * 19)
    assert said[-1]["seconds_left"] == 0


def test_a_new_phase_begins_anew() -> None:
    now = [0.0]
    said: list[dict[str, Any]] = []
    meter = Meter(lambda **numbers: said.append(numbers), clock=lambda: now[0])
    meter.over("a")(Advance("screen", 1, 1))
    now[0] += 0.1
    meter.over("a")(Advance("settle", 1, 4))
    meter.over("b")(Advance("settle", 1, 4))
    assert [(each["dataset"], each["phase"]) for each in said] == [("a", "screen"), ("a", "settle"), ("b", "settle")]
