"""The command line: parse, call the SDK, print. Heavy libraries are imported only inside the commands that need them.

Modules: `app` (commands and errors), `context` (who calls which server), `jobs`, `rounds`, `models`, `site`, `quota`,
`data`, `audit`, `federation`, `simulate`, `snapshot` (the commands by what they are about), `show` (tables and JSON),
`streams` (what becomes of output that nobody takes). Exit codes are those of `consortium.errors`, 130 when interrupted.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the console script `consortium`."""
    # httpx brings a command line of its own (rich, pygments, click) and does without where it is missing, as here:
    # every command answers a tenth of a second sooner.
    sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
    from consortium.cli.app import run
    from consortium.cli.streams import settle

    settle()
    run()
