"""What is drawn of a training, from what the database holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consortium.domain.job import Job, JobKind, JobState
from consortium.server.core import Core
from consortium.server.curves import curves
from consortium.state import Database, jobs
from consortium.train.plot import Measured
from tests import builders as b


@pytest.mark.parametrize(
    "told",
    [None, [1], {"en": {"x": 1.0}}, {"en": {"-5": 1.0}}, {"en": {"1": "high"}}, {"en": [1, 2]}, {"en": {"1": None}}],
)
def test_a_measurement_that_is_none_stops_nobodys_picture(tmp_path: Path, empty_state: Path, told: Any) -> None:
    shutil.copy(empty_state, tmp_path / "state.db")
    database = Database(f"sqlite:///{tmp_path}/state.db")
    trained, measured = b.new_id("job", 1), b.new_id("job", 2)
    specs = {
        trained: b.spec(JobKind.PRETRAIN, inputs=(), nonce="1"),
        measured: b.spec(JobKind.EVALUATE, inputs=(), model=trained, nonce="2"),
    }
    says = {"fr-1": {"metrics": {"by_round": {"fr": {"0": 4.0, "2": 2}}}}, "uy-1": {"metrics": {"by_round": told}}}
    with database.write() as connection:
        for number, (name, spec) in enumerate(specs.items()):
            jobs.insert_job(
                connection,
                Job(id=name, spec=spec, signature=str(number), state=JobState.SUCCEEDED, created_ms=1, updated_ms=1,
                    version=1),
            )  # fmt: skip
        jobs.update_job(connection, jobs.find_job(connection, measured), now_ms=2, result=says)
    core = cast(Core, SimpleNamespace(db=database, tracking_away=True))
    found = curves(core, trained).held_out
    database.close()
    assert found == (Measured(language="fr", round=0, loss=4.0), Measured(language="fr", round=2, loss=2.0))
