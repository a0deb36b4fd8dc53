"""What happens in a replay, one event per leg, and the file it is written to: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from consortium.errors import UsageError
from consortium.simulate.workload import Job


class Kind(StrEnum):
    """What happened to a job. A `preempt` is written when the leg has stopped and its GPUs are free."""

    SUBMIT = "submit"
    START = "start"
    PREEMPT = "preempt"
    FINISH = "finish"


class Event(NamedTuple):
    """One event. A submission has no site and no nodes; a job with legs at several sites has one event per leg."""

    t_ms: int
    kind: Kind
    job: Job
    site: str
    gpus: int
    nodes: Mapping[str, int]


class EventFile:
    """Writes events as they come; use as a context manager. Raises UsageError where the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._out = path.open("w", encoding="utf-8")
        except OSError as fault:
            raise UsageError(f"cannot write the events: {fault.strerror}", where=str(path)) from fault

    def see(self, event: Event) -> None:
        """Write one line."""
        self._out.write(line(event))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._out.close()
        except OSError as broken:
            if fault is None:
                raise UsageError(f"cannot write the events: {broken.strerror}", where=str(self._path)) from broken


def line(event: Event) -> str:
    """Return the event as a line of JSON. Written by hand: there are hundreds of thousands."""
    t_ms, kind, job, site, gpus, nodes = event
    seconds = str(t_ms // 1000) if t_ms % 1000 == 0 else str(t_ms / 1000)
    taken = ", ".join([f'"{node}": {count}' for node, count in sorted(nodes.items())])
    return (
        f'{{"t": {seconds}, "event": "{kind.value}", "job": {json.dumps(job.id)}, "partner": "{job.partner}", '
        f'"site": "{site}", "gpus": {gpus}, "nodes": {{{taken}}}}}\n'
    )
