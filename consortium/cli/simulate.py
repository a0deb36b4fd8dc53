"""The command `simulate`: a workload through the real scheduler on virtual time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from consortium.cli.context import Json
from consortium.cli.show import put, put_json, say, table
from consortium.errors import UsageError


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command("simulate", help="Replay a workload through the real scheduler on virtual time.")(simulate)


def simulate(
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO", help="A file in configs/scenario/, such as bursts.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Such as cycle_s=60 seed=2.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of CSV files; default: $CONSORTIUM_TRACES/itp, ../shared/traces/itp."),
    ] = None,
    events: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every event as a line of JSON.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw who used what over time: .svg or .png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay a scenario; exit 1 where the auditor found a violation or a job that could run did not finish."""
    from consortium.config import load_scenario
    from consortium.errors import JobFailedError
    from consortium.simulate import replay

    if plot is not None and plot.suffix not in (".svg", ".png"):
        raise UsageError(
            f"cannot draw a {plot.suffix or 'file without ending'}", where="--plot", fix="name it .svg or .png"
        )
    found = load_scenario(scenario, overrides or [])
    if trace is not None and found.trace is None:
        raise UsageError(f"{scenario} replays no trace", where="--trace", fix="leave it out")
    result = replay(found, trace=trace, events=events, plot=plot, say=say)
    if result.infeasible:
        job, why = next(iter(result.infeasible.items()))
        say(f"{len(result.infeasible):,} jobs could never start, such as {job}: {why}")
    for finding in result.broken:
        say(f"violation: {finding}")
    if as_json:
        put_json(result.figures)
    else:
        _show(found.about, result.figures)
    for path in (events, plot):
        if path is not None:
            say(f"wrote {path}")
    unfinished = result.figures["jobs"] - result.figures["completed"] - result.figures["infeasible"]
    if result.broken or unfinished:
        raise JobFailedError(
            f"{sum(result.figures['violations'].values())} violations, {unfinished} jobs that could run did not finish"
        )


def _show(about: str, figures: dict[str, Any]) -> None:
    variant = f", {figures['variant']}" if figures["variant"] else ""
    put(f"{figures['scenario']}{variant}: {about}\n")
    share = figures["lost_gpu_hours"] / figures["gpu_hours"] if figures["gpu_hours"] else 0.0
    facts = {
        "jobs": f"{figures['jobs']:,} submitted, {figures['completed']:,} finished, "
        f"{figures['infeasible']:,} could never start",
        "wait": f"mean {figures['mean_wait_h']:.2f} h, median {figures['median_wait_h']:.2f} h, "
        f"95% below {figures['p95_wait_h']:.2f} h, 99% below {figures['p99_wait_h']:.2f} h",
        "GPUs in use": f"{figures['utilisation']:.1%} of the time between the first and the last submission",
        "preemptions": f"{figures['preemptions']:,}, {figures['lost_gpu_hours']:,.0f} GPU-hours done again or spent "
        f"stopping ({share:.2%} of all)",
        "violations": ", ".join(f"{rule} {count}" for rule, count in figures["violations"].items()),
        "replayed": f"{figures['cycles']:,} cycles, {figures['decisions']:,} decisions in {figures['wall_s']:.1f} s",
    }
    if figures["interruptions"]:
        facts["interrupted"] = (
            f"{figures['interruptions']:,} jobs at sites that went away, "
            f"{figures['interrupted_lost_gpu_hours']:,.0f} GPU-hours lost"
        )
    for name, text in facts.items():
        put(f"{name:12} {text}")
    put("\nGPU-hours    delivered: at the partner's sites; consumed: by its jobs, wherever they ran\n")
    columns = ["partner", "mean wait h", "95% below h", "delivered", "consumed", "lent", "borrowed"]
    rows = [
        (
            partner,
            f"{row['mean_wait_h']:.2f}",
            f"{row['p95_wait_h']:.2f}",
            *(f"{row[f'gpu_hours_{what}']:,.0f}" for what in ("delivered", "consumed", "lent", "borrowed")),
        )
        for partner, row in figures["per_partner"].items()
    ]
    table(columns, rows, empty="no partners")
