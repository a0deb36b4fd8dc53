"""The command line: parse, call the SDK, print. Heavy libraries are imported only inside the commands that need them.

Modules: `app` (commands and errors), `context` (who calls which server), `jobs`, `operate`, `data`, `audit`,
`federation` (the commands by user), `show` (tables and JSON). Exit codes are those of `consortium.errors`, 130 when
interrupted.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line; the console script `consortium`."""
    from consortium.cli.app import run

    run()
