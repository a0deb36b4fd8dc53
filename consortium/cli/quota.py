"""The admin's commands: quotas and how they change, shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consortium.cli.context import As, Caller, Json
from consortium.cli.show import put, put_json, say, table, when
from consortium.domain.units import gpu_hours

if TYPE_CHECKING:
    from consortium.client.api import Client

quota_app = typer.Typer(help="Quotas per account and flavor, budgets, pledges.", no_args_is_help=True)
Change = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE | KEY=VALUE...",
        help="A whole quota file, or changes such as accounts.fr.quotas.h100-sxm.nominal=4 budgets.fr.2026-11=6000.",
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(quota_app, name="quota")
    quota_app.command("show", help="Show quotas, budgets, pledges, and how long accounts' jobs run.")(quota_show)
    quota_app.command("plan", help="Say what a change of the quotas would do, to whom, and to the queue.")(quota_plan)
    quota_app.command("apply", help="Sign a change of the quotas; the last partner needed puts it in force.")(
        quota_apply
    )
    app.command("shares", help="Show what every account holds, borrows and lends, and its fair share.")(shares)


def quota_show(as_json: Json = False, person: As = "") -> None:
    """Show quotas."""
    found = Caller(person).client().quota()
    if as_json:
        put_json(found)
        return
    document = found["document"]
    put(f"{document['file']}, version {document['version']}, since {when(int(document['issued_ms']))} UTC\n")
    rows = [
        (account["id"], quota["flavor"], quota["nominal"], _limit(quota["borrowing_limit"]),
         _limit(quota["lending_limit"]))
        for account in found["accounts"]
        for quota in account["quotas"]
    ]  # fmt: skip
    table(["account", "flavor", "nominal GPUs", "borrows up to", "lends up to"], rows, empty="no quotas")
    if found["standings"]:
        put()
        table(
            ["budget of", "period", "reference GPU-hours", "used", "running jobs may use", "left"],
            [_standing(item) for item in found["standings"]],
            empty="",
        )
    known = [item for item in found["run_times"] if item["jobs"]]
    if known:
        put()
        table(
            ["jobs of", "ended", "of their walltime use", "eight in ten", "actual / expected", "half of them"],
            [_run_time(item) for item in known],
            empty="",
        )
    for change in found["waiting"]:
        put()
        _changes(change)
        put(f"waits for an admin of {' and of '.join(change['missing'])} to sign it")


def quota_plan(change: Change, as_json: Json = False, person: As = "") -> None:
    """Plan a change."""
    from consortium.errors import ForbiddenError

    with Caller(person, role="admin").client() as client:
        text = _text(client, change)
        with _blaming(client, change):
            found = client.quota_plan(text)
    if as_json:
        put_json(found)
    else:
        _changes(found)
        if found["changes"]:
            put(f"needs the consent of {', '.join(found['consent'])}")
        _effect(found["effect"])
    refused = next((item for item in found["changes"] if item["refused"]), None)
    if refused is not None:
        raise ForbiddenError(f"{refused['what']} of {refused['account']}: {refused['refused']}", where=found["file"])


def quota_apply(change: Change, as_json: Json = False, person: As = "") -> None:
    """Apply a change."""
    from consortium.domain.quota import QuotaApproval
    from consortium.keys.canonical import canonical, digest

    caller = Caller(person, role="admin")
    with caller.client() as client:
        text = _text(client, change)
        replaces = client.quota()["document"]["digest"]
        statement = QuotaApproval(
            federation=client.federation()["log_name"],
            person=caller.name(),
            change=digest(text.encode()),
            replaces=replaces,
        )
        signature = caller.key().sign(canonical(statement))
        with _blaming(client, change):
            found = client.quota_apply(text, replaces=replaces, signature=signature)
    if as_json:
        put_json(found)
        return
    _changes(found)
    if found["missing"]:
        say(
            f"signed by {', '.join(found['signed'])}; it is in force once an admin of "
            f"{' and of '.join(found['missing'])} has applied the same"
        )
    else:
        say(f"in force as version {found['version']}, signed by {', '.join(found['signed'])}; it is in the ledger")


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
    put()
    accounts = {row["account"]: row for row in rows}
    table(
        [
            "account",
            "weight",
            "level",
            "share",
            "dominant",
            "of",
            "borrowed",
            "ref. GPU-h",
            "lent",
            "ref. GPU-h",
            "credit",
        ],
        [_factors(row) for _, row in sorted(accounts.items())],
        empty="",
    )
    put("share = max(0, dominant + borrowed - credit) / weight, all of the pool's GPUs; the past counts half each")
    put("half-life, in reference GPU-hours. A job within nominal has level 0; of others, lower levels come first.")


def _text(client: Client, change: list[str]) -> str:
    """The text of the quota file that is meant: a file's, or the one in force with changes."""
    from consortium.config.quota_edit import edit_quota
    from consortium.errors import UsageError

    files = [item for item in change if "=" not in item]
    if files and len(change) > 1:
        raise UsageError("either one file or changes, not both", where=" ".join(change))
    if not files:
        document = client.quota()["document"]
        return edit_quota(str(document["text"]), change, str(document["file"]))
    try:
        return Path(files[0]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise UsageError(f"cannot read it: {fault}", where=files[0], fix="name a quota file, or KEY=VALUE") from fault


@contextmanager
def _blaming(client: Client, change: list[str]) -> Iterator[None]:
    """Name the change at fault, or the caller's own file, where the server names a line of the text it was sent."""
    from consortium.config.quota_edit import blamed
    from consortium.errors import ConfigError

    try:
        yield
    except ConfigError as fault:
        document = client.quota()["document"]
        if "=" not in change[0]:
            file, where = str(document["file"]), fault.where or ""
            if not where.startswith(f"{file}:"):
                raise
            raise ConfigError(fault.what, where=change[0] + where.removeprefix(file), fix=fault.fix) from fault
        raise blamed(fault, str(document["text"]), change, str(document["file"])) from fault


def _changes(found: dict[str, Any]) -> None:
    table(
        ["account", "what", "before", "after", "decided by", ""],
        [
            (
                change["account"],
                change["what"],
                _value(change, "before"),
                _value(change, "after"),
                ", ".join(change["consent"]),
                change["refused"] and f"refused: {change['refused']}",
            )
            for change in found["changes"]
        ],
        empty="nothing would change",
    )


def _effect(effect: dict[str, Any]) -> None:
    moved = effect["jobs"]
    if not moved:
        put(f"no start changes among the {effect['waiting']} jobs that wait")
    else:
        put(f"{len(moved)} of the {effect['waiting']} jobs that wait start at another time:")
        table(
            ["job", "account", "starts (UTC)", "would start", ""],
            [
                (row["job"], row["account"], _start(row["before_ms"]), _start(row["after_ms"]), _shift(row))
                for row in moved
            ],
            empty="",
        )
    for eviction in effect["evictions"]:
        hours = gpu_hours(int(eviction["lost_gpu_ms"]), 2)
        put(
            f"{eviction['job']} ({eviction['gpus']} GPUs) is evicted for {eviction['for_job']} by right of "
            f"{eviction['rule']}; {hours} GPU-hours are done again"
        )
    if not effect["evictions"]:
        put("no running job is evicted by it at once")


def _shift(row: dict[str, Any]) -> str:
    if row["before_ms"] is None:
        return "starts at last"
    if row["after_ms"] is None:
        return "no start in sight any more"
    by_s = (int(row["after_ms"]) - int(row["before_ms"])) // 1000
    return f"{abs(by_s)} s {'later' if by_s > 0 else 'earlier'}"


def _start(unix_ms: Any) -> str:
    return "-" if unix_ms is None else when(int(unix_ms))


def _standing(item: dict[str, Any]) -> tuple[str, ...]:
    hours = (gpu_hours(int(item[name]), 1) for name in ("budget", "used", "promised", "left"))
    return (item["account"], item["period"], *hours)


def _run_time(item: dict[str, Any]) -> tuple[str, ...]:
    error = item["error"]
    return (
        item["account"],
        str(item["jobs"]),
        f"{item['expected_percent']:.0f}%" + (f" (as {item['source']})" if item["source"] != item["account"] else ""),
        f"{item['low_percent']:.0f}% to {item['high_percent']:.0f}%",
        f"{error['median']:.2f}" if error else "-",
        f"{error['low']:.2f} to {error['high']:.2f}" if error else "-",
    )


def _factors(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["account"],
        str(row["weight"]),
        str(row["level"]),
        f"{row['share']:.4f}",
        f"{row['dominant_share']:.4f}",
        row["dominant_flavor"] or "-",
        f"{row['borrowed_share']:.4f}",
        gpu_hours(int(row["borrowed_reference_gpu_ms"]), 1),
        f"{row['lent_share']:.4f}",
        gpu_hours(int(row["lent_reference_gpu_ms"]), 1),
        f"{row['credit']:.4f}",
    )


def _value(change: dict[str, Any], side: str) -> str:
    value = change[side]
    if change["what"] == "account":
        return "yes" if value else "no"
    if value is not None:
        return str(value)
    return "unlimited" if "limit" in change["what"] else "none"


def _limit(value: int | None) -> str:
    return "unlimited" if value is None else str(value)
