"""The engineer's commands: submit, jobs, show, explain, logs, cancel."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from consortium.cli.context import As, Caller, Json, check_job_id
from consortium.cli.show import clipped, put_json, say, table, when

Job = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]
_FAILED = {"failed": 1, "cancelled": 1}


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("submit", help="Submit a job: KIND is clean, tokenize, pretrain or evaluate.")(submit)
    app.command("jobs", help="List jobs.")(jobs)
    app.command("show", help="Show a job with its legs.")(show)
    app.command("explain", help="Say why a job does not run: what was tried at every site.")(explain)
    app.command("logs", help="Print a job's logs; sites that keep theirs are named.")(logs)
    app.command("cancel", help="Cancel a job.")(cancel)


def submit(
    kind: Annotated[str, typer.Argument(metavar="KIND")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as inputs=[laws-fr] gpus=2.")
    ] = None,
    account: Annotated[str, typer.Option(help="Who pays: a partner or project; default: yours.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would become of it; submit nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end; exit 1 if it fails.")] = False,
    idempotency_key: Annotated[str, typer.Option(help="Submitting again with the same key makes no second job.")] = "",
    as_json: Json = False,
    person: As = "",
) -> None:
    """Submit a job."""
    from consortium.client.submission import make_spec

    caller = Caller(person, partner=account[:2])
    with caller.client() as client:
        signed = make_spec(client, kind, overrides or [], person=caller.name(), key=caller.key(), account=account)
        if dry_run:
            _dry_run(client.dry_run(signed), as_json)
            return
        shown = client.submit(signed, idempotency_key=idempotency_key)
        if shown["state"] == "denied":
            _denied(shown, as_json)
        if watch:
            shown = _watch(client, shown["id"])
        if as_json:
            put_json(shown)
        else:
            print(shown["id"])
        raise typer.Exit(_FAILED.get(shown["state"], 0) if watch else 0)


def jobs(
    state: Annotated[str, typer.Option(help="Only these states, with commas: pending,running.")] = "",
    account: Annotated[str, typer.Option(help="Only this account's.")] = "",
    as_json: Json = False,
    person: As = "",
) -> None:
    """List jobs."""
    rows = Caller(person).client().jobs(states=[s for s in state.split(",") if s], account=account)
    if as_json:
        put_json(rows)
        return
    table(
        ["job", "kind", "account", "state", "sites", "reason"],
        [
            (
                row["id"],
                row["spec"]["kind"],
                row["spec"]["account"],
                row["state"],
                ",".join(_sites(row)) or "-",
                clipped((row["reason"] or {}).get("message", ""), 60),
            )
            for row in rows
        ],
        empty="no jobs; submit one with `consortium submit KIND`",
    )


def show(job: Job, as_json: Json = False, person: As = "") -> None:
    """Show a job."""
    found = Caller(person).client().job(check_job_id(job))
    if as_json:
        put_json(found)
        return
    spec = found["spec"]
    facts = {
        "job": found["id"],
        "state": found["state"],
        "reason": (found["reason"] or {}).get("message", ""),
        "kind": spec["kind"],
        "name": spec["name"],
        "account": spec["account"],
        "submitter": spec["submitter"],
        "purpose": spec["purpose"],
        "inputs": ", ".join(spec["inputs"]),
        "per site": f"{spec['resources']['gpus']} GPUs, at most {spec['resources']['walltime_s']} s",
        "submitted": when(found["created_ms"]),
        "MLflow run": found["tracking_run"],
    }
    for key, value in facts.items():
        print(f"{key:12} {value or '-'}")
    for denial in found["denials"]:
        print(f"{'denied by':12} {denial['clause']} at {denial['file']}:{denial['line']}: {denial['message']}")
    _legs(found)


def explain(job: Job, as_json: Json = False, person: As = "") -> None:
    """Explain a job."""
    found = Caller(person).client().explain(check_job_id(job))
    if as_json:
        put_json(found)
        return
    reason = found["reason"]
    print(f"{found['job']} is {found['state']}" + (f": {reason['message']}" if reason else ""))
    for denial in found["denials"]:
        print(f"  {denial['clause']} ({denial['file']}:{denial['line']}): {denial['message']}")
        print(f"  would pass: {denial['would_pass']}")
    if found["funnel"]:
        _funnel(found["funnel"])
    for site, progress in sorted((found.get("progress") or {}).items()):
        if progress:
            print(f"  {site}: {_progress(progress)}")


def logs(
    job: Job,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the job ends.")] = False,
    site: Annotated[str, typer.Option(help="Only this site's.")] = "",
    as_json: Json = False,
    person: As = "",
) -> None:
    """Print logs."""
    client = Caller(person).client()
    after, told = 0, False
    while True:
        found = client.logs(check_job_id(job), site=site, after=after)
        if as_json:
            put_json(found)
        else:
            _log_text(found, told)
        told = True
        more = found["next"] > after
        after = found["next"]
        if (found["final"] or not follow) and not more:
            return
        if not more:
            time.sleep(0.5)


def cancel(job: Job, as_json: Json = False, person: As = "") -> None:
    """Cancel a job."""
    caller = Caller(person)
    found = caller.client().cancel(check_job_id(job))
    if as_json:
        put_json(found)
    else:
        say(f"{found['id']} is {found['state']}")


def _denied(shown: dict[str, Any], as_json: bool) -> None:
    """Print what denies a job and leave with its exit code: 3 by policy, 4 by quota."""
    from consortium.errors import PolicyDeniedError, QuotaDeniedError

    if as_json:
        put_json(shown)
    reason = shown["reason"] or {}
    if not shown["denials"]:
        raise QuotaDeniedError(f"{shown['id']} is denied: {reason.get('message', '')}", fix=reason.get("fix") or None)
    first = shown["denials"][0]
    raise PolicyDeniedError(
        f"{shown['id']} is denied by {first['clause']}: {first['message']}",
        where=f"{first['file']}:{first['line']}",
        fix=f"would pass: {first['would_pass']}",
    )


def _dry_run(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        put_json(answer)
        raise typer.Exit({"denied": 3 if answer["denials"] else 4}.get(answer["state"], 0))
    if answer["state"] == "denied":
        _denied(answer | {"id": "the job"}, False)
    print(f"nothing submitted; it would run at {', '.join(answer['target_sites']) or 'any one site that fits'}")
    if answer["funnel"]:
        print(answer["funnel"]["reason"]["message"])
        _funnel(answer["funnel"])


def _watch(client: Any, job: str) -> dict[str, Any]:
    say(f"{job} submitted")
    for shown in client.watch(job, timeout_s=366 * 86_400.0):
        reason = (shown["reason"] or {}).get("message", "")
        parts = [f"{site}: {_progress(p)}" for site, p in sorted(shown["progress"].items()) if p]
        say(f"{shown['state']:10} {'; '.join(parts) or reason}")
    final: dict[str, Any] = client.job(job)
    return final


def _sites(job: dict[str, Any]) -> list[str]:
    legs = job["attempts"][-1]["legs"] if job["attempts"] else []
    return sorted(leg["site"] for leg in legs) or list(job["spec"]["sites"])


def _legs(job: dict[str, Any]) -> None:
    for attempt in job["attempts"]:
        print(f"attempt {attempt['number']}")
        for leg in attempt["legs"]:
            gpus = sum(leg["nodes"].values())
            told = leg["reason"] or _progress(job["progress"].get(leg["site"]) or {})
            print(f"  {leg['site']}  {leg['state']}  {gpus} GPUs  {leg['id']}@{_epoch(leg['epoch'])}  {told}".rstrip())


def _epoch(epoch: dict[str, Any]) -> str:
    return f"{epoch['incarnation']}.{epoch['counter']}"


def _progress(progress: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in progress.items())


def _funnel(funnel: dict[str, Any]) -> None:
    for step in funnel["steps"]:
        numbers = ", ".join(f"{key} {value}" for key, value in step["numbers"].items())
        print(
            f"  {step['rule']:12} {', '.join(step['sites_left']) or 'no site left'}"
            + (f"  ({numbers})" if numbers else "")
        )
        for drop in step["dropped"]:
            print(f"    {drop['site']}: {drop['reason']['message']}")
    if funnel["position"]:
        print(f"  position     {funnel['position']} in line")
    if funnel["holders"]:
        print(f"  held by      {', '.join(f'{p} {n} GPUs' for p, n in funnel['holders'].items())}")
    estimate = funnel["estimated_start"]
    if estimate:
        latest = "unknown" if estimate["latest_ms"] is None else when(int(estimate["latest_ms"]))
        print(f"  starts       between {when(int(estimate['earliest_ms']))} and {latest} (UTC)")
    if funnel["fix"]:
        print(f"  fix          {funnel['fix']}")


def _log_text(found: dict[str, Any], told: bool) -> None:
    for chunk in found["chunks"]:
        for line in chunk["text"].splitlines():
            print(f"{chunk['site']} | {line}")
    if not told:
        for site in found["withheld"]:
            say(f"{site} keeps its logs at home: its partner's policy does not release them")
