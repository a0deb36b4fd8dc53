"""Work on the parts of long vectors, on as many threads as there are processors: numpy lets go of the interpreter.

What is given here works on parts that share no element, one numpy operation after the other. So neither the number of
threads nor their order changes a bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

P = TypeVar("P")
R = TypeVar("R")
_MOST = 16
"""More threads than this wait for main memory."""


def threads() -> int:
    """Return how many threads to use: as many as this process has processors, up to 16."""
    return min(_MOST, len(os.sched_getaffinity(0)))


def spread(work: Callable[[P], R], parts: Iterable[P]) -> list[R]:
    """Return what `work` returns for each part, in their order; of several errors the first part's is raised."""
    given = list(parts)
    count = min(threads(), len(given))
    if count < 2:
        return [work(part) for part in given]
    edges = [len(given) * at // count for at in range(count + 1)]
    with ThreadPoolExecutor(count, thread_name_prefix="spread") as pool:
        done = pool.map(lambda first, last: [work(part) for part in given[first:last]], edges, edges[1:])
        return [result for several in done for result in several]
