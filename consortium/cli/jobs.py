"""The engineer's commands: submit, jobs, show, explain, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consortium.cli import dryrun
from consortium.cli.attribution import show_attribution
from consortium.cli.context import As, Caller, Json, check_job_id
from consortium.cli.dryrun import denied, funnel
from consortium.cli.logs import logs
from consortium.cli.show import put, put_json, say, table, when
from consortium.cli.watch import follow, told
from consortium.errors import JobFailedError

if TYPE_CHECKING:
    from consortium.client.api import Client
    from consortium.domain.job import Job, JobSpec
    from consortium.train.plot import Curves, Form

_LISTED = 1_000
JobArg = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


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
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Such as inputs=[laws-fr] gpus=2.")
    ] = None,
    account: Annotated[str, typer.Option(help="Who pays: a partner or project; default: yours.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would become of it; submit nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end; exit 1 if it fails.")] = False,
    resume: Annotated[
        str,
        typer.Option(metavar="JOB", help="Go on where this training ended; outer.rounds then counts all its rounds."),
    ] = "",
    array: Annotated[
        int | None, typer.Option(metavar="N", help="Submit N jobs, all or none; %a in a value stands for 0 to N-1.")
    ] = None,
    array_limit: Annotated[int, typer.Option(metavar="M", help="At most M of them in line or at work at a time.")] = 0,
    idempotency_key: Annotated[str, typer.Option(help="Submitting again with the same key makes no second job.")] = "",
    as_json: Json = False,
    person: As = "",
) -> None:
    """Submit a job."""
    from consortium.client.resumption import draft_resumed
    from consortium.client.submission import draft_array, draft_spec, finish_spec
    from consortium.errors import UsageError

    if array_limit and array is None:
        raise UsageError("--array-limit needs --array")
    if resume and (array is not None or kind != "pretrain"):
        raise UsageError("--resume goes with `submit pretrain`, and not with --array")
    given = overrides or []
    caller = Caller(person, partner=(account or _account(given))[:2])
    with caller.client() as client:
        if resume:
            drafts: tuple[JobSpec, ...] = (
                draft_resumed(client, check_job_id(resume), given, person=caller.name(), account=account),
            )
        elif array is not None:
            drafts = draft_array(
                client, kind, given, size=array, limit=array_limit, person=caller.name(), account=account
            )
        else:
            drafts = (draft_spec(client, kind, given, person=caller.name(), account=account),)
        say(f"as {drafts[0].submitter}, paid by account {drafts[0].account}")
        if dry_run:
            dryrun.show(client.dry_run(drafts[0]), as_json, members=len(drafts))
            return
        key = caller.key()
        signed = [finish_spec(draft, key) for draft in drafts]
        if array is not None:
            made = client.submit_array(signed, idempotency_key=idempotency_key)
        else:
            made = [client.submit(signed[0], idempotency_key=idempotency_key)]
        if watch:
            made = [_watch(client, job.id) if job.state.value != "denied" else job for job in made]
    _submitted(made, watch, as_json, array=array is not None)


def _account(overrides: list[str]) -> str:
    """Return the account that the overrides name last; empty where none does."""
    named = [text.partition("=")[2] for text in overrides if text.startswith("account=")]
    return named[-1] if named else ""


def _submitted(made: list[Job], watched: bool, as_json: bool, *, array: bool) -> None:
    """Print what was submitted; leave with the first denial, or failure of what was watched."""
    if as_json:
        _put(made if array else made[0])
    for job in made:
        if job.state.value == "denied":
            denied(job)
        if not as_json:
            put(job.id)
    for job in made:
        if watched and job.state.value != "succeeded":
            message = job.reason.message if job.reason else ""
            raise JobFailedError(f"{job.id} {job.state.value}: {message}", fix=f"consortium logs {job.id}")


def jobs(
    state: Annotated[str, typer.Option(help="Only these states, with commas: pending,running.")] = "",
    account: Annotated[str, typer.Option(help="Only this account's and its projects'.")] = "",
    array: Annotated[str, typer.Option(metavar="ARRAY", help="Only the members of this array (arr-…).")] = "",
    as_json: Json = False,
    person: As = "",
) -> None:
    """List jobs."""
    found = Caller(person).client().jobs(states=_states(state), account=account, array=array, limit=_LISTED + 1)
    if len(found) > _LISTED:
        found = found[1:]
        say(f"only the newest {_LISTED:,} are listed; --state, --account and --array narrow it down")
    if as_json:
        _put(found)
        return
    rows = [
        (
            job.id,
            job.state.value,  # early: a narrow terminal cuts the end of a line
            job.spec.kind.value,
            job.spec.name,
            job.spec.account,
            ",".join(_sites(job)) or "-",
            job.reason.message if job.reason else "",
        )
        for job in found
    ]
    columns = ["job", "state", "kind", "name", "account", "sites", "reason"]
    table(columns, rows, empty="no jobs; submit one with `consortium submit KIND`")


def show(
    job: JobArg,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end first: sites, speed, rounds.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a training's losses and timeline: .svg or .png.")
    ] = None,
    as_json: Json = False,
    person: As = "",
) -> None:
    """Show a job."""
    form = None if plot is None else _form(plot)
    client = Caller(person).client()
    found = client.job(check_job_id(job))
    if watch:
        found = follow(client, found.id)
    if plot is not None and form is not None:
        _draw(client.curves(found.id), plot, form)
    trains = found.spec.kind.value == "pretrain" and bool(found.attempts)
    brought = {"attribution": client.attribution(found.id)} if trains else {}
    if as_json:
        _put(found, **brought)
        return
    spec = found.spec
    facts = {
        "job": found.id,
        "state": found.state.value,
        "reason": found.reason.message if found.reason else "",
        "kind": spec.kind.value,
        "name": spec.name,
        "account": spec.account,
        "submitter": spec.submitter,
        "purpose": spec.purpose,
        "inputs": ", ".join(spec.inputs),
        "per site": f"{spec.resources.gpus} GPUs, at most {spec.resources.walltime_s} s",
        "after": ", ".join(spec.after),
        "array": f"{spec.array.index} of {spec.array.size} in {spec.array.id}" if spec.array else "",
        "deadline": when(spec.deadline_ms) + " UTC" if spec.deadline_ms else "",
        "submitted": when(found.created_ms),
        "MLflow run": found.tracking_run,
    }
    for key, value in facts.items():
        put(f"{key:12} {value or '-'}")
    for denial in found.denials:
        put(f"{'denied by':12} {denial.clause} at {denial.file}:{denial.line}: {denial.message}")
    _legs(found)
    if brought:
        show_attribution(brought["attribution"])


def _form(path: Path) -> Form:
    from consortium.errors import UsageError

    endings: dict[str, Form] = {".svg": "svg", ".png": "png"}
    if path.suffix not in endings:
        raise UsageError(
            f"cannot draw a {path.suffix or 'file without ending'}", where="--plot", fix="name it .svg or .png"
        )
    return endings[path.suffix]


def _draw(shown: Curves, path: Path, form: Form) -> None:
    from consortium.errors import UsageError
    from consortium.train.plot import draw

    if not shown.points:
        raise UsageError(f"{shown.job} has closed no round yet: there is nothing to draw", where="--plot")
    try:
        path.write_bytes(draw(shown, form))
    except OSError as fault:
        raise UsageError(f"cannot write the plot: {fault.strerror}", where=str(path)) from fault
    say(f"wrote {path}" + ("" if shown.spans else "; no timeline: nothing is known at the tracking server"))


def explain(job: JobArg, as_json: Json = False, person: As = "") -> None:
    """Explain a job."""
    found = Caller(person).client().explain(check_job_id(job))
    if as_json:
        put_json(found)
        return
    reason = found["reason"]
    put(f"{found['job']} is {found['state']}" + (f": {reason['message']}" if reason else ""))
    for denial in found["denials"]:
        put(f"  {denial['clause']} ({denial['file']}:{denial['line']}): {denial['message']}")
        put(f"  would pass: {denial['would_pass']}")
    if found["funnel"]:
        funnel(found["funnel"])
    for site, progress in sorted((found.get("progress") or {}).items()):
        if progress:
            put(f"  {site}: {told(progress)}")


def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or an array's (arr-…) for all its members.")],
    as_json: Json = False,
    person: As = "",
) -> None:
    """Cancel a job, or what has not ended of an array."""
    client = Caller(person).client()
    if job.startswith("arr-"):
        members = [member for member in client.jobs(array=job) if not member.state.final]
        found = [client.cancel(member.id) for member in members]
    else:
        found = [client.cancel(check_job_id(job))]
    if as_json:
        _put(found if job.startswith("arr-") else found[0])
        return
    for each in found:
        say(f"{each.id} is {each.state.value}")
    if not found:
        say(f"no member of {job} is left to cancel")


def _put(value: Any, **more: Any) -> None:
    from consortium.domain.codec import to_json

    put_json({**to_json(value), **more} if more else to_json(value))


def _states(text: str) -> list[str]:
    from consortium.domain.job import JobState
    from consortium.errors import UsageError

    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in list(JobState):
            raise UsageError(f"no job state {name!r}", where="--state", fix=f"one of {', '.join(JobState)}")
    return names


def _watch(client: Client, job: str) -> Job:
    say(f"{job} submitted")
    return follow(client, job)


def _sites(job: Job) -> list[str]:
    return sorted(leg.site for leg in job.attempt.legs) if job.attempt else list(job.target_sites)


def _legs(job: Job) -> None:
    for attempt in job.attempts:
        put(f"attempt {attempt.number}")
        for leg in attempt.legs:
            said = leg.reason or told(job.progress.get(leg.site, {}))
            put(f"  {leg.site}  {leg.state.value}  {leg.gpus} GPUs  {leg.id}@{leg.epoch}  {said}".rstrip())
