"""Sites that are not equally fast: how many steps each does, and that they finish together."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from consortium.domain.codec import from_json, to_json
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.training import Certificate, Commit, Contribution, Round, RoundPhase
from consortium.train.keep import Keep, Origin
from consortium.train.leg import FederatedLeg
from consortium.train.outer import Layout, Moments, Vector
from consortium.train.pace import steps_of
from consortium.train.schedule import Pace
from consortium.train.within import InnerResult
from tests.train.conftest import PARAMS
from tests.train.hub import JOB, Hub, Line


def round_of(*given: tuple[str, int, int], accepted: tuple[str, ...] | None = None) -> Round:
    """A certified round from site, steps and milliseconds."""
    commits = tuple(
        Commit(job="j", round=3, site=site, tokens=1, steps=steps, digest=f"d-{site}", norm="", loss="", train_ms=ms)
        for site, steps, ms in given
    )
    parts = tuple(
        Contribution(site=one.site, digest=one.digest, tokens=1, weight="", clip="")
        for one in commits
        if accepted is None or one.site in accepted
    )
    certificate = Certificate(job="j", round=3, previous_outer="", contributions=parts, verdicts_digest="")
    return Round(job="j", number=3, phase=RoundPhase.CLOSED, expected=(), commits=commits, certificate=certificate)


def test_the_slowest_does_what_the_job_says_and_the_others_more_in_the_same_time():
    found = round_of(("de-1", 30, 30_000), ("fr-1", 30, 15_000), ("uy-1", 30, 3_000))
    assert [steps_of(site, found, 30) for site in ("de-1", "fr-1", "uy-1")] == [30, 60, 120], "four times at the most"
    again = round_of(("de-1", 30, 30_000), ("fr-1", 60, 30_000))
    assert steps_of("fr-1", again, 30) == 60, "speed counts, not time"
    assert steps_of("fr-1", None, 30) == 30
    assert steps_of("it-1", found, 30) == 30, "a site without a commit"


def test_what_was_not_accepted_or_not_timed_sets_no_pace():
    found = round_of(("de-1", 30, 10_000), ("fr-1", 30, 5_000), ("uy-1", 1, 10**9), accepted=("de-1", "fr-1"))
    assert steps_of("fr-1", found, 30) == 60
    assert steps_of("uy-1", found, 30) == 30
    old = round_of(("de-1", 30, 0), ("fr-1", 30, 5_000))
    assert (steps_of("de-1", old, 30), steps_of("fr-1", old, 30)) == (30, 30)


def test_a_commit_that_states_no_time_reads_and_signs_as_before():
    commit = round_of(("de-1", 30, 0)).commits[0]
    assert "train_ms" not in to_json(commit)
    assert from_json(Commit, to_json(replace(commit, train_ms=7))).train_ms == 7


class Simulated:
    """Inner steps that take `step_s` each on a clock of their own, and go as far as that: no two sites do the same."""

    layout = Layout.of({"a": (8,)})

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.clock_s = 0.0
        self.rates: list[float] = []
        self._local = np.zeros(8, dtype=np.float32)
        self._since = (0, 0)

    def initial(self) -> Vector:
        return np.ones(8, dtype=np.float32)

    def run(
        self, start: Vector | None, *, position: int, step: int, count: int, pace: Pace | None = None, take: bool = True
    ) -> InnerResult:
        self.clock_s += count * self.step_s
        self.rates += [pace.at(step + at) if pace else step + at for at in range(count)]
        if start is not None:
            self._local, self._since = start.copy(), (position, 0)
        self._local = self._local - np.float32(count * 1e-3 * self.step_s)
        done = position + count - self._since[0]
        tokens = done * PARAMS["data"]["batch_size"] * PARAMS["model"]["context"]
        return InnerResult(local=self._local, loss=1.0, tokens=tokens, position=position + count)

    def parameters(self) -> Vector:
        return self._local

    def probe(self, outer: Vector, *, position: int, count: int) -> float:
        return 1.0

    def moments(self) -> Moments | None:
        return None

    def restore(self, moments: Moments) -> None:
        return


class Silent:
    def log(self, values: Any, step: int) -> None:
        return


@pytest.mark.integration
@pytest.mark.parametrize("delay", [0, 5])
def test_unequal_sites_finish_their_rounds_together(leg, delay):
    """One step takes 1, 0.45 and 0.31 s: from the second or third round on all three train equally long."""
    outer = {**PARAMS["outer"], "rounds": 6, "inner_steps": 20, "pace": "measured", "delay": delay}
    params = {**PARAMS, "outer": outer}
    hub, speeds = Hub(("de-1", "fr-1", "uy-1")), {"de-1": 1.0, "fr-1": 0.45, "uy-1": 0.31}
    inner = {site: Simulated(step_s) for site, step_s in speeds.items()}
    digests, faults = set(), []

    def live(site: str) -> None:
        try:
            context, store = leg(site, hub.sites, params=params)
            mine = inner[site]
            origin = Origin(model={}, vocab_size=1, tokenizer_digest="", names=("a",), shapes=((8,),))
            parts = (Line(hub, context, store), Keep(store, JOB), mine, PretrainConfig.of(params), origin, Silent())
            pause = threading.Event()
            final = FederatedLeg(*parts, sleep=lambda _: pause.wait(0.005), now_s=lambda: mine.clock_s).run()
            digests.add(final.digest if final else "")
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=live, args=(site,), daemon=True) for site in hub.sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not faults
    assert len(digests) == 1
    assert {commit.steps for commit in hub.rounds[1].commits} == {20}
    for number in range(3 if delay else 2, 7):
        commits = hub.rounds[number].commits
        took = [commit.steps * speeds[commit.site] for commit in commits]
        assert max(took) / min(took) < 1.05, "all finish within 5 % of each other"
        assert [commit.steps for commit in commits] == [20, 44, 64]
        weights = [float.fromhex(part.weight) for part in hub.rounds[number].certificate.contributions]
        assert weights == pytest.approx([20 / 128, 44 / 128, 64 / 128])
    for one in inner.values():
        assert one.rates == sorted(one.rates), "the rate's schedule follows rounds"
        assert 119 <= one.rates[-1] < 120
