from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Job, JobSpec, JobState, Leg, LegState
from consortium.domain.partner import Site
from consortium.domain.protocol import PollRequest
from consortium.domain.quota import Account
from consortium.domain.records import UsageRow
from consortium.domain.units import MAX_SAFE_INTEGER
from consortium.errors import UsageError
from tests.builders import account, dataset, new_id, site, spec

JOB = Job(
    id=new_id("job", 1),
    spec=spec("pretrain", gpus=8, gpus_per_worker=4, params={"outer": {"lr": 0.7}, "seed": 2**60}),
    signature="c2ln",
    state=JobState.PENDING,
    created_ms=1,
    updated_ms=2,
    version=3,
    reason=Reason(code=ReasonCode.QUOTA, message="waits", numbers={"needed": 8, "flavor": "h100-sxm"}),
)


@pytest.mark.parametrize(
    ("cls", "value"),
    [
        (Job, replace(JOB, spec=spec("clean"))),
        (Site, site("fr-1", nodes=(8, 4))),
        (Dataset, dataset(attributes={"vocab": "a"})),
        (Account, account("fr/health", {"h100-sxm": (4, None, 2)})),
    ],
)
def test_what_goes_out_comes_back(cls, value):
    assert from_json(cls, json.loads(json.dumps(to_json(value)))) == value


@given(st.integers(0, 2**80))
def test_integers_above_what_every_reader_keeps_travel_as_strings(end_ms):
    row = UsageRow(
        leg="l", epoch="1.1", job="j", account="fr", site="fr-1", flavor="f", gpus=1, start_ms=0, end_ms=end_ms
    )
    sent = to_json(row)
    assert isinstance(sent["end_ms"], str) == (end_ms > MAX_SAFE_INTEGER)
    assert from_json(UsageRow, json.loads(json.dumps(sent))) == row


def test_large_numbers_inside_free_form_parameters_leave_as_strings_too():
    sent = to_json(JOB)
    assert sent["spec"]["params"]["seed"] == str(2**60)
    assert sent["reason"]["numbers"] == {"needed": 8, "flavor": "h100-sxm"}
    assert to_json([True, 1, None]) == [True, 1, None]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"resources": {"gpus": -5, "walltime_s": 60}}, "resources"),
        ({"resources": {"gpus": "many", "walltime_s": 60}}, "resources.gpus"),
        ({"resources": {"gpus": 3, "gpus_per_worker": 2, "walltime_s": 60}}, "multiple of gpus_per_worker"),
        ({"kind": "mine-bitcoin"}, "kind"),
        ({"account": "France"}, "France"),
        ({"name": None}, "name"),
        ({"min_sites": 0}, "min_sites"),
        ({"_target_": "os.system"}, "_target_"),
    ],
)
def test_a_bad_value_is_named_by_its_path(change, path):
    data = to_json(spec("clean")) | change
    with pytest.raises(UsageError) as fault:
        from_json(JobSpec, data, where="POST /v1/jobs")
    assert path in fault.value.what
    assert fault.value.where == "POST /v1/jobs"


def test_a_missing_field_is_named():
    data = to_json(spec("clean"))
    del data["purpose"]
    with pytest.raises(UsageError, match="purpose"):
        from_json(JobSpec, data)


@pytest.mark.parametrize("data", [None, [], "text", 7])
def test_something_else_than_an_object_is_refused(data):
    with pytest.raises(UsageError, match="not a valid Leg"):
        from_json(Leg, data)


def test_an_agent_one_version_ahead_may_send_more_than_we_know():
    data = {
        "site": "fr-1", "protocol": 2, "healthy": True, "unhealthy_reason": "", "code_digest": "", "policy_digest": "",
        "highest_epoch": {"incarnation": 1, "counter": 7}, "legs": [], "mood": "sunny",
    }  # fmt: skip
    assert from_json(PollRequest, data).highest_epoch.counter == 7


def test_states_travel_by_their_value():
    assert to_json([LegState.HELD, JobState.DENIED]) == ["held", "denied"]
