"""The commands below `snapshot`: what the scheduler decides from, kept as a file and decided again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consortium.cli.context import As, Caller, Json
from consortium.cli.show import put, put_json, say
from consortium.errors import NotFoundError, UsageError, VerificationError
from consortium.reports.visible import visible_json

if TYPE_CHECKING:
    from consortium.scheduler.types import Plan

snapshot_app = typer.Typer(help="Keep what the scheduler decides from, and decide it again.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(snapshot_app, name="snapshot")
    snapshot_app.command("dump", help="Write what the next cycle decides from, with its plan (admins).")(dump)
    snapshot_app.command("replay", help="Decide a dumped cycle again, without a server, and compare.")(replay)


def dump(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: standard output.")] = None,
    person: As = "",
) -> None:
    """Fetch and write a snapshot and the plan that the scheduler makes from it."""
    data = Caller(person, role="admin").client().snapshot()
    if output is None:
        sys.stdout.write(visible_json(data.decode()))
        return
    try:
        output.write_bytes(data)
    except OSError as fault:
        raise UsageError(f"cannot write the snapshot: {fault.strerror}", where=str(output)) from fault
    say(f"wrote {output}; decide it again with: consortium snapshot replay {output}")


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Written by `consortium snapshot dump`.")],
    as_json: Json = False,
) -> None:
    """Decide a dumped cycle again; exit 7 where the plan differs from the one in the file."""
    from consortium.domain.codec import to_json
    from consortium.scheduler.recorded import replay as decide

    found = decide(_read(file), where=str(file))
    if as_json:
        plan = to_json(found.plan)
        put_json({"equal": not found.difference, "digest": found.digest, "difference": found.difference, "plan": plan})
    else:
        _page(found.plan)
        put(f"digest       {found.digest}")
    if found.difference:
        raise VerificationError(
            f"the plan is not the one in the file ({found.recorded}): {found.difference}",
            where=str(file),
            fix="compare the versions of the program, or find the change of rule that explains it",
        )


def _page(plan: Plan) -> None:
    for placement in plan.placements:
        legs = ", ".join(
            f"{leg.site} ({', '.join(f'{gpus} on {node}' for node, gpus in sorted(leg.nodes.items()))})"
            for leg in placement.legs
        )
        put(f"starts       {placement.job} at {legs}")
    for eviction in plan.evictions:
        put(f"evicted      {eviction.job} ({eviction.gpus} GPUs) for {eviction.for_job}: {eviction.rule.value}")
    counts = {
        "placements": len(plan.placements),
        "evictions": len(plan.evictions),
        "reservations": len(plan.reservations),
        "waiting": len(plan.reasons),
    }
    for name, count in counts.items():
        put(f"{name:12} {count}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as fault:
        raise NotFoundError("there is no such file", where=str(path)) from fault
    except OSError as fault:
        raise UsageError(f"cannot read it: {fault.strerror}", where=str(path)) from fault
