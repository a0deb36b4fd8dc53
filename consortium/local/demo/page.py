"""The demo's last page: what happened, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from consortium.domain.units import data_size

_SIZES_WIDTH = 54


def show(document: dict[str, Any], console: Console) -> None:
    """Print the results: loss, GPU-hours, borders, refusals, rounds, runs and reports."""
    console.rule("[bold]One model, three states")
    console.print(_losses(document["loss"]))
    console.print(_gpu_hours(document["gpu_hours"]))
    console.print(_crossings(document["crossings"]))
    _refusals(document, console)
    _rounds(document["rounds"], console)
    _evidence(document, console)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _losses(loss: dict[str, dict[str, float]]) -> Table:
    table = _table("\nHeld-out loss (nats per token)", "language", "before", "after", "change")
    for language, before in loss["before"].items():
        after = loss["after"][language]
        table.add_row(language, f"{before:.3f}", f"{after:.3f}", f"{100 * (after - before) / before:+.1f} %")
    return table


def _gpu_hours(hours: dict[str, dict[str, float]]) -> Table:
    table = _table("\nGPU-hours (metered by the sites)", "partner", "delivered", "consumed", "balance")
    for partner, row in hours.items():
        balance = row["delivered"] - row["consumed"]
        table.add_row(partner, f"{row['delivered']:.4f}", f"{row['consumed']:.4f}", f"{balance:+.4f}")
    return table


def _crossings(crossings: list[dict[str, Any]]) -> Table:
    table = _table(
        "\nWhat crossed which border, encrypted to its recipient (text never does)", "from → to", "class, size"
    )
    table.columns[1].justify = "left"
    pairs: dict[str, list[str]] = {}
    for row in crossings:
        pairs.setdefault(f"{row['from']} → {row['to']}", []).append(f"{row['class']} {data_size(int(row['bytes']))}")
    for pair, parts in pairs.items():
        table.add_row(pair, "\n".join(_lines(parts)))
    return table


def _lines(parts: list[str]) -> list[str]:
    """Join parts with commas into lines that fit beside the pair, breaking between parts only."""
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + len(part) > _SIZES_WIDTH:
            lines.append("")
        lines[-1] += f", {part}" if lines[-1] else part
    return lines


def _refusals(document: dict[str, Any], console: Console) -> None:
    console.print("\n[bold]Two refusals[/bold]")
    for denial in document["denied"]:
        console.print(f"denied   {denial['message']}", soft_wrap=True)
        console.print(f"         clause {denial['clause']}, {denial['file']}:{denial['line']}", soft_wrap=True)
        console.print(f"         would pass: {denial['would_pass']}", soft_wrap=True)
    quota = document["quota"]
    console.print(f"waited   {quota['reason']}", soft_wrap=True)
    console.print(
        f"         then started on {quota['borrowed_gpus']} borrowed GPUs and {quota['state']}", soft_wrap=True
    )


def _rounds(rounds: list[dict[str, Any]], console: Console) -> None:
    console.print("\n[bold]Rounds[/bold] (every site computed the same outer state)")
    for item in rounds:
        agreed = item["digest"].removeprefix("sha256:")[:16] or "no agreement"
        console.print(f"  {item['round']}  {', '.join(item['sites'])}  {item['tokens']:,} tokens  {agreed}")


def _evidence(document: dict[str, Any], console: Console) -> None:
    console.print("\n[bold]MLflow runs[/bold]")
    for name, link in document["runs"].items():
        console.print(f"  {name}  {link}", soft_wrap=True)
    console.print("\n[bold]Reports[/bold]")
    for partner, path in document["reports"].items():
        verdict = "verified" if document["audit"]["accepted"][partner] else "REJECTED"
        console.print(f"  {partner}  {verdict}  {path}", soft_wrap=True)
    forged = document["audit"]["forged"]
    first = forged["message"].splitlines()[0] if forged["message"] else ""
    console.print(f"  one digit changed: exit {forged['exit_code']}  {first}", soft_wrap=True)
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in document["stages"].items())
    console.print(f"\nDone in {document['seconds']:.0f} s: {stages}.", soft_wrap=True)
