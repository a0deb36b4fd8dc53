"""Ray Data as the steps use it: one function over one row per shard, rows small, text read inside the tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from consortium.errors import ConsortiumError, UnreachableError

Row = dict[str, Any]


@contextmanager
def connected() -> Iterator[None]:
    """Connect to the Ray cluster this program was started on (or the one the process is connected to already).

    Raises UnreachableError where there is none.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as fault:
        raise UnreachableError(f"no Ray cluster to run on: {fault}", fix="start the site's cluster") from fault
    try:
        yield
    finally:
        ray.shutdown()


def each(
    function: Callable[..., Row],
    rows: Sequence[Row],
    arguments: dict[str, Any],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Return `function(row, **arguments)` for each row, in the order of the rows' `index`; one task per row.

    A ConsortiumError of the function comes back as it was raised. Raises UnreachableError where Ray itself fails.
    """
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    found: list[Row] = []
    if not rows:
        return found
    dataset = ray.data.from_items(list(rows), override_num_blocks=len(rows)).map(function, fn_kwargs=arguments)
    try:
        for row in dataset.iter_rows():
            found.append(row)
            if progress is not None:
                progress(len(found), len(rows))
    except RayError as fault:
        raise _cause(fault) or UnreachableError(f"the Ray cluster failed: {_last_line(fault)}") from fault
    return sorted(found, key=lambda row: int(row["index"]))


def _cause(fault: BaseException | None) -> ConsortiumError | None:
    """Find the package's own error below what Ray wrapped around it."""
    while fault is not None:
        if isinstance(fault, ConsortiumError):
            return fault
        inner = getattr(fault, "cause", None)
        fault = inner if isinstance(inner, BaseException) else fault.__cause__
    return None


def _last_line(fault: BaseException) -> str:
    lines = [line for line in str(fault).splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else type(fault).__name__
