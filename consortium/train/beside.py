"""Work that goes on in threads beside the inner steps: encoding, sending, following a round, the outer step; writing.

Calls to the gateway move as many bytes as a fragment has, at the speed of a border, and what comes of them is computed
on the host, so neither must stop the training.
Nor need it wait for the store, as long as nothing is sent before what it was made from is written.
Everything that touches the model stays with the thread that trains: the other one asks, and is answered between two
stretches of steps.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Generic, TypeVar

from consortium.train.within import Stopped

T = TypeVar("T")
_ASK_S = 0.2
_LEAVE_S = 10.0
"""How long an exchange that is given up gets to end its call under way."""


class _Question:
    """Something to be done by the thread that trains."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.answered = threading.Event()
        self.answer: Any = None
        self.fault: BaseException | None = None


class Beside(Generic[T]):
    """`work` in a thread of its own, from the `with` on. `halt` is set where it is left before the work is done."""

    def __init__(self, work: Callable[[], T], halt: threading.Event) -> None:
        self._work: Callable[[], T] | None = work
        self._halt = halt
        self._questions: queue.SimpleQueue[_Question | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="exchange", daemon=True)
        self._result: list[T] = []
        self._fault: BaseException | None = None
        self._asking = threading.Event()
        self._ended = False

    def __enter__(self) -> Beside[T]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            self._halt.set()
            self._thread.join(_LEAVE_S)

    def ask(self, work: Callable[[], Any]) -> Any:
        """Let the training thread do `work` and return what came of it. Called by the work itself."""
        question = _Question(work)
        self._questions.put(question)
        self._asking.set()
        while not question.answered.wait(_ASK_S):
            if self._halt.is_set():
                raise Stopped
        if question.fault is not None:
            raise question.fault
        return question.answer

    def asked(self) -> bool:
        """Whether the work waits for an answer. Raises what ended the work, where that failed."""
        if self._fault is not None:
            raise self._fault
        return self._asking.is_set()

    def serve(self) -> None:
        """Answer what the work asks, one question."""
        self._next()

    def result(self) -> T:
        """Answer until the work is done and return what it gave. Raises what it raised."""
        while not self._ended:
            self._next()
        if self._fault is not None:
            raise self._fault
        return self._result.pop()

    def _next(self) -> None:
        question = self._questions.get()
        if question is None:
            self._ended = True
            self._thread.join()
            return
        self._asking.clear()
        try:
            question.answer = question.work()
        except BaseException as fault:
            question.fault = fault
        question.answered.set()

    def _run(self) -> None:
        work, self._work = self._work, None  # what it holds goes with it: states of past rounds, else, until collected
        assert work is not None
        try:
            self._result.append(work())
        except BaseException as fault:
            self._fault = fault
        self._questions.put(None)


class Behind:
    """What is written behind the steps, in the order in which it was given."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix="writing")
        self._given: list[Future[None]] = []

    def put(self, work: Callable[[], None]) -> None:
        """Let `work` be done once what was given before is."""
        self._given.append(self._threads.submit(work))

    def wait(self) -> None:
        """Return once all that was given is done. Raises what the first of it that failed raised."""
        while self._given:
            self._given[0].result()
            del self._given[0]

    def end(self) -> None:
        """Finish what was given; a failure that nobody waited for is told on stderr."""
        self._threads.shutdown(wait=True)
        for one in self._given:
            if (fault := one.exception()) is not None:
                sys.stderr.write(f"not written to the private store: {fault}\n")
