"""A line to the server that waits for it: however long the server is away, a leg asks again and loses nothing.

The session repeats a call for minutes and then says that the far end is unreachable (`consortium.client.leg`). For what
the site's own gateway passes on to the server that is no reason to end a training: every such call may be repeated, and
what the leg has is kept. The gateway itself must be there: it says whether the leg is to stop.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from consortium.errors import UnreachableError
from consortium.train.exchange import Exchange
from consortium.train.within import Stopped

ASKED_OF_SERVER = frozenset({"send", "inbox", "commit", "verdicts", "round", "agree", "agreements"})
PAUSE_S = 2.0


class Outlasting:
    """An `Exchange` that outlasts an absence of the server; what does not go to the server passes through."""

    def __init__(self, exchange: Exchange, sleep: Callable[[float], None]) -> None:
        self._exchange = exchange
        self._sleep = sleep

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._exchange, name)
        return partial(self._outlast, name, found) if name in ASKED_OF_SERVER else found

    @property
    def exchange(self) -> Exchange:
        """The line, which outlasts the server."""
        return cast(Exchange, self)

    def _outlast(self, name: str, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        told = False
        while True:
            try:
                return call(*given, **named)
            except UnreachableError as fault:
                if not told:
                    sys.stderr.write(f"{name} is asked again until the server is back: {fault.what}\n")
                told = True
            if self._exchange.stopping():
                raise Stopped
            self._sleep(PAUSE_S)
