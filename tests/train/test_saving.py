"""Progress is saved beside the steps: they do not wait for the store, and what goes wrong there is not lost."""

from __future__ import annotations

import threading
import time
from itertools import count

import pytest

from consortium.domain.pretraining import PretrainConfig
from consortium.errors import NotFoundError, UnreachableError
from consortium.train.keep import Begun, Keep, OuterState
from consortium.train.within import RoundTrainer, Stopped
from tests.train.conftest import PARAMS
from tests.train.hub import JOB, Hub, Line
from tests.train.test_model import worker

pytestmark = pytest.mark.integration
STEPS = 8
DATA = {"outer": PARAMS["outer"] | {"inner_steps": STEPS}}


class Slow(Keep):
    """A store that takes a vector when it is let to, or never."""

    let = threading.Event()
    fault: Exception | None = None

    def save_begun(self, begun: Begun) -> None:
        assert self.let.wait(60)
        if self.fault is not None:
            raise self.fault
        super().save_begun(begun)


def training(leg, **changes):
    """A trainer whose clock runs a thousand seconds at each look: progress is to be kept after each step."""
    context, store = leg("fr-1", ("fr-1",), params=PARAMS | DATA)
    hub, keep, inner = Hub(("fr-1",)), Slow(store, JOB), worker(**DATA)
    keep.let = threading.Event()

    class Looked(Line):
        def stopping(self) -> bool:
            if hub.progress[-1]["step"] >= 5:
                keep.let.set()
                deadline = time.monotonic() + 60
                while trainer._saving.busy:
                    assert time.monotonic() < deadline
            return False

    clock = count(0, 1000)
    params = PretrainConfig.of(PARAMS | DATA)
    line = Looked(hub, context, store)
    trainer = RoundTrainer(line, keep, inner, params, inner.layout.size, now_s=lambda: float(next(clock)))
    outer = inner.initial()
    state = OuterState(
        round=0, digest="", outer=outer, momentum=outer * 0, position=0, tokens=0, moments=None, residual=None
    )
    return trainer, keep, state, hub, inner.layout.size


def test_steps_go_on_while_progress_is_saved_and_it_is_told_once_it_is_there(leg):
    trainer, keep, state, hub, size = training(leg)
    done = trainer.train(state, 1, STEPS)
    assert done.steps == STEPS
    told = [(said["step"], said["kept"]) for said in hub.progress]
    assert [kept for step, kept in told if step < 6] == ["0.0"] * 6, "it is not told before it is kept"
    assert told[6:8] == [(6, "0.1"), (7, "0.6")], "the first was let through, and then the newest was saved"
    begun = keep.begun(1, size)
    assert begun is not None
    assert begun.steps == STEPS - 1, "nothing is being saved any more"


def test_steps_beside_an_exchange_that_is_told_to_stop_first_are_kept(leg):
    trainer, keep, state, _, size = training(leg)
    keep.let.set()
    done = trainer.train(state, 1, STEPS)

    class Ended:
        def asked(self) -> bool:
            raise Stopped

        def serve(self) -> None:
            raise AssertionError

    with pytest.raises(Stopped):
        trainer.train_on(done, 4, STEPS, Ended())
    begun = keep.begun(2, size)
    assert begun is not None
    assert (begun.steps, begun.position) == (1, done.position + 4)


def test_progress_is_kept_until_what_was_made_of_it_is(leg):
    trainer, keep, state, _, size = training(leg)
    keep.let.set()
    trainer.keep(trainer.train(state, 1, STEPS))
    with pytest.raises(NotFoundError):
        keep.drop_begun(1)
    begun = keep.begun(1, size)
    assert begun is not None
    assert begun.steps == STEPS


def test_what_goes_wrong_while_saving_ends_the_steps(leg):
    trainer, keep, state, _, _ = training(leg)
    keep.fault = UnreachableError("the store is away")
    with pytest.raises(UnreachableError, match="the store is away"):
        trainer.train(state, 1, STEPS)
