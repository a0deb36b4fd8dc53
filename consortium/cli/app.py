"""The Typer application: groups, and what becomes of errors."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import NoReturn

import typer
from typer.exceptions import Abort, TyperException

from consortium.cli import audit, data, federation, jobs, models, quota, rounds, simulate, site, snapshot
from consortium.cli.show import say
from consortium.errors import ConsortiumError

app = typer.Typer(
    name="consortium",
    help="Several states pool GPU clusters, data and people to train models together; each keeps control of its own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _room in (federation, jobs, rounds, models, site, quota, data, audit, simulate, snapshot):
    _room.add_to(app)


def run() -> NoReturn:
    """Run the command line and exit: 0 done, the error's own code, 2 for bad usage, 130 when interrupted."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
        if code == 130:
            _leave(130, "interrupted")
        sys.exit(code if isinstance(code, int) else 0)
    except (Abort, KeyboardInterrupt):
        _leave(130, "interrupted")
    except TyperException as fault:
        show = getattr(fault, "show", None)
        if show is None:
            _leave(2, f"error: {fault.format_message()}")
        show()
        sys.exit(2)
    except ConsortiumError as fault:
        _leave(fault.exit_code, f"error: {fault.render()}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as fault:  # the last net: a person sees one line, the trace goes to a file
        _leave(1, f"error: unexpected {type(fault).__name__}: {fault}\n  where: {_keep_trace()}")


def _keep_trace() -> str:
    handle, path = tempfile.mkstemp(prefix="consortium-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        traceback.print_exc(file=out)
    return path


def _leave(code: int, message: str) -> NoReturn:
    say(message)
    sys.exit(code)
