"""The pretrain leg: inner steps by Ray Train on this site's cluster, outer rounds with the other sites."""

from __future__ import annotations

import sys
from functools import partial

from consortium.client.leg import LegSession, run
from consortium.train import launch


def program(session: LegSession) -> None:
    """Train until the last round is closed; rank 0 opens a session of its own with this leg's token."""
    launch.run(partial(LegSession, session.gateway, session.token), session.context)


if __name__ == "__main__":
    sys.exit(run(program))
