"""The evaluate leg: held-out loss per language of a pretrain job's outer states, at the site that keeps them."""

from __future__ import annotations

import sys
from functools import partial

from consortium.client.leg import LegSession, run
from consortium.train import evaluate


def program(session: LegSession) -> None:
    """Measure the states in one task that holds the leg's GPUs."""
    evaluate.run(partial(LegSession, session.gateway, session.token), session.context)


if __name__ == "__main__":
    sys.exit(run(program))
