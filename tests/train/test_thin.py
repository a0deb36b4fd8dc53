"""States that are no longer gone on from: what stays of them, and what it is still good for."""

from __future__ import annotations

import numpy as np
import pytest

from consortium.domain.pretraining import OuterConfig, PretrainConfig
from consortium.errors import NotFoundError
from consortium.train.again import re_execute
from consortium.train.checkpoints import Checkpoints, faults
from consortium.train.replay import kept_params, replay
from tests.train.hub import JOB, Hub
from tests.train.test_hostile import SIZE, Pull, Site, line, wait

__all__ = ["line"]
pytestmark = pytest.mark.integration
ROUNDS = 4


def trained(line, keep_whole: int) -> list[Site]:
    hub = Hub(("de-1", "fr-1"))
    settings = {"rounds": ROUNDS, "code": "int4", "keep_received": -1, "keep_whole": keep_whole}
    sites = [Site(line(hub, site, **settings), Pull(site)) for site in hub.sites]
    wait([site.start() for site in sites])
    return sites


def test_older_states_keep_what_evaluations_and_audits_read_and_no_more(line):
    all_of_it, sites = trained(line, -1), trained(line, 2)
    assert sites[0].final.digest == all_of_it[0].final.digest
    store, keep = sites[0].line.store(), sites[0].keep
    for number in range(ROUNDS + 1):
        assert (keep.measured(number)[1] == all_of_it[0].keep.measured(number)[1]).all()
    for number in (0, 1, 2):
        with pytest.raises(NotFoundError, match="only parameters and momentum"):
            keep.outer(number, SIZE)
        sizes = sorted(entry.size for entry in store.entries(f"jobs/{JOB}/outer/{number}/") if ".json" not in entry.key)
        assert set(sizes) == {4 * SIZE}
        assert len(sizes) <= 2, "parameters and momentum"
    for number in (1, 2):
        assert len([key for key in store.list(f"jobs/{JOB}/rounds/{number}/") if key.endswith((".f32", ".code"))]) == 1
    assert keep.newest(SIZE).moments is not None
    assert keep.outer(3, SIZE).residual is not None
    assert faults(Checkpoints(store, JOB).listed(verify=True)) is None
    found = replay(store, JOB, kept_params(store, JOB))
    assert [(one.result, one.what) for one in found] == [("verified", ())] * ROUNDS


def test_of_a_pinned_state_the_next_round_is_not_said_to_differ_where_what_it_dropped_is_gone(line):
    sites = trained(line, -1)
    store, keep, params = sites[0].line.store(), sites[0].keep, PretrainConfig.of(sites[0].line.context.params)
    store.put(f"jobs/{JOB}/outer/1/pinned", b"")
    assert re_execute(keep, Pull("de-1"), params, 2, SIZE).same_bits
    keep.thin(2)
    with pytest.raises(NotFoundError, match="what encoding dropped of the contribution to round 2"):
        re_execute(keep, Pull("de-1"), params, 2, SIZE)


def test_a_pinned_state_stays_whole_and_what_a_crash_left_goes(line):
    sites = trained(line, -1)
    store, keep = sites[0].line.store(), sites[0].keep
    store.put(f"jobs/{JOB}/outer/1/pinned", b"")
    store.put(f"jobs/{JOB}/outer/2/left.f32", b"\0" * 8)
    keep.thin(1)
    keep.thin(2)
    keep.thin(2)
    assert keep.outer(1, SIZE).moments is not None
    assert not store.exists(f"jobs/{JOB}/outer/2/left.f32")
    np.testing.assert_array_equal(keep.stepped(2, SIZE)[0], keep.measured(2)[1])
    with pytest.raises(ValueError, match="at least 2"):
        OuterConfig(name="nesterov", rounds=4, inner_steps=1, keep_whole=1)
