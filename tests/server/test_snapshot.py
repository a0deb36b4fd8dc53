"""What the running server decides from, dumped by an admin and decided again without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consortium.domain.job import Resources
from consortium.domain.partner import Role
from consortium.scheduler.recorded import replay
from tests.conftest import Call

pytestmark = pytest.mark.integration


def test_a_cycle_of_the_server_is_dumped_and_decided_again(
    fed: Any, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laws, site = fed.dataset("fr-1", "laws-fr"), fed.site("fr-1")
    first = fed.submit(fed.spec([laws], resources=Resources(gpus=6, walltime_s=600))).json()["id"]
    offer = site.run(first)
    second = fed.submit(fed.spec([laws], resources=Resources(gpus=4, walltime_s=600))).json()["id"]
    monkeypatch.setenv("CONSORTIUM_TOKEN", fed.token("fr/bruno", (Role.ADMIN,)))
    monkeypatch.setenv("CONSORTIUM_SERVER", fed.url)
    path = tmp_path / "cycle.json"
    dumped = call("snapshot", "dump", "-o", str(path))
    assert (dumped.code, dumped.out) == (0, ""), dumped.err
    found = replay(path.read_bytes())
    assert found.difference == ""
    assert [leg.leg for leg in found.snapshot.held] == [offer.leg]
    assert list(found.plan.reasons) == [second]
    shown = call("snapshot", "replay", str(path))
    assert (shown.code, f"digest       {found.digest}" in shown.out) == (0, True)
    printed = call("snapshot", "dump")
    assert set(json.loads(printed.out)) == {"plan", "snapshot"}
    assert call("snapshot", "dump", "-o", str(tmp_path)).code == 2
    fed.call("fr/amelie", "POST", f"/v1/jobs/{second}/cancel")
    site.succeed(offer)


def test_only_admins_see_what_everybody_waits_for(fed: Any) -> None:
    for person in ("fr/amelie", "fr/claire", "fr-1"):
        refused = fed.call(person, "GET", "/v1/snapshot")
        assert refused.status_code == 403, person
