"""The scheduler with a memory answers what the pure function does; snapshots survive JSON; no hash seed matters."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.codec import from_json, to_json
from consortium.domain.job import Priority
from consortium.domain.partner import SiteState
from consortium.scheduler import (
    HeldLeg,
    History,
    Plan,
    Scheduler,
    SiteView,
    Snapshot,
    leg_name,
    schedule,
)
from tests.builders import NOW_MS, account, new_id, site
from tests.scheduler.drawn import few, lent_out, snapshots
from tests.scheduler.worlds import H100, again_waiting, held, job, world

STEPS = ("submit", "end", "advance", "sites", "history", "cycle", "cycle")


class Driver:
    """Changes a `Scheduler` step by step as a server would, evictions included."""

    def __init__(self, snapshot: Snapshot, random) -> None:
        self.scheduler = Scheduler(snapshot)
        self._random = random
        self._first = snapshot
        self._specs = {item.id: item for item in snapshot.pending}
        self._number = 1000

    def cycle(self) -> tuple[Plan, Plan]:
        """What the pure function says of the snapshot, and what the scheduler then does."""
        return schedule(self.scheduler.snapshot()), self.scheduler.cycle()

    def step(self, name: str) -> None:
        getattr(self, f"_{name}")()

    def _submit(self) -> None:
        if not self._specs:
            return
        like = self._random.choice(list(self._specs.values()))
        self._number += 1
        fresh = replace(
            like, id=new_id("job", self._number), created_ms=self.scheduler.now_ms, walltime_s=like.walltime_s + 7
        )
        self._specs[fresh.id] = fresh
        self.scheduler.submit(fresh)

    def _end(self) -> None:
        legs = self.scheduler.snapshot().held
        if legs:
            self._stop(self._random.choice(legs))

    def _stop(self, leg: HeldLeg) -> None:
        self.scheduler.end(leg.leg)
        stopped = leg.job not in {item.job for item in self.scheduler.snapshot().held}
        if leg.stopping_for and stopped and leg.job in self._specs:
            self.scheduler.submit(again_waiting(self._specs[leg.job], leg, self.scheduler.now_ms))

    def _advance(self) -> None:
        self.scheduler.advance(self.scheduler.now_ms + self._random.choice((1, 5_000, 61_000, 301_000)))
        for leg in self.scheduler.snapshot().held:
            if leg.ends_ms <= self.scheduler.now_ms:
                self._stop(leg)

    def _sites(self) -> None:
        changed = [
            SiteView(
                site=view.site,
                state=self._random.choice((SiteState.ACTIVE, SiteState.ACTIVE, SiteState.DRAINING)),
                cordoned=self._random.choice(((), (), ("n0",))),
            )
            for view in self._first.sites
        ]
        self._random.shuffle(changed)
        self.scheduler.set_sites(changed)

    def _history(self) -> None:
        self.scheduler.set_history(
            History(account=item.id, borrowed=self._random.randrange(10**11)) for item in self._first.accounts
        )


@few
@given(
    st.one_of(snapshots(), lent_out()), st.lists(st.sampled_from(STEPS), max_size=20), st.randoms(use_true_random=False)
)
def test_the_scheduler_with_a_memory_answers_what_the_pure_function_answers(snapshot: Snapshot, steps, random):
    driver = Driver(snapshot, random)
    for name in (*steps, "cycle"):
        if name == "cycle":
            pure, kept = driver.cycle()
            assert repr(kept) == repr(pure)
        else:
            driver.step(name)


@few
@given(snapshots())
def test_reasons_left_out_change_no_decision(snapshot: Snapshot):
    told, short = Scheduler(snapshot).cycle(), Scheduler(snapshot).cycle(reasons=False)
    assert short.reasons == {}
    assert replace(told, reasons={}) == short


def test_the_end_of_a_leg_that_is_not_there_is_an_error():
    with pytest.raises(KeyError):
        Scheduler(world(job(1))).end("leg-nowhere")


def test_a_placed_jobs_leg_ends_under_the_name_that_is_known_beforehand():
    asks = job(1, gpus=16, sites=("fr-1",))
    scheduler = Scheduler(world(asks, job(2, gpus=16, sites=("fr-1",))))
    assert [item.job for item in scheduler.cycle().placements] == [asks.id]
    scheduler.end(leg_name(asks.id, "fr-1"))
    assert [item.job for item in scheduler.cycle().placements] == [job(2).id]


@few
@given(st.one_of(snapshots(), lent_out()))
def test_a_snapshot_survives_json_and_gives_the_same_plan(snapshot: Snapshot):
    text = json.dumps(to_json(snapshot))
    again = from_json(Snapshot, json.loads(text))
    assert again == snapshot
    assert repr(schedule(again)) == repr(schedule(snapshot))


def crowded() -> Snapshot:
    """A few hundred jobs of many shapes, borrowed GPUs and evictions: a fixed workload with everything in it."""
    sites = tuple(site(f"{partner}-{n}", H100, (8,) * 4) for partner in ("de", "es", "fr", "uy") for n in (1, 2))
    accounts = tuple(
        account(name, {H100: nominal})
        for partner in ("de", "es", "fr", "uy")
        for name, nominal in ((partner, 40), (f"{partner}/lab", 24))
    )
    names = [item.id for item in accounts]
    legs = tuple(
        held(n, f"{('de', 'es', 'fr', 'uy')[n % 4]}-{n // 4 % 2 + 1}", {f"n{n // 8}": 8}, account=names[n * 3 % 4],
             started_ms=NOW_MS - 3_600_000 - n, walltime_s=9000 + 60 * n)
        for n in range(32)
    )  # fmt: skip
    jobs = tuple(
        job(n, account=names[n * 7 % 8], gpus=1 + n * 5 % 8, walltime_s=600 + n * 37 % 7000,
            priority=tuple(Priority)[n % 3], sites=("fr-1",) if n % 5 == 0 else (), created_ms=NOW_MS - n * 60_000)
        for n in range(300)
    )  # fmt: skip
    return world(*jobs, sites=sites, accounts=accounts, held=legs)


def fingerprint() -> str:
    """A digest of the plan of `crowded`, reasons and all; how many are evicted stands before it."""
    plan = schedule(crowded())
    return f"{len(plan.evictions)} {hashlib.sha256(repr(plan).encode()).hexdigest()}"


def test_the_plan_is_the_same_in_every_process_whatever_its_hash_seed():
    script = "from tests.scheduler.test_incremental import fingerprint; print(fingerprint())"
    root = Path(__file__).parents[2]
    printed = [
        subprocess.run(
            [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60, cwd=root,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
        ).stdout.strip()
        for seed in ("1", "4242")
    ]  # fmt: skip
    assert printed == [fingerprint()] * 2
    assert int(printed[0].split()[0]) > 0
