"""The operator's and the admin's commands: sites, quotas, shares."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from consortium.cli.context import As, Caller, Json
from consortium.cli.show import put_json, say, table, when

site_app = typer.Typer(help="Take a site out of service and back.", no_args_is_help=True)
quota_app = typer.Typer(help="Quotas per account and flavor.", no_args_is_help=True)
Site = Annotated[str, typer.Argument(metavar="SITE", help="Such as fr-1.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("sites", help="List sites: state, GPUs, health.")(sites)
    app.add_typer(site_app, name="site")
    site_app.command("drain", help="Let a site finish its legs and take no new ones (its partner's admin).")(drain)
    site_app.command("resume", help="Let a drained site take legs again (its partner's admin).")(resume)
    app.add_typer(quota_app, name="quota")
    quota_app.command("show", help="Show quotas, budgets and pledges.")(quota_show)
    app.command("shares", help="Show what every account holds, borrows and lends now.")(shares)


def sites(as_json: Json = False, person: As = "") -> None:
    """List sites."""
    rows = Caller(person).client().sites()
    if as_json:
        put_json(rows)
        return
    table(
        ["site", "state", "flavor", "GPUs", "held", "healthy", "last contact (UTC)"],
        [
            (
                row["id"],
                row["state"],
                row["flavor"],
                row["gpus"],
                row["gpus_held"],
                "yes" if row["healthy"] else f"no: {row['unhealthy_reason']}",
                when(int(row["last_contact_ms"])),
            )
            for row in rows
        ],
        empty="no sites",
    )


def drain(site: Site, person: As = "", as_json: Json = False) -> None:
    """Drain a site."""
    _answer(Caller(person, partner=site[:2], role="admin").client().drain(site), as_json)


def resume(site: Site, person: As = "", as_json: Json = False) -> None:
    """Resume a site."""
    _answer(Caller(person, partner=site[:2], role="admin").client().resume(site), as_json)


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


def _answer(site: dict[str, Any], as_json: bool) -> None:
    if as_json:
        put_json(site)
    else:
        say(f"{site['id']} is {site['state']}; {site['gpus_held']} of {site['gpus']} GPUs held")


def _limit(value: int | None) -> str:
    return "unlimited" if value is None else str(value)
