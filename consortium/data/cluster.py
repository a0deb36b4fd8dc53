"""Ray Data as the steps use it: one function over one row per shard, rows small, text read inside the tasks."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from consortium.data.progress import Advance, Progress
from consortium.errors import ConsortiumError, UnreachableError, by_slug

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
    phase: str = "",
    progress: Progress | None = None,
) -> list[Row]:
    """Return `function(row, **arguments)` for each row, in the order of the rows' `index`; one task per row.

    `progress` hears of every row that is done; a row's `documents` and `text_bytes`, where it has them, are added up.
    A ConsortiumError of the function comes back as it was raised. Raises UnreachableError where Ray itself fails.
    """
    import ray.data
    from ray.exceptions import RayError

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.op_resource_reservation_enabled = False  # else a second task waits for the first one's end; rows are small
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    found: list[Row] = []
    if not rows:
        return found
    documents = text_bytes = 0
    whole = {"function": function, "arguments": arguments}
    dataset = ray.data.from_items(list(rows), override_num_blocks=len(rows)).map(_guarded, fn_kwargs=whole)
    try:
        for row in dataset.iter_rows():
            if row["error"]:
                raise _restored(row["error"])
            found.append(row)
            documents, text_bytes = documents + row.get("documents", 0), text_bytes + row.get("text_bytes", 0)
            if progress is not None:
                progress(Advance(phase, len(found), len(rows), documents, text_bytes))
    except RayError as fault:
        raise UnreachableError(f"the Ray cluster failed: {_first_line(fault)}", fix="see the site's log") from fault
    return sorted(found, key=lambda row: int(row["index"]))


def _guarded(row: Row, *, function: Callable[..., Row], arguments: dict[str, Any]) -> Row:
    """Call the function; the package's own errors travel as values, so that Ray neither wraps nor logs them."""
    try:
        return {**function(row, **arguments), "error": ""}
    except ConsortiumError as fault:
        error = {"slug": fault.slug, "what": fault.what, "where": fault.where, "fix": fault.fix}
        return {"index": row["index"], "error": json.dumps(error)}


def _restored(text: str) -> ConsortiumError:
    error = json.loads(text)
    return by_slug(error["slug"])(error["what"], where=error["where"], fix=error["fix"])


def _first_line(fault: BaseException) -> str:
    lines = [line.strip() for line in str(fault).splitlines() if line.strip()]
    return lines[0][:500] if lines else type(fault).__name__
