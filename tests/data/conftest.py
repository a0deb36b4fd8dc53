"""What tests of data stages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from consortium.data import cluster


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call the tasks here, one after another; `test_on_ray` has the cluster."""

    def each(function: Callable[..., Any], rows: Any, arguments: Any, **_: Any) -> list[cluster.Row]:
        return [function(dict(row), **arguments) for row in rows]

    monkeypatch.setattr(cluster, "each", each)
