"""The operator's commands on sites: drain, recall, cordon, maintenance windows and reservations."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import typer

from consortium.cli.context import As, Caller, Json
from consortium.cli.show import put_json, say, table, when
from consortium.domain.units import moment_ms
from consortium.errors import UsageError

site_app = typer.Typer(help="Take a site, or nodes of it, out of service and back.", no_args_is_help=True)
Site = Annotated[str, typer.Argument(metavar="SITE", help="Such as fr-1.")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="A node's id, such as fr-1-n1.")]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("sites", help="List sites: state, GPUs, health, what is out of service.")(sites)
    app.add_typer(site_app, name="site")
    site_app.command("drain", help="Let a site finish its legs and take no new ones (its partner's admin).")(drain)
    site_app.command("resume", help="Let a drained or recalled site take legs again (its partner's admin).")(resume)
    site_app.command("withdraw", help="Recall a site, with notice (its partner's admin).")(withdraw)
    site_app.command("cordon", help="Let a node take no new legs (its partner's admin).")(cordon)
    site_app.command("uncordon", help="End a node's cordon (its partner's admin).")(uncordon)
    site_app.command("window", help="Set nodes aside for an interval (their partner's admin).")(window)
    site_app.command("windows", help="List windows that are not over.")(windows)
    site_app.command("call-off", help="Call a window off, or end it (its site's partner's admin).")(call_off)


def sites(as_json: Json = False, person: As = "") -> None:
    """List sites."""
    rows = Caller(person).client().sites()
    if as_json:
        put_json(rows)
        return
    table(
        ["site", "state", "flavor", "GPUs", "held", "healthy", "last contact (UTC)", "out of service"],
        [
            (
                row["id"],
                row["state"],
                row["flavor"],
                row["gpus"],
                row["gpus_held"],
                _health(row),
                when(int(row["last_contact_ms"])),
                "; ".join(_out_of_service(row)) or "-",
            )
            for row in rows
        ],
        empty="no sites",
    )


def drain(site: Site, person: As = "", as_json: Json = False) -> None:
    """Drain a site."""
    _answer(_admin(person, site).client().drain(site), as_json)


def resume(site: Site, person: As = "", as_json: Json = False) -> None:
    """Resume a site."""
    _answer(_admin(person, site).client().resume(site), as_json)


def withdraw(
    site: Site,
    notice: Annotated[str, typer.Option(help="How long legs may still run: 90s, 30m, 2h, 7d; 0s: not at all.")],
    person: As = "",
    as_json: Json = False,
) -> None:
    """Recall a site."""
    _answer(_admin(person, site).client().withdraw(site, duration_s(notice, "--notice")), as_json)


def cordon(
    site: Site,
    node: Node,
    reason: Annotated[str, typer.Option(help="Why; others read it.")] = "",
    person: As = "",
    as_json: Json = False,
) -> None:
    """Cordon a node."""
    _answer(_admin(person, site).client().cordon(site, node, reason), as_json)


def uncordon(site: Site, node: Node, person: As = "", as_json: Json = False) -> None:
    """Uncordon a node."""
    _answer(_admin(person, site).client().uncordon(site, node), as_json)


def window(
    site: Site,
    start: Annotated[str, typer.Option("--from", help="UTC, such as 2026-03-01T08:00, or from now: +2h.")],
    end: Annotated[str, typer.Option("--to", help="The same; +4h counts from now.")],
    kind: Annotated[str, typer.Option(help="maintenance or reservation.")] = "maintenance",
    nodes: Annotated[str, typer.Option(help="Node ids, with commas; default: all of the site.")] = "",
    account: Annotated[str, typer.Option(help="Of a reservation: who may use it.")] = "",
    person: As = "",
    as_json: Json = False,
) -> None:
    """Plan a window."""
    if kind not in ("maintenance", "reservation"):
        raise UsageError(f"kind {kind!r} is neither maintenance nor reservation", where="--kind")
    now_ms = time.time_ns() // 1_000_000
    planned = (
        _admin(person, site)
        .client()
        .plan_window(
            site,
            kind=kind,
            start_ms=moment(start, now_ms, "--from"),
            end_ms=moment(end, now_ms, "--to"),
            nodes=[node for node in nodes.split(",") if node],
            account=account,
        )
    )
    if as_json:
        put_json(planned)
    else:
        say(f"{planned['id']}: {_interval(planned)}")


def windows(
    site: Annotated[str, typer.Argument(metavar="SITE", help="Only this site's.")] = "",
    person: As = "",
    as_json: Json = False,
) -> None:
    """List windows."""
    rows = Caller(person).client().windows(site)
    if as_json:
        put_json(rows)
        return
    columns = ["window", "site", "kind", "from (UTC)", "to (UTC)", "nodes", "account", "by"]
    cells = [
        (
            row["id"],
            row["site"],
            row["kind"],
            when(int(row["start_ms"])),
            when(int(row["end_ms"])),
            ",".join(row["nodes"]) or "all",
            row["account"] or "-",
            row["by"],
        )
        for row in rows
    ]
    table(columns, cells, empty="no windows")


def call_off(
    window: Annotated[str, typer.Argument(metavar="WINDOW", help="A window's id; `consortium site windows` lists.")],
    person: As = "",
    as_json: Json = False,
) -> None:
    """Call a window off."""
    found = [row["site"] for row in Caller(person).client().windows() if row["id"] == window]
    ended = _admin(person, found[0] if found else "").client().call_off(window)
    if as_json:
        put_json(ended)
    else:
        say(f"called off: {_interval(ended)}")


def duration_s(text: str, where: str) -> int:
    """Return the seconds in `90s`, `30m`, `2h` or `7d`. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None:
        raise UsageError(f"{text!r} is no duration", where=where, fix="write it as 90s, 30m, 2h or 7d")
    return int(match[1]) * _UNITS[match[2]]


def moment(text: str, now_ms: int, where: str) -> int:
    """Return what `moment_ms` does, and `now_ms` for `now`. Raises UsageError."""
    try:
        return now_ms if text == "now" else moment_ms(text, now_ms)
    except ValueError as fault:
        fix = "write it as 2026-03-01T08:00 (UTC), +2h or now"
        raise UsageError(f"{text!r} is no moment", where=where, fix=fix) from fault


def _admin(person: str, site: str) -> Caller:
    return Caller(person, partner=site[:2], role="admin")


def _interval(row: dict[str, Any]) -> str:
    whom = f" for {row['account']}" if row["account"] else ""
    where = f"{row['site']} ({', '.join(row['nodes']) or 'all nodes'})"
    return f"{row['kind']}{whom} at {where}, {when(int(row['start_ms']))} to {when(int(row['end_ms']))} UTC"


def _health(row: dict[str, Any]) -> str:
    said = "yes" if row["healthy"] else f"no: {row['unhealthy_reason']}"
    refused = row.get("records_refused", "")
    return f"{said}; its records are refused: {refused}" if refused else said


def _out_of_service(row: dict[str, Any]) -> list[str]:
    said = [f"{item['node']} cordoned by {item['by']}: {item['reason'] or '-'}" for item in row["cordoned"]]
    said += [_interval(item) for item in row["windows"]]
    if row["withdraw_ms"]:
        said.insert(0, f"recalled by its partner from {when(int(row['withdraw_ms']))} on")
    return said


def _answer(site: dict[str, Any], as_json: bool) -> None:
    if as_json:
        put_json(site)
        return
    say(f"{site['id']} is {site['state']}; {site['gpus_held']} of {site['gpus']} GPUs held")
    for line in _out_of_service(site):
        say(f"  {line}")
