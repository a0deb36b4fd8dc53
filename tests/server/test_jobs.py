"""A job's way through a real server, with scripted sites."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.integration


def test_a_job_goes_from_submission_to_success_and_its_records_reach_the_ledger(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    site = fed.site("fr-1")
    site.poll()
    answer = fed.submit(fed.spec([laws]))
    assert answer.status_code == 201, answer.text
    job = answer.json()
    assert job["state"] == "pending"
    offer = site.run(job["id"])
    assert offer.inputs[0].id == laws.id
    assert sum(offer.nodes.values()) == 2
    assert fed.job(job["id"])["state"] == "running"
    site.succeed(offer, metrics={"kept": 9})
    done = fed.job(job["id"])
    assert done["state"] == "succeeded", done
    assert done["result"]["fr-1"]["metrics"] == {"kept": 9}
    assert not site.legs
    kinds = [record["type"] for record in fed.records("server")]
    assert kinds.count("job") == 1
    assert kinds.count("lease") == 1
    assert kinds.count("manifest") == 1
