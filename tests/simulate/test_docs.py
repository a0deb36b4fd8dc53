"""docs/simulate.md: its example runs, and it names every figure and every key there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from consortium.config import Scenario, load_scenario
from consortium.simulate import replay

TEXT = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text()


def test_the_example_is_a_scenario_that_runs(tmp_path: Path) -> None:
    found = re.search(r"^```yaml\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)
    assert found is not None
    (tmp_path / "scenario").mkdir()
    (tmp_path / "scenario" / "example.yaml").write_text(found[1])
    result = replay(load_scenario("example", configs=tmp_path))
    assert result.figures["completed"] == result.figures["jobs"] > 100
    assert result.broken == ()


def test_every_figure_and_every_key_is_documented() -> None:
    code = set(re.findall(r"`([a-z0-9_]+)", re.sub(r"^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)))
    figures = replay(load_scenario("federated-gangs", ["streams.fr.until_h=1", "estimate_every=1"])).figures
    keys = {field.name for field in dataclasses.fields(Scenario)} - {"name", "about"}
    per_partner = figures["per_partner"]["fr"]
    assert sorted({*figures, *per_partner, *keys} - code - {"scenario", "variant"}) == []
