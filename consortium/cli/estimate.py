"""What a dry run of a training job prints of its costs."""

from __future__ import annotations

from typing import Any

from consortium.cli.show import put, table
from consortium.domain.units import data_size


def show(found: dict[str, Any]) -> None:
    """Print what a training takes, as `consortium.train.costs.Costs` says, or why that is not known."""
    if "unknown" in found:
        put(f"{'training':12} not known: {found['unknown']}" + (f"; {found['fix']}" if found["fix"] else ""))
        return
    put()
    table(
        ["site", "memory of a GPU", "steps", "tokens", "passes", "hours alone", "reference GPU-hours", "sends"],
        [_site(site) for site in found["sites"]],
        empty="no site",
    )
    if found["borders"]:
        put()
        table(["from", "to", "a round", "takes", "in all"], [_border(row) for row in found["borders"]], empty="")
    put()
    for name, text in _facts(found):
        put(f"{name:12} {text}")
    for text in found["warnings"]:
        put(f"{'warning':12} {text}")


def _site(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["site"],
        f"{data_size(int(row['needed_bytes']))} of {data_size(int(row['gpu_bytes']))}",
        f"{int(row['steps']):,}",
        number(int(row["tokens"])),
        f"{float(row['passes']):,.2f}" if row["passes"] else "-",
        span(row["hours"]),
        span(row["reference_gpu_hours"]),
        data_size(int(row["sent_bytes"])),
    )


def _border(row: dict[str, Any]) -> tuple[str, ...]:
    takes = (
        "-"
        if row["round_s"] is None
        else f"{row['round_s']:,.2g} s"
        if row["round_s"] < 10
        else f"{row['round_s']:,.0f} s"
    )
    return (
        row["sender"],
        row["recipient"],
        data_size(int(row["round_bytes"])),
        takes,
        data_size(int(row["total_bytes"])),
    )


def _steps(found: dict[str, Any]) -> str:
    shortest, longest = int(found["shortest"]), int(found["longest"])
    return f"{longest:,} to {shortest:,}" if shortest < longest else f"{longest:,}"


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    low, high = found["utilisation"]
    facts = [
        ("model", f"{number(int(found['parameters']))} parameters with {found['vocab_size']:,} words, "
         f"{number(int(found['flops_per_token']))} FLOPs a token"),
        ("training", f"{found['rounds']:,} rounds of {_steps(found)} steps, "
         f"{number(int(found['tokens']))} tokens, {int(found['flops']):.2g} FLOPs over all sites"),
        ("hours", f"{span(found['hours'])}, {span(found['reference_gpu_hours'])} reference GPU-hours, at "
         f"{low:.0%} to {high:.0%} of the TFLOP/s measured of each flavor"),
        ("kept", f"{data_size(int(found['kept_round_bytes']))} a round in each private store, "
         f"{data_size(int(found['kept_bytes']))} in all"
         + (f", and {data_size(int(found['received_bytes']))} of peers for audits" if found["received_bytes"] else "")),
    ]  # fmt: skip
    if any(row["round_s"] for row in found["borders"]):
        least, most = found["computing"]
        facts.insert(3, ("computing", f"{least:.1%} to {most:.1%} of that time, the rest for bytes over stated links"))
    simulated = [row["site"] for row in found["sites"] if row["simulated"]]
    if simulated:
        facts.append(
            ("simulated", f"GPUs of {', '.join(simulated)}: memory and hours are of the flavor they stand for")
        )
    return facts


def number(value: int) -> str:
    """Render a count for people: `1.24 billion`."""
    for unit, name in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if 2000 * value >= 1999 * unit:  # what rounds to one of it
            return f"{_digits(value / unit)} {name}"
    return f"{value:,}"


def span(pair: list[float]) -> str:
    """Render a range of hours: `1.2 to 2.4`. Numbers above 2^53 travel as text."""
    low, high = ("<0.001" if 0 < part < 0.001 else _digits(part) for part in map(float, pair))
    return low if low == high else f"{low} to {high}"


def _digits(value: float) -> str:
    return f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
