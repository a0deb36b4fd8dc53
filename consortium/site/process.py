"""What the site's two processes share at start: arguments, logging, one instance per site, errors without traceback."""

from __future__ import annotations

import argparse
import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from consortium.errors import ConflictError, ConsortiumError, UnreachableError
from consortium.site.db import SiteDb
from consortium.site.settings import SiteSettings

WAIT_S = 2.0
log = logging.getLogger("consortium.site")


def arguments(what: str, *, repin: bool = False) -> argparse.Namespace:
    """Parse the command line of `python -m consortium.site.<what>`."""
    parser = argparse.ArgumentParser(prog=f"python -m consortium.site.{what}")
    parser.add_argument("--config", required=True, help="the site's settings (JSON)")
    if repin:
        parser.add_argument(
            "--repin",
            action="store_true",
            help="end an alarm: forget the pinned log checkpoint and trust the log as it stands; then exit",
        )
    return parser.parse_args()


def only_instance(settings: SiteSettings, what: str) -> int:
    """Hold the lock of this site's process until it ends; return its descriptor. Raises ConflictError."""
    path = Path(settings.home) / f"{what}.lock"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as fault:
        raise ConflictError(
            f"another {what} of {settings.site.id} is running", where=str(path), fix="stop it first"
        ) from fault
    return descriptor


def wait_for_room(home: str, pause: Callable[[float], None] = time.sleep) -> SiteDb:
    """Return the site's database once it can be used: on a full disk SQLite cannot make the two files beside it.

    A process that ended instead would be given up by many a supervisor. Raises ConfigError where waiting is no help.
    """
    said = ""
    while True:
        try:
            return SiteDb(home)
        except UnreachableError as fault:
            if fault.what != said:
                fix = (fault.fix or "").removesuffix(", and start again")
                log.warning("waiting: %s (%s); %s. It is tried again meanwhile", fault.what, fault.where, fix)
            said = fault.what
            pause(WAIT_S)


def main(work: Callable[[], None]) -> None:
    """Run a process; an error of ours ends it with one clear line and its exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("httpx", "httpcore", "botocore", "boto3", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        work()
    except ConsortiumError as fault:
        sys.stderr.write(fault.render() + "\n")
        sys.exit(fault.exit_code)
    except OSError as fault:
        where = f"\n  where: {fault.filename}" if fault.filename else ""
        sys.stderr.write(f"{fault.strerror or fault}{where}\n")
        sys.exit(2)
