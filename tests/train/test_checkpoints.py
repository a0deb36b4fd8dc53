"""Checkpoints in a private store: what is listed, what pruning takes, what damage is found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.keys.canonical import digest as digest_of
from consortium.storage.objects import ObjectStore
from consortium.train.checkpoints import Checkpoint, Checkpoints, faults
from consortium.train.keep import Begun, Contribution, Keep, Origin, OuterState
from consortium.train.outer import Moments, to_bytes, vector_digest
from tests.train.hub import JOB

pytestmark = pytest.mark.integration

SIZE = 8
ORIGIN = Origin(model={}, vocab_size=1, tokenizer_digest="", names=("a",), shapes=((SIZE,),))


def trained(store: ObjectStore) -> Keep:
    """A job's store after five rounds, in the middle of the sixth."""
    keep = Keep(store, JOB)
    for number in range(6):
        vector = np.full(SIZE, number, dtype=np.float32)
        moments = Moments({"exp_avg": vector + 100, "exp_avg_sq": vector + 200}, number)
        state = OuterState(
            round=number,
            digest=vector_digest(vector),
            outer=vector,
            momentum=vector + 300,
            position=number,
            tokens=number,
            moments=moments,
        )
        if number:
            data = to_bytes(vector + 400)
            keep.save_contribution(
                Contribution(
                    round=number,
                    previous_outer="",
                    data=data,
                    digest=digest_of(data),
                    norm="",
                    loss="",
                    tokens=1,
                    steps=1,
                    position=1,
                    moments=moments,
                )
            )
            store.put(f"jobs/{JOB}/rounds/{number}/round.json", b"{}")
        keep.save_outer(state, ORIGIN)
    keep.save_begun(
        Begun(
            round=6,
            previous_outer="",
            local=vector,
            steps=3,
            loss_sum=1.0,
            tokens=3,
            position=9,
            moments=replace(moments, steps=9),
        )
    )
    return keep


def test_what_is_kept_is_listed_pinned_pruned_and_still_goes_on(store):
    keep, kept = trained(store), Checkpoints(store, JOB)
    listed = kept.listed(verify=True)
    assert [(one.round, one.inner) for one in listed] == [*((n, False) for n in range(6)), (6, True)]
    assert faults(listed) is None
    assert sum(one.size_bytes for one in listed) == sum(
        entry.size for entry in store.entries(f"jobs/{JOB}/") if not entry.key.endswith("round.json")
    )
    with pytest.raises(NotFoundError, match="no state after round 9"):
        kept.pin(9)
    kept.pin(2)
    kept.pin(3)
    kept.unpin(3)
    before = sum(entry.size for entry in store.entries(f"jobs/{JOB}/"))
    assert kept.prune(2) == (2, before - sum(entry.size for entry in store.entries(f"jobs/{JOB}/")))
    left = kept.listed(verify=True)
    assert [(one.round, one.pinned) for one in left if not one.inner] == [(0, False), (2, True), (4, False), (5, False)]
    assert faults(left) is None
    assert [n for n in range(1, 6) if keep.contribution(n, SIZE) is not None] == [2, 4, 5]
    assert all(store.exists(f"jobs/{JOB}/rounds/{number}/round.json") for number in range(1, 6))
    newest, begun = keep.newest(SIZE), keep.begun(6, SIZE)
    assert newest is not None
    assert newest.round == 5
    assert begun is not None
    assert begun.steps == 3
    assert kept.prune(2) == (0, 0)
    with pytest.raises(UsageError, match="the 2 newest states stay"):
        kept.prune(1)


def test_a_checkpoint_that_changed_is_named(store):
    trained(store)
    key = next(key for key in store.list(f"jobs/{JOB}/outer/4/") if key.endswith(".f32"))
    store.put(key, b"\0" * 4 * SIZE)
    listed = Checkpoints(store, JOB).listed(verify=True)
    assert [one.round for one in listed if one.fault] == [4]
    found = faults(listed)
    assert isinstance(found, VerificationError)
    assert "1 of 7 checkpoints do not read back, the first of round 4" in found.what
    assert all(isinstance(one, Checkpoint) and not one.fault for one in Checkpoints(store, JOB).listed())


def test_contributions_and_inner_steps_are_read_too(store):
    keep = trained(store)
    for number, suffix in ((3, ".f32"), (6, ".f32")):
        key = next(key for key in store.list(f"jobs/{JOB}/rounds/{number}/") if key.endswith(suffix))
        store.put(key, b"\0" * 4 * SIZE)
    store.put(f"jobs/{JOB}/rounds/2/contribution.json", b"{")
    listed = Checkpoints(store, JOB).listed(verify=True)
    assert [(one.round, one.inner) for one in listed if one.fault] == [(2, False), (3, False), (6, True)]
    assert [one.fault.startswith("the contribution to it: ") for one in listed if one.fault] == [True, True, False]
    keep.thin(3)
    assert not next(one.fault for one in Checkpoints(store, JOB).listed(verify=True) if one.round == 4)
