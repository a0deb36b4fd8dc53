from __future__ import annotations

from pathlib import Path

from consortium.scheduler.explain import HORIZON_JOBS
from tests.scheduler.example import text


def test_the_worked_example_in_the_docs_is_what_the_scheduler_says():
    page = (Path(__file__).parents[2] / "docs" / "scheduling.md").read_text()
    assert text() in page
    assert f"where more than {HORIZON_JOBS:,} jobs wait" in " ".join(page.split())
