"""The admin's commands: quotas, shares."""

from __future__ import annotations

import typer

from consortium.cli.context import As, Caller, Json
from consortium.cli.show import put_json, table

quota_app = typer.Typer(help="Quotas per account and flavor.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(quota_app, name="quota")
    quota_app.command("show", help="Show quotas, budgets and pledges.")(quota_show)
    app.command("shares", help="Show what every account holds, borrows and lends now.")(shares)


def quota_show(as_json: Json = False, person: As = "") -> None:
    """Show quotas."""
    found = Caller(person).client().quota()
    if as_json:
        put_json(found)
        return
    rows = [
        (
            account["id"],
            quota["flavor"],
            quota["nominal"],
            _limit(quota["borrowing_limit"]),
            _limit(quota["lending_limit"]),
        )
        for account in found["accounts"]
        for quota in account["quotas"]
    ]
    table(["account", "flavor", "nominal GPUs", "borrows up to", "lends up to"], rows, empty="no quotas")


def shares(as_json: Json = False, person: As = "") -> None:
    """Show shares."""
    rows = Caller(person).client().shares()
    if as_json:
        put_json(rows)
        return
    table(
        ["account", "flavor", "nominal", "held", "borrowed", "lent"],
        [(r["account"], r["flavor"], r["nominal"], r["held"], r["borrowed"], r["lent"]) for r in rows],
        empty="no account has a share",
    )


def _limit(value: int | None) -> str:
    return "unlimited" if value is None else str(value)
