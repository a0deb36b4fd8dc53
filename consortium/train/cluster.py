"""The Ray cluster that a leg's driver belongs to, and whose fault it is where Ray itself fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from consortium.errors import UnreachableError


@contextmanager
def connected() -> Iterator[None]:
    """Connect this driver to the cluster that it was started on.

    Raises UnreachableError, the site's fault, where that cannot be reached, or where a process of Ray is lost that runs
    a task, a training's controller, or the cluster. What a task raises itself comes as Ray brings it.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        ray.init(address="auto", logging_level="warning")
    except (ConnectionError, RuntimeError, TimeoutError, RayError) as fault:
        raise UnreachableError(f"no Ray cluster to run on: {_line(fault)}", fix="see the Ray head's log") from fault
    try:
        yield
    except RayTaskError:
        raise
    except RayError as fault:
        what = f"the Ray cluster lost what ran there: {_line(fault)}"
        raise UnreachableError(what, fix="see the Ray cluster's logs") from fault


def _line(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0][:300]
