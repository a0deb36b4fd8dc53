"""Following a job to its end: a live table on a terminal, a line for every change elsewhere. All of it is talk."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from statistics import fmean
from typing import TYPE_CHECKING, Any

from consortium.cli.show import say
from consortium.domain.units import data_size
from consortium.errors import UnreachableError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from consortium.client.api import Client
    from consortium.domain.job import Job
    from consortium.domain.training import Round

FOR_S = 366 * 86_400.0
SHOWN = 8
"""Rounds below the live table."""
_NUMBERS = ("round", "rounds", "step", "steps", "tokens_s", "sent", "waited_s")
"""What a training's leg says in finite numbers; its loss may be none."""


def follow(client: Client, job: str) -> Job:
    """Show a job on standard error until it is final, and return it."""
    rounds: list[str] = []
    news = _news(client, job)
    if not sys.stderr.isatty():
        for found, closed in news:
            for line in closed:
                say(line)
            say(changed(found))
        return found
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(stderr=True), transient=False) as live:
        for found, closed in news:
            rounds = [*rounds, *closed][-SHOWN:]
            live.update(page(found, rounds))
    return found


def _news(client: Client, job: str) -> Iterator[tuple[Job, list[str]]]:
    """Yield the job whenever something of it changes, each time with the rounds that were closed since."""
    seen = 0
    for found in client.watch(job, timeout_s=FOR_S):
        closed: list[Round] = []
        numbers = [said.get("round", 0) for said in found.progress.values() if _trains(said)]
        if any(number > seen for number in numbers) or (seen and found.state.final):
            with suppress(UnreachableError):  # the watch itself says when the server is away for too long
                closed = list(takewhile(lambda one: one.phase.value == "closed", client.rounds(job, after=seen)))
        seen = max((one.number for one in closed), default=seen)
        yield found, [round_line(one) for one in closed]


def changed(job: Job) -> str:
    """Return a job's state in a line, with what its legs say."""
    parts = [f"{site}: {told(said)}" for site, said in sorted(job.progress.items()) if said]
    return f"{job.state.value:10} {'; '.join(parts) or (job.reason.message if job.reason else '')}".rstrip()


def told(progress: dict[str, Any]) -> str:
    """Return what a leg last said of itself, in a line."""
    if not _trains(progress):
        return ", ".join(f"{key} {value}" for key, value in progress.items())
    number = f" {progress['round']}/{progress['rounds']}" if "rounds" in progress else ""
    parts = [f"{progress.get('phase', '')}{number}".strip()]
    if "step" in progress:
        parts.append(f"step {progress['step']:,}/{progress['steps']:,}")
    names = ("tokens/s", "loss", "sent", "waited")
    parts += [f"{name} {text}" for name, text in zip(names, _numbers(progress), strict=True) if text != "-"]
    return ", ".join(parts)


def round_line(one: Round) -> str:
    """Return a closed round in a line: who counted, tokens, losses, who was refused and why."""
    counted = {} if one.certificate is None else {part.site: part for part in one.certificate.contributions}
    told = {commit.site: commit.mean_loss for commit in one.commits if commit.site in counted}
    losses = {site: loss for site, loss in told.items() if loss is not None}
    tokens = sum(part.tokens for part in counted.values())
    shown = ", ".join(f"{site} {loss:.4f}" for site, loss in sorted(losses.items()))
    line = f"round {one.number} closed: {tokens:,} tokens" + (f", loss {fmean(losses.values()):.4f}" if losses else "")
    for commit in one.commits:
        if commit.site not in counted:
            said = {verdict.reason for verdict in one.verdicts if verdict.site == commit.site and verdict.reason}
            shown += f"; {commit.site} refused: {', '.join(sorted(said)) or 'left out'}"
    return f"{line} ({shown.removeprefix('; ')})" if shown else line


def page(job: Job, rounds: list[str]) -> RenderableType:
    """Return the live table: a row per site, the last rounds below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    reason = f": {job.reason.message}" if job.reason else ""
    title = Text(f"{job.id}  {job.spec.name}  {job.state.value}{reason}")  # a table breaks its own to its width
    table = Table(box=None, pad_edge=False)
    legs = {leg.site: leg.state.value for leg in job.attempt.legs} if job.attempt else {}
    sites = sorted({*legs, *job.target_sites})
    if any(_trains(said) for said in job.progress.values()):
        for name in ("site", "leg", "doing"):
            table.add_column(name, no_wrap=name == "site")
        for name in ("round", "step", "tokens/s", "loss", "sent", "waited"):
            table.add_column(name, justify="right", no_wrap=True)
        for site in sites:
            table.add_row(site, legs.get(site, "-"), *_cells(job.progress.get(site, {})))
    else:
        for name in ("site", "leg", "doing"):
            table.add_column(name, no_wrap=name == "site")
        for site in sites:
            table.add_row(site, legs.get(site, "-"), Text(told(job.progress.get(site, {}))))
    return Group(title, table, *(Text(line) for line in rounds))


def _trains(progress: dict[str, Any]) -> bool:
    """Whether this is said by the leg of a training, in its form: a site's agent sends whatever its partner likes."""
    numbers = (progress[name] for name in _NUMBERS if name in progress)
    whole = ("round" in progress or "rounds" not in progress) and ("step" in progress) == ("steps" in progress)
    told = all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
    return ("rounds" in progress or "tokens_s" in progress) and whole and told


def _cells(progress: dict[str, Any]) -> list[str | Text]:
    from rich.text import Text

    if progress and not _trains(progress):
        return [Text(told(progress)), *"-" * 6]
    number, rounds = progress.get("round"), progress.get("rounds")
    step = f"{progress['step']:,}/{progress['steps']:,}" if "step" in progress else "-"
    return [
        Text(str(progress.get("phase", "-"))),
        "-" if number is None else f"{number}/{rounds}",
        step,
        *_numbers(progress),
    ]


def _numbers(progress: dict[str, Any]) -> list[str]:
    """Tokens a second, loss, bytes sent, seconds waited; `-` for what is not known."""
    loss, speed = progress.get("loss"), progress.get("tokens_s")
    return [
        f"{speed:,}" if speed else "-",
        f"{loss:.4f}" if isinstance(loss, float) else "-",
        data_size(int(progress["sent"])) if progress.get("sent") else "-",
        f"{progress['waited_s']:,.0f} s" if progress.get("waited_s") else "-",
    ]
