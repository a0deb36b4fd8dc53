"""Rounds of a training: what became of each, and the admin's rulings on a site's part in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from consortium.cli.context import As, Caller, Json, check_job_id
from consortium.cli.show import put_json, say, table
from consortium.errors import UsageError

if TYPE_CHECKING:
    from consortium.domain.training import Round

Action = Literal["reject", "readmit", "withdraw"]
round_app = typer.Typer(help="Rounds of federated training, and who takes part in them.", no_args_is_help=True)
job_app = typer.Typer(help="Change where a job runs.", no_args_is_help=True)
JobArg = Annotated[str, typer.Argument(metavar="JOB", help="A pretrain job's id.")]
SiteArg = Annotated[str, typer.Argument(metavar="SITE", help="Such as fr-1.")]
Reason = Annotated[str, typer.Option(help="Why; it stands in the ledger.")]
FromRound = Annotated[int, typer.Option("--round", metavar="K", min=0, help="From this round on; default: the next.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(round_app, name="round")
    round_app.command("ls", help="List a job's rounds: who took part, who was refused and why, whether they agree.")(ls)
    round_app.command("reject", help="Leave a site's contributions out from a round on (an admin).")(reject)
    round_app.command("readmit", help="Let a site's contributions count again (an admin).")(readmit)
    app.add_typer(job_app, name="job")
    job_app.command("withdraw-site", help="Let a training go on without a site, which gives its GPUs back (an admin).")(
        withdraw_site
    )
    job_app.command("add-site", help="Let a site join a training between two rounds (the job's submitter).")(add_site)


def ls(job: JobArg, as_json: Json = False, person: As = "") -> None:
    """List rounds."""
    rows = [summary(one) for one in Caller(person).client().rounds(check_job_id(job))]
    if as_json:
        put_json(rows)
        return
    columns = ["round", "phase", "weights", "refused", "left out", "outer state"]
    table(columns, [_cells(row) for row in rows], empty="no round yet")


def reject(job: JobArg, site: SiteArg, reason: Reason, number: FromRound = 0, person: As = "") -> None:
    """Reject a site."""
    _rule("reject", job, site, reason, number, person)


def readmit(job: JobArg, site: SiteArg, reason: Reason, number: FromRound = 0, person: As = "") -> None:
    """Readmit a site."""
    _rule("readmit", job, site, reason, number, person)


def withdraw_site(job: JobArg, site: SiteArg, reason: Reason, number: FromRound = 0, person: As = "") -> None:
    """Withdraw a site from a job."""
    _rule("withdraw", job, site, reason, number, person)


def add_site(
    job: JobArg,
    site: SiteArg,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="DATASET", help="What it trains on there; repeatable.")
    ] = None,
    person: As = "",
) -> None:
    """Add a site to a job."""
    from dataclasses import replace

    from consortium.client.submission import sign_spec

    if not inputs:
        fix = f"name datasets of tokens at {site}; `consortium data ls` lists them"
        raise UsageError(f"{site} is given nothing to train on", where="--input", fix=fix)
    caller = Caller(person)
    with caller.client() as client:
        spec = client.job(check_job_id(job)).spec
        named = [item for item in (client.dataset(name) for name in inputs) if item.id not in spec.inputs]
        if elsewhere := next((item for item in named if item.site != site), None):
            raise UsageError(f"{elsewhere.name} is at {elsewhere.site}, not at {site}", where="--input")
        amended = replace(
            spec,
            inputs=(*spec.inputs, *(item.id for item in named)),
            sites=tuple(sorted({*spec.sites, site})) if spec.sites else (),
        )
        client.add_sites(job, sign_spec(amended, caller.key()))
    say(f"{site} joins between two rounds, once its GPUs are free; the ledger will say from which round on")


def summary(round_: Round) -> dict[str, Any]:
    """Return what a person wants to know of a round, as JSON."""
    from consortium.domain.codec import to_json
    from consortium.train.rounds import left_out

    certificate, digests = round_.certificate, round_.outer_digests or {}
    refused: dict[str, set[str]] = {}
    for verdict in round_.verdicts:
        if not verdict.accept:
            refused.setdefault(verdict.site, set()).add(verdict.reason or "refused")
    out = left_out(round_.number, round_.rulings, certificate.standing if certificate else None)
    parts = certificate.contributions if certificate else ()
    return {
        "round": round_.number,
        "phase": round_.phase.value,
        "expected": list(round_.expected),
        "committed": list(round_.committed) or [commit.site for commit in round_.commits],
        "weights": {part.site: float.fromhex(part.weight) for part in parts},
        "clips": {part.site: float.fromhex(part.clip) for part in parts},
        "tokens": {part.site: part.tokens for part in parts},
        "refused": {site: sorted(reasons) for site, reasons in sorted(refused.items())},
        "left_out": sorted(out),
        "rulings": to_json(round_.rulings),
        "outer_digests": digests,
        "agree": len(set(digests.values())) == 1 if digests else None,
        "settlement": None if round_.settlement is None else to_json(round_.settlement),
    }


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    waiting = [site for site in row["expected"] if site not in row["committed"]]
    phase = row["phase"] + (f", waits for {','.join(waiting)}" if row["phase"] == "open" and waiting else "")
    return (
        row["round"],
        phase,
        " ".join(f"{site} {weight:.3f}" for site, weight in row["weights"].items()) or "-",
        "; ".join(f"{site}: {', '.join(reasons)}" for site, reasons in row["refused"].items()) or "-",
        ", ".join(row["left_out"]) or "-",
        _outcome(row),
    )


def _outcome(row: dict[str, Any]) -> str:
    settled = row["settlement"]
    if settled and settled["outer"]:
        return f"settled: {', '.join(settled['differ'])} differed"
    return {True: "agree", False: "differ", None: "-"}[row["agree"]]


def _rule(action: Action, job: str, site: str, reason: str, number: int, person: str) -> None:
    from consortium.domain.training import Ruling
    from consortium.keys.signing import sign_value

    caller = Caller(person, role="admin")
    with caller.client() as client:
        known = client.rulings(check_job_id(job))
        first = int(known["first_open"])
        if action == "withdraw" and site in known["committed"]:
            first += 1  # what it contributed already counts
        ruling = Ruling(
            job=job, round=number or first, site=site, action=action, reason=reason.strip(), by=caller.name()
        )
        client.rule(sign_value(caller.key(), ruling))
    what = {"reject": "left out", "readmit": "let in again", "withdraw": "withdrawn"}[action]
    say(f"{site} is {what} from round {ruling.round} on; it is in the ledger")
