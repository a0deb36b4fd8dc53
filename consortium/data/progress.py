"""How far a stage is, and how fast: documents and megabytes per second, seconds left."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Advance(NamedTuple):
    """What is done so far of a phase: `done` of `of` shards; their documents and bytes of text."""

    phase: str
    done: int
    of: int
    documents: int = 0
    text_bytes: int = 0


Progress = Callable[[Advance], None]


class Meter:
    """Turns advances into what people see. `say` is called with numbers and words, at most once a second and at ends.

    Rates are over the whole phase, from the end of the one before; what a resumed run finds done counts, too.
    """

    def __init__(self, say: Callable[..., object], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._dataset = ""
        self._phase = ("", "")
        self._began = self._last = self._said = clock()

    def over(self, dataset: str) -> Progress:
        """Return a Progress whose advances are those of a dataset."""

        def advance(now: Advance) -> None:
            self._advance(dataset, now)

        return advance

    def _advance(self, dataset: str, now: Advance) -> None:
        at = self._clock()
        if self._phase != (dataset, now.phase):
            self._phase, self._began, self._said = (dataset, now.phase), self._last, float("-inf")
        self._last = at
        if now.done < now.of and at - self._said < 1:
            return
        self._said = at
        self._say(dataset=dataset, phase=now.phase, done=now.done, of=now.of, **self._rates(now, at - self._began))

    @staticmethod
    def _rates(now: Advance, seconds: float) -> dict[str, Any]:
        if not now.done or seconds <= 0:
            return {}
        rates: dict[str, Any] = {"seconds_left": round(seconds * (now.of - now.done) / now.done)}
        if now.documents:
            rates |= {"documents": now.documents, "documents_per_s": round(now.documents / seconds)}
        if now.text_bytes:
            rates["mb_per_s"] = round(now.text_bytes / 1e6 / seconds, 1)
        return rates
