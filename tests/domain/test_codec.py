from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import ArrayMember, Job, JobSpec, JobState, Leg, LegState, Resources, SignedSpec
from consortium.domain.partner import Site
from consortium.domain.protocol import PollRequest
from consortium.domain.quota import Account
from consortium.domain.records import UsageRow
from consortium.domain.units import MAX_SAFE_INTEGER
from consortium.errors import UsageError
from consortium.keys.canonical import digest_json
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


@pytest.mark.parametrize(
    ("given", "digest"),
    [
        (spec("clean"), "sha256:51c19def89ee63af71b947177671adadef812ba14928e3371f399e5cfeb4b381"),
        (
            spec("pretrain", gpus=8, gpus_per_worker=4, flavors=("h100-sxm",), inputs=("ds-1",), sites=("fr-1",),
                 params={"outer": {"lr": 0.7}, "seed": 2**60}),
            "sha256:5656fd8aa43e83af517ff08a7e35a07ea891d173e675e47e55ec6e3466a93903",
        ),
    ],
)  # fmt: skip
def test_a_spec_signed_before_a_field_existed_keeps_its_digest(given, digest):
    """The digests were taken from the code before `after`, `array`, `deadline_ms` and the others."""
    assert digest_json(given) == digest
    assert digest_json({"spec": given}) == digest_json({"spec": from_json(JobSpec, to_json(given))})


@pytest.mark.parametrize(
    "wish",
    [
        {"after": (new_id("job", 1),)},
        {"array": ArrayMember(id=new_id("arr", 1), index=0, size=2)},
        {"deadline_ms": 1},
        {"preemptible": False},
        {"checkpoint_every_s": 600},
        {"resources": Resources(gpus=1, walltime_s=3600, flavors=("mi300x",), throughput={"mi300x": "1"})},
    ],
)
def test_what_a_spec_asks_for_is_signed_and_comes_back(wish):
    asked = replace(spec(), **wish)
    assert digest_json(asked) not in (digest_json(spec()), digest_json(replace(spec(), nonce="1")))
    assert from_json(SignedSpec, json.loads(json.dumps(to_json(SignedSpec(spec=asked, signature="s"))))).spec == asked
    (field,) = wish
    assert field == "resources" or (field in to_json(asked) and field not in to_json(spec()))
