"""The auditor's commands: reports, their verification, the log, and training runs recomputed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from consortium.cli.context import As, Caller, Json, check_job_id, named_server
from consortium.cli.show import put, put_json, say, table, when
from consortium.errors import ConsortiumError, NotFoundError, UsageError, VerificationError

_REPLAY_HELP = "Recompute a training run from what sites on this machine kept; exit 7 where anything differs."
_RE_EXECUTE_HELP = "Do inner steps again at the site that contributed them; exit 7 where they come to something else."
audit_app = typer.Typer(help="Verify reports, read the log, recompute training runs.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("report", help="Write a partner's contribution report (its auditor or admin).")(report)
    app.add_typer(audit_app, name="audit")
    audit_app.command("verify", help="Check a report offline: every signature, proof and total.")(verify)
    audit_app.command("replay", help=_REPLAY_HELP)(replay)
    audit_app.command("re-execute", help=_RE_EXECUTE_HELP)(re_execute)
    audit_app.command("log", help="Show the ledger's checkpoint and its latest records.")(log)


def report(
    partner: Annotated[str, typer.Argument(metavar="PARTNER", help="Such as fr.")],
    period: Annotated[str, typer.Option(help="YYYY-MM; default: this month.")] = "",
    form: Annotated[str, typer.Option("--format", help="Only json so far.")] = "json",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Default: standard output.")] = None,
    person: As = "",
) -> None:
    """Fetch and write a report."""
    from consortium.reports.text import render_json
    from consortium.reports.visible import visible_json

    if form != "json":
        raise UsageError(f"no report format {form!r}", where="--format", fix="json is the only one so far")
    named = period or datetime.now(UTC).strftime("%Y-%m")
    text = render_json(Caller(person, partner=partner, role="auditor").client().report(partner, named))
    if output is None:
        print(visible_json(text), end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as fault:
        raise UsageError(f"cannot write the report: {fault.strerror}", where=str(output)) from fault
    say(f"wrote {output}; check it with: consortium audit verify {output}")


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A report; - reads standard input.")],
    trust: Annotated[
        Path | None,
        typer.Option(
            help="Public keys you pinned; default: those of the federation here, without one or with "
            "$CONSORTIUM_SERVER the file's."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a report; exit 7 where anything does not hold."""
    from consortium.domain.codec import to_json
    from consortium.keys.trust import Trust
    from consortium.reports.text import read_report
    from consortium.reports.verify import verify_report

    document = read_report(file)
    pinned = trust or _pinned()
    try:
        found = verify_report(document, Trust.load(pinned) if pinned else None)
    except VerificationError as fault:
        if trust or not pinned:
            raise
        raise _under_keys_found(fault, pinned) from fault
    if as_json:
        put_json(to_json(found))
        return
    put(f"verified: {found.partner} {found.period}, {found.leaves} records in a log of {found.log_size}")
    for check in found.checks:
        put(f"  {check}")
    put(f"keys: {f'pinned in {pinned}' if pinned else 'from the report itself; compare these fingerprints'}")
    if not pinned:
        for name, fingerprint in found.fingerprints.items():
            put(f"  {name}: {fingerprint}")
    put("what this does not show:")
    for limit in found.limits:
        put(f"  {limit}")


def replay(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A pretrain job's id.")],
    site: Annotated[str, typer.Option(help="Only what this site kept; default: all here, each with the others'.")] = "",
    trust: Annotated[
        Path | None, typer.Option(help="Public keys you pinned; default: those of the federation here.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Replay a job from private stores; needs no server."""
    from consortium.domain.codec import to_json
    from consortium.keys.trust import Trust
    from consortium.local.replay_home import replay_at_home

    found = replay_at_home(check_job_id(job), site, trust=Trust.load(trust) if trust else None)
    if as_json:
        put_json({name: to_json(list(rounds)) for name, rounds in found.items()})
    else:
        rows = [
            (name, one.round, one.result, ", ".join(one.who), "; ".join(one.what) or one.outer_digest)
            for name, rounds in found.items()
            for one in rounds
        ]
        table(["kept at", "round", "result", "who", "what"], rows, empty="no round is kept")
        if any(one.result == "cannot" for rounds in found.values() for one in rounds):
            say("what is named as missing is not kept here; `outer.keep_received` says for how many rounds peers' are")
        elif len(found) > 1:
            say("contributions that a site did not keep were read where another did; --site rests on one site's alone")
    differs = [(name, one.round) for name, rounds in found.items() for one in rounds if one.result == "differs"]
    if differs:
        raise VerificationError(
            f"what was kept does not give the same run: {len(differs)} of the rounds differ, first round "
            f"{differs[0][1]} at {differs[0][0]}",
            where=job,
            fix="compare with another site's replay, then open a dispute with what differs",
        )


def re_execute(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A pretrain job's id.")],
    round: Annotated[list[int] | None, typer.Option(min=1, help="A round to do again; may be repeated.")] = None,
    samples: Annotated[int, typer.Option(min=0, help="In place of --round: how many rounds to draw.")] = 0,
    seed: Annotated[str, typer.Option(help="What they are drawn by; nothing that the site could choose.")] = "",
    site: Annotated[str, typer.Option(help="Only this site's contributions, such as fr-1.")] = "",
    auditor: Annotated[str, typer.Option(metavar="PERSON", help="Who watches and signs, such as uy/carmen.")] = "",
    key: Annotated[Path | None, typer.Option(help="The auditor's key file; default: as for --as.")] = None,
    record: Annotated[bool, typer.Option(help="Put what comes out on record, in the site's name.")] = True,
    as_json: Json = False,
) -> None:
    """Do inner steps again, where the site's private store, signing key and book are; needs no server."""
    from consortium.domain.codec import to_json
    from consortium.keys.signing import SigningKey
    from consortium.local.re_execute_home import Auditor, Wanted, re_execute_at_home

    if key is not None and not auditor:
        raise UsageError("a key without its owner", where="--key", fix="name them with --auditor")
    signs = None
    if auditor:
        signs = Auditor(person=auditor, key=SigningKey.load(key) if key else Caller(auditor).key())
    wanted = Wanted(rounds=tuple(sorted(set(round or ()))), samples=samples, seed=seed)
    found = re_execute_at_home(check_job_id(job), wanted, site=site, auditor=signs, keep_record=record)
    if as_json:
        put_json([to_json(one) for one in found])
    else:
        rows = [(one.site, one.round, one.result, one.what) for one in found]
        table(["site", "round", "result", "what"], rows, empty="nothing to do again")
    differs = [one for one in found if one.result == "differs"]
    if differs:
        raise VerificationError(
            f"{len(differs)} of {len(found)} contributions are not what their inner steps come to, first round "
            f"{differs[0].round} of {differs[0].site}: {differs[0].what}",
            where=job,
            fix="compare machine and software with those it was made on, then open a dispute",
        )
    if not any(one.record for one in found):
        raise NotFoundError(f"nothing could be done again: {found[0].what}", where=job, fix="draw other rounds")


def log(
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many of the latest records.")] = 20,
    trust: Annotated[
        Path | None, typer.Option(help="Public keys you pinned; default: those of the federation here.")
    ] = None,
    as_json: Json = False,
    person: As = "",
) -> None:
    """Show the end of the log; exit 7 where it is not what the checkpoint says, or another log signed that."""
    from consortium.client.log import latest
    from consortium.domain.codec import to_json
    from consortium.keys.trust import Trust

    caller = Caller(person, role="auditor")
    pinned = trust or _pinned()
    found = latest(caller.client(), count, Trust.load(pinned) if pinned else None)
    if as_json:
        put_json({"checkpoint": found.checkpoint, "size": found.size, "entries": to_json(found.entries)})
    else:
        say(found.checkpoint.strip())
        rows = []
        for entry in found.entries:
            payload = entry.payload or {}
            at_ms = payload.get("at_ms", 0)
            what = payload.get("type", f"erased under {entry.erased}")
            time = when(at_ms) if isinstance(at_ms, int) else at_ms
            rows.append((entry.index, time, payload.get("origin", ""), what, entry.data[:16]))
        table(["index", "time (UTC)", "origin", "record", "leaf"], rows, empty="the log is empty")
    signed = f"signed with the key pinned in {pinned}" if pinned else "its signature is not checked: pass --trust"
    say(f"{len(found.entries)} leaves are those of the checkpoint; {signed}")


def _pinned() -> Path | None:
    """The public keys of the federation on this machine, if there is one and the commands speak to it."""
    from consortium.local.paths import FederationDir

    if named_server():
        return None
    try:
        path = FederationDir.current().trust_file
    except ConsortiumError:
        return None
    return path if path.exists() else None


def _under_keys_found(fault: VerificationError, pinned: Path) -> VerificationError:
    """Return the fault with the file whose keys were taken without being asked for."""
    checked = f"checked under the keys of the federation on this machine, {pinned}"
    return VerificationError(
        fault.what,
        where=f"{fault.where}; {checked}" if fault.where else checked,
        fix=f"{fault.fix + '; ' if fault.fix else ''}where the report is of another consortium, name its keys: --trust",
    )
