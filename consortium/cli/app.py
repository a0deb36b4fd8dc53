"""The Typer application: groups, and what becomes of errors."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from typing import NoReturn

import typer
from typer.exceptions import Abort, TyperException

from consortium.cli import audit, data, federation, jobs, models, quota, rounds, simulate, site, snapshot
from consortium.cli.context import told
from consortium.cli.show import clipped, say
from consortium.errors import ConsortiumError

_MAX_LINE = 2_000
"""Characters of a line of an error; all names that a key may have fit into it."""

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
    code = _code()
    try:
        sys.stdout.flush()
    except ConsortiumError as fault:
        code = code or _said(fault.exit_code, f"error: {fault.render()}")
    sys.exit(code)


def _code() -> int:
    """Run a command, say what went wrong, and return the exit code."""
    try:
        code = app(standalone_mode=False)
        if code == 130:
            return _said(130, "interrupted")
        return code if isinstance(code, int) else 0
    except (Abort, KeyboardInterrupt):
        return _said(130, "interrupted")
    except TyperException as fault:
        show = getattr(fault, "show", None)
        if show is None:
            return _said(2, f"error: {fault.format_message()}")
        shown = io.StringIO()
        show(file=shown)
        return _said(2, shown.getvalue().rstrip("\n"))
    except ConsortiumError as fault:
        return _said(fault.exit_code, f"error: {told(fault)}")
    except Exception as fault:  # the last net: a person sees one line, the trace goes to a file
        return _said(1, f"error: unexpected {type(fault).__name__}: {fault}\n  where: {_keep_trace()}")


def _keep_trace() -> str:
    handle, path = tempfile.mkstemp(prefix="consortium-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        traceback.print_exc(file=out)
    return path


def _said(code: int, message: str) -> int:
    """Say a message, what it quotes cut to a bearable length, and return the exit code."""
    say("\n".join(clipped(line, _MAX_LINE) for line in message.split("\n")))
    return code
