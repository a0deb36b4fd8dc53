"""A workload replayed through the real scheduler on a virtual clock: `consortium simulate`.

- `replay(scenario, ...) -> Result`: one scenario from its first submission to its last end.
- `find_trace(given, dataset)`: the folder of a recorded trace.

Modules: `workload` (jobs and the rules a trace is completed by), `trace`, `streams` (made-up jobs), `world` (what the
scheduler is told), `engine` (the event loop), `audit` (an independent check of every event), `figures`, `events` (the
file of events), `plot`, `run`. `docs/simulate.md` states the formulas.
"""

from __future__ import annotations

from consortium.simulate.run import Result, replay
from consortium.simulate.trace import find_trace

__all__ = ["Result", "find_trace", "replay"]
