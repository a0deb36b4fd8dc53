from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.job import JOB_TRANSITIONS, ArrayMember, Epoch, JobState, LegState, Priority, Resources
from consortium.domain.partner import Partner
from consortium.domain.quota import Account, Quota
from consortium.domain.records import UsageRow
from tests.builders import flavor, new_id, site, spec


def test_every_state_has_its_transitions_and_final_ones_have_none():
    assert set(JOB_TRANSITIONS) == set(JobState)
    assert {state for state, to in JOB_TRANSITIONS.items() if not to} == {state for state in JobState if state.final}


def test_every_state_is_reached_from_pending_and_every_live_one_can_end():
    reached, todo = {JobState.PENDING}, [JobState.PENDING]
    while todo:
        for state in JOB_TRANSITIONS[todo.pop()] - reached:
            reached.add(state)
            todo.append(state)
    assert reached == set(JobState)
    for state in JobState:
        assert state.final or JobState.CANCELLED in JOB_TRANSITIONS[state]


@pytest.mark.parametrize(
    ("start", "to", "allowed"),
    [
        (JobState.PENDING, JobState.RUNNING, False),
        (JobState.PENDING, JobState.STARTING, True),
        (JobState.STARTING, JobState.PENDING, True),
        (JobState.RUNNING, JobState.PENDING, True),
        (JobState.RUNNING, JobState.DENIED, False),
        (JobState.SUCCEEDED, JobState.FAILED, False),
    ],
)
def test_what_may_follow_what(start, to, allowed):
    assert (to in JOB_TRANSITIONS[start]) == allowed


def test_an_epoch_of_a_leg_ends_in_a_final_state_only():
    live = {LegState.OFFERED, LegState.HELD, LegState.STARTING, LegState.RUNNING, LegState.STOPPING}
    assert {state for state in LegState if not state.final} == live


def test_priorities_in_order():
    assert sorted(Priority, key=lambda item: item.rank) == [Priority.HIGH, Priority.NORMAL, Priority.LOW]


_counts = st.integers(0, 10**12)


@given(_counts, _counts, _counts, _counts)
def test_epochs_compare_by_incarnation_then_counter_and_survive_text(incarnation, counter, incarnation_2, counter_2):
    one, two = Epoch(incarnation=incarnation, counter=counter), Epoch(incarnation=incarnation_2, counter=counter_2)
    assert (one < two) == ((incarnation, counter) < (incarnation_2, counter_2))
    assert Epoch.parse(str(one)) == one


@pytest.mark.parametrize(
    ("gpus", "worker", "walltime_s", "words"),
    [
        (0, 1, 60, "gpus must be"),
        (-4, 1, 60, "gpus must be"),
        (10**9, 1, 60, "gpus must be"),
        (6, 4, 60, "multiple"),
        (1, 0, 60, "multiple"),
        (1, 1, 0, "walltime_s"),
        (1, 1, 10**9, "walltime_s"),
    ],
)
def test_absurd_resources_are_refused(gpus, worker, walltime_s, words):
    with pytest.raises(ValueError, match=words):
        Resources(gpus=gpus, gpus_per_worker=worker, walltime_s=walltime_s)


@pytest.mark.parametrize("changes", [{"name": "Bad Name"}, {"account": "fr/UPPER"}, {"min_sites": 0}])
def test_a_spec_checks_its_own_fields(changes):
    with pytest.raises(ValueError, match=r"name|account|min_sites"):
        spec("clean", **changes)


@pytest.mark.parametrize(
    ("nominal", "borrowing", "lending"), [(-1, None, None), (1, -1, None), (4, None, 5), (2_000_000, None, None)]
)
def test_absurd_quotas_are_refused(nominal, borrowing, lending):
    with pytest.raises(ValueError, match=r"fr"):
        Quota(account="fr", flavor="f", nominal=nominal, borrowing_limit=borrowing, lending_limit=lending)


def test_the_root_account_has_an_empty_name_and_others_have_proper_ones():
    assert Account(id="", parent=None).id == ""
    with pytest.raises(ValueError, match="Fr"):
        Account(id="Fr", parent="")


@pytest.mark.parametrize(
    "make",
    [
        lambda: site("fr-1", partner="de"),
        lambda: site("fr-1", nodes=()),
        lambda: site("fr-1", nodes=(8, 0)),
        lambda: flavor(reference_factor="0"),
        lambda: flavor(memory_bytes=0),
        lambda: flavor("H100!"),
        lambda: Partner(id="fra", name="France", languages=("fr",)),
        lambda: Partner(id="fr", name="France", languages=("fr",), weight=0),
        lambda: UsageRow(leg="l", epoch="1.1", job="j", account="fr", site="fr-1", flavor="f", gpus=1, start_ms=5,
                         end_ms=4),
    ],
)  # fmt: skip
def test_nouns_that_contradict_themselves_are_refused(make):
    with pytest.raises(ValueError, match=r"."):
        make()


def test_usage_is_gpus_times_a_half_open_interval():
    row = UsageRow(leg="l", epoch="1.1", job="j", account="fr", site="fr-1", flavor="f", gpus=8, start_ms=5, end_ms=9)
    assert row.gpu_ms == 32


ARRAY = new_id("arr", 1)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (
            lambda: Resources(gpus=1, walltime_s=1, flavors=("a", "b"), throughput={"a": "1"}),
            "every one of the flavors",
        ),
        (lambda: Resources(gpus=1, walltime_s=1, throughput={"a": "1"}), "every one of the flavors"),
        (lambda: Resources(gpus=1, walltime_s=1, flavors=("a",), throughput={"a": "fast"}), "decimal number"),
        (lambda: Resources(gpus=1, walltime_s=1, flavors=("a",), throughput={"a": "1/2"}), "0.001 to 1000"),
        (lambda: Resources(gpus=1, walltime_s=1, flavors=("a",), throughput={"a": "0"}), "0.001 to 1000"),
        (lambda: ArrayMember(id="arr-1", index=0, size=1), "form arr-"),
        (lambda: ArrayMember(id=ARRAY, index=0, size=1_001), "1 to 1,000 members"),
        (lambda: ArrayMember(id=ARRAY, index=2, size=2), "index must be 0 to 1"),
        (lambda: ArrayMember(id=ARRAY, index=0, size=2, limit=3), "limit must be"),
        (lambda: spec(after=("laws",)), "no job id"),
        (lambda: spec(after=(new_id("job", 1), new_id("job", 1))), "each once"),
        (lambda: spec(deadline_ms=-1), "deadline_ms"),
        (lambda: spec(checkpoint_every_s=-1), "checkpoint_every_s"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(make, what):
    with pytest.raises(ValueError, match=what):
        make()


def test_a_training_reads_the_model_it_goes_on_from_and_no_other_job_stands_in_for_it():
    decoy = spec("pretrain", model=new_id("job", 1), params={"start": {"job": new_id("job", 2)}})
    assert decoy.reads_model == new_id("job", 2), "its partners are asked, whatever `model` says"
    assert spec("pretrain", model=new_id("job", 1), params={}).reads_model == ""
    assert spec("evaluate", model=new_id("job", 1), params={"start": {"job": new_id("job", 2)}}).reads_model == new_id(
        "job", 1
    )
