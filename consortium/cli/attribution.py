"""Who brought what to a model, at the command line."""

from __future__ import annotations

from typing import Any

from consortium.cli.show import put, table
from consortium.domain.units import data_size

_COLUMNS = ["partner", "rounds", "refused", "tokens", "FLOPs", "weight", "sent", "received", "loss share", "work is"]


def show_attribution(found: dict[str, Any]) -> None:
    """Print a training's figures by partner, and what the whole model took; what is not known is a dash."""
    partners = {name: row for name, row in sorted(found["partners"].items())}
    rows = [
        (
            name,
            row["rounds"],
            row["refused"],
            f"{int(row['tokens']):,}",
            _flops(row["flops"]),
            row["weight"],
            _bytes(row["bytes_sent"]),
            _bytes(row["bytes_received"]),
            row["loss_share_nats"] or "-",
            row["evidence"],
        )
        for name, row in partners.items()
    ]
    if rows:
        table(_COLUMNS, rows, empty="")
        _model(next(iter(partners.values())))
    kept = found["retained"]
    if kept["rounds"]:
        size = "of unknown size" if kept["bytes_per_site"] is None else f"{data_size(int(kept['bytes_per_site']))}"
        put(f"each site keeps its peers' contributions to {kept['rounds']} rounds for audits: {size} in all")


def _model(row: dict[str, Any]) -> None:
    behind = f", {_flops(row['lineage_flops'])} with {', '.join(row['lineage'])}" if row["lineage"] else ""
    put(f"model: {_flops(row['model_flops'])} FLOPs{behind}; {_law(row)}")


def _law(row: dict[str, Any]) -> str:
    """Where the FLOPs behind the model stand against the thresholds of the AI Act."""
    if row["systemic_risk"]:
        return "above 10^25 (systemic risk)"
    if row["general_purpose"]:
        return "above 10^23 (general-purpose)" + ("; 10^25: unknown" if row["systemic_risk"] is None else "")
    return "10^23: unknown" if row["general_purpose"] is None else "below 10^23"


def _flops(value: int | str | None) -> str:
    return "-" if value is None else f"{int(value):.3g}"


def _bytes(value: int | str | None) -> str:
    return "-" if value is None else data_size(int(value))
