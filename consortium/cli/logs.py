"""`logs`: what sites let out of a job's logs, once or as it comes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consortium.cli.context import As, Caller, check_job_id
from consortium.cli.show import put, put_json, say
from consortium.cli.streams import reader_gone
from consortium.reports.visible import visible_json

if TYPE_CHECKING:
    from consortium.client.api import Client

_POLL_S = 0.5


def logs(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")],
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
    site: Annotated[str, typer.Option(help="Only this site's.")] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: one document; with -f a line for what is new, each time.")
    ] = False,
    person: As = "",
) -> None:
    """Print logs."""
    client = Caller(person).client()
    chunks: list[dict[str, Any]] = []
    page: dict[str, Any] = {}
    for number, page in enumerate(_pages(client, check_job_id(job), site, follow)):
        if number == 0:
            _talk(page, follow)
        if as_json and not follow:
            chunks += page["chunks"]
        elif page["chunks"]:
            _put(page, as_json)
        if reader_gone():
            return
    if as_json and not follow:
        put_json(page | {"chunks": chunks})


def _pages(client: Client, job: str, site: str, follow: bool) -> Iterator[dict[str, Any]]:
    """Yield what the server answers until there is no more to come."""
    after = 0
    while True:
        found = client.logs(job, site=site, after=after)
        yield found
        more = found["next"] > after
        after = found["next"]
        if not more:
            if found["final"] or not follow:
                return
            time.sleep(_POLL_S)


def _talk(first: dict[str, Any], follow: bool) -> None:
    """Say why there is nothing to see, or not all of it."""
    for name in first["withheld"]:
        say(f"{name} keeps its logs at home: its partner's policy does not release them")
    if not first["next"] and not first["withheld"]:
        if first["final"]:
            say("no log: the job ended without one, or its sites sent none within a week of its end")
            say("  what was written lies in each site's private store, under jobs/JOB/logs/")
        else:
            say("no log yet" + ("; it is shown as it comes" if follow else ""))


def _put(page: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(visible_json(json.dumps(page, ensure_ascii=False)))
    else:
        for chunk in page["chunks"]:
            for line in chunk["text"].splitlines():
                put(f"{chunk['site']} | {line}")
    sys.stdout.flush()
