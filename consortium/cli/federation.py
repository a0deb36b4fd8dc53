"""The embedded federation's commands: demo, up, down, doctor."""

from __future__ import annotations

import shutil
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from consortium.cli.context import Json
from consortium.cli.show import put, put_json, say
from consortium.domain.ids import is_name
from consortium.errors import UsageError

if TYPE_CHECKING:
    from consortium.local.service import Running

_KEPT_DEMOS = 3


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("demo", help="The main job, end to end: three states train one model on this machine.")(demo)
    app.command("up", help="Start the embedded federation in the background.")(up)
    app.command("down", help="Stop the embedded federation.")(down)
    app.command("doctor", help="Check everything the embedded federation needs.")(doctor)


def demo(
    corpora: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Default: $CONSORTIUM_CORPORA, ../shared/corpora, else a generated sample."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the federation up for exploring.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON document.")] = False,
) -> None:
    """Run the demo; exit 1 where a job or a verification failed."""
    from consortium.config import load_federation
    from consortium.errors import JobFailedError
    from consortium.local.demo.corpora import find_corpora
    from consortium.local.demo.run import run
    from consortium.local.paths import FederationDir
    from consortium.local.service import await_ready, start

    begun = time.monotonic()
    _stop_on_sigterm()
    config = load_federation()
    found = find_corpora(corpora, {partner.id: partner.languages for partner in config.partners})
    _drop_old_demos()
    directory = FederationDir.named(f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    say(f"starting the federation in {directory.root}")
    with start(directory, say) as running:
        await_ready(running, say)
        started = time.monotonic() - begun
        say(f"start: done in {started:.1f} s")
        document = run(directory, config, found, begun=begun, start_s=started, say=say)
        if keep:
            running.detach()
    _finish(document, keep, as_json)
    if not document["verified"]:
        raise JobFailedError("a report did not verify as it should", where=str(directory.reports))


def up(
    name: Annotated[str, typer.Option(help="Which federation; its state is kept between runs.")] = "default",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The server's port; default: any free one.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Start the federation and wait until every site is at work."""
    from consortium.local.paths import FederationDir
    from consortium.local.service import await_ready, start

    if not is_name(name):
        raise UsageError(f"federation name {name!r}: lower-case letters, digits, '.', '_' and '-' only")
    _stop_on_sigterm()
    with start(FederationDir.named(name), say, server_port=port) as running:
        await_ready(running, say)
        running.detach()
        _tell_up(running, as_json)


def down() -> None:
    """Stop the federation and everything of it."""
    from consortium.local.service import stop

    say("stopped" if stop(say) else "nothing was running")


def _tell_up(running: Running, as_json: bool) -> None:
    federation = running.directory.federation()
    if as_json:
        put_json({key: federation[key] for key in ("name", "server_url", "mlflow_url", "sites")})
        return
    put(f"server  {federation['server_url']}")
    put(f"MLflow  {federation['mlflow_url']}")
    say("try: consortium sites; stop it with: consortium down")


def _finish(document: dict[str, Any], keep: bool, as_json: bool) -> None:
    if as_json:
        put_json(document)
    else:
        from rich.console import Console

        from consortium.local.demo.page import show

        show(document, Console(highlight=False))
    if keep:
        say("the federation is up: try `consortium jobs` and `consortium explain JOB`; stop it with `consortium down`")


def _drop_old_demos() -> None:
    """Keep the directories of the latest demos only; they hold copies of the corpora."""
    from consortium.local.paths import home

    folders = sorted((home() / "federations").glob("demo-*"))
    current = home() / "current"
    for folder in folders[: -_KEPT_DEMOS + 1]:
        if not current.exists() or current.resolve() != folder:
            shutil.rmtree(folder, ignore_errors=True)


def _stop_on_sigterm() -> None:
    """SIGTERM ends this command as Ctrl-C does: what it started stops, and it exits with 130."""

    def interrupt(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def doctor(as_json: Json = False) -> None:
    """Check everything; exit 1 where something is missing."""
    from consortium.errors import JobFailedError
    from consortium.local.doctor import examine

    findings = examine()
    if as_json:
        put_json([{"check": f.check, "ok": f.ok, "found": f.found, "fix": f.fix} for f in findings])
    else:
        for finding in findings:
            put(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {finding.found}")
            if not finding.ok:
                put(f"      fix: {finding.fix}")
    failed = [finding.check for finding in findings if not finding.ok]
    if failed:
        raise JobFailedError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")
