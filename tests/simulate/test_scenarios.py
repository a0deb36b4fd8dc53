"""Small scenarios whose every event was worked out by hand: `tests/scenarios/NAME.events` says what happens when."""

from __future__ import annotations

from pathlib import Path

import pytest

from consortium.config import load_scenario, scenario_names
from consortium.simulate.audit import Auditor
from consortium.simulate.engine import Engine
from consortium.simulate.events import Event
from consortium.simulate.run import workload

ROOT = Path(__file__).parents[1] / "scenarios"


def _told(event: Event) -> str:
    return f"{event.t_ms / 1000:g} {event.kind.value} {event.job.id} {event.site}".rstrip()


@pytest.mark.parametrize("name", scenario_names(ROOT))
def test_what_happens_is_what_was_expected(name: str) -> None:
    scenario = load_scenario(name, configs=ROOT)
    auditor, events = Auditor(scenario), list[Event]()

    def see(event: Event) -> None:
        auditor.see(event)
        events.append(event)

    Engine(scenario, workload(scenario, None)[0], see).run()
    auditor.close()
    assert [_told(event) for event in events] == (ROOT / f"{name}.events").read_text().splitlines()
    assert auditor.found == []


def test_every_expectation_has_its_scenario() -> None:
    assert sorted(path.stem for path in ROOT.glob("*.events")) == list(scenario_names(ROOT))
