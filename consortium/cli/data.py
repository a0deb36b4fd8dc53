"""Datasets: register, list, show, trace."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consortium.cli import data_home, trace
from consortium.cli.context import As, Caller, Json
from consortium.cli.show import put, put_json, say, table

if TYPE_CHECKING:
    from consortium.domain.data import Description

_PATHS_HELP = "Files, folders or s3://bucket/prefix of Parquet, JSONL, text, Markdown, HTML, WARC; also .gz, .zst."
_UPLOAD_HELP = "Copy it as shards, with resume. --no-upload: its shards lie in the private store (s3://...) already."
_KEEP_HELP = "Let documents that name a contributor keep it; default: all are the one --contributor's."
data_app = typer.Typer(help="Datasets and where they come from.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="DATASET", help="A name, name@version, or an id.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(data_app, name="data")
    data_app.command("register", help="Put a collection into a site's private store and register it.")(register)
    data_app.command("export", help="Write a dataset's text into a file, at its home.")(export)
    data_app.command("ls", help="List datasets.")(ls)
    data_app.command("show", help="Show one dataset.")(show)
    trace.add_to(data_app)
    data_home.add_to(data_app)


def register(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Such as laws-fr.")],
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help=_PATHS_HELP)],
    site: Annotated[str, typer.Option(help="The site whose private store takes it; text never leaves that territory.")],
    language: Annotated[list[str], typer.Option(help="ISO 639-1; may be repeated.")] = [],  # noqa: B006  Typer copies it
    licence: Annotated[str, typer.Option(help="Default: what the documents say.")] = "",
    source: Annotated[str, typer.Option(help="Where it comes from.")] = "",
    category: Annotated[list[str], typer.Option(help="Such as personal; may be repeated.")] = [],  # noqa: B006  Typer copies it
    legal_basis: Annotated[list[str], typer.Option(help="Law, contract or consent; may be repeated.")] = [],  # noqa: B006  Typer copies it
    collected_from: Annotated[str, typer.Option(help="First day of collection, such as 2019-01-01.")] = "",
    collected_until: Annotated[str, typer.Option(help="Last day of collection.")] = "",
    contributor: Annotated[list[str], typer.Option(help="Institution that gave it; may be repeated.")] = [],  # noqa: B006  Typer copies it
    keep_contributors: Annotated[bool, typer.Option("--keep-contributors", help=_KEEP_HELP)] = False,
    consent_until: Annotated[str, typer.Option(help="Last day (UTC) on which jobs may read it.")] = "",
    upload: Annotated[bool, typer.Option(help=_UPLOAD_HELP)] = True,
    endpoint: Annotated[str, typer.Option(help="Of s3:// paths; default: as the AWS command line has it.")] = "",
    person: As = "",
    as_json: Json = False,
) -> None:
    """Register a collection at its home; run on the partner's own premises, where the store's keys are."""
    from consortium.domain.ids import is_site
    from consortium.errors import UsageError
    from consortium.local.steward import register_at_home, register_in_place

    if not is_site(site):
        raise UsageError(f"{site!r} is not a site", where="--site", fix="sites look like fr-1; see `consortium sites`")
    about = _description(legal_basis, collected_from, collected_until, contributor, consent_until)
    caller = Caller(person, partner=site[:2])
    described: dict[str, Any] = {
        "languages": tuple(language),
        "licence": licence,
        "source": source,
        "categories": tuple(category),
        "about": about,
    }
    if upload:
        dataset = register_at_home(
            caller.client(),
            caller.key(),
            name=name,
            paths=paths,
            site=site,
            keep_contributors=keep_contributors,
            endpoint=endpoint,
            say=say,
            **described,
        )
    else:
        dataset = register_in_place(caller.client(), caller.key(), name=name, paths=paths, site=site, **described)
    if as_json:
        from consortium.domain.codec import to_json

        put_json(to_json(dataset))
    else:
        counts = f"{dataset.documents:,} documents, {dataset.size_bytes:,} bytes stored"
        say(f"registered {dataset.name}@{dataset.version} at {dataset.site}: {counts}")
        put(dataset.id)


def _description(legal_basis: list[str], begin: str, end: str, contributor: list[str], consent: str) -> Description:
    from consortium.domain.data import Description
    from consortium.errors import UsageError

    try:
        return Description(
            legal_basis=tuple(legal_basis),
            collected_from=begin,
            collected_until=end,
            contributors=tuple(contributor),
            consent_until=consent,
        )
    except ValueError as fault:
        raise UsageError(str(fault), where="data register", fix="write days as YYYY-MM-DD") from fault


def export(
    dataset: Name,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Ends in .jsonl, .jsonl.gz, .jsonl.zst or .parquet.")],
    person: As = "",
) -> None:
    """Write the text; run where the store's keys are."""
    from consortium.local.steward import export_at_home

    written = export_at_home(Caller(person).client(), dataset, path, say=say)
    say(f"{written.documents:,} documents of {written.name}@{written.version}, licence {written.licence}")
    say(f"this is text: it must not leave the territory {written.territory}, and nothing watches this copy")
    put(str(path))


def ls(as_json: Json = False, person: As = "") -> None:
    """List datasets."""
    found = Caller(person).client().datasets()
    if as_json:
        from consortium.domain.codec import to_json

        put_json(to_json(found))
        return
    table(
        ["dataset", "site", "class", "documents", "tokens", "bytes", "id"],
        [
            (f"{d.name}@{d.version}", d.site, d.artifact_class.value, d.documents, d.tokens, d.size_bytes, d.id)
            for d in found
        ],
        empty="no datasets yet; register one with `consortium data register`",
    )


def show(dataset: Name, as_json: Json = False, person: As = "") -> None:
    """Show a dataset."""
    from consortium.domain.codec import to_json

    described = Caller(person).client().dataset(dataset)
    found = to_json(described)
    if as_json:
        put_json(found)
        return
    shards, about = found.pop("shards"), found.pop("about", {})
    for key, value in (found | about).items():
        put(f"{key:16} {_plain(value)}")
    over = described.consent_over(time.time_ns() // 1_000_000)
    if over:
        say(f"{over}: no job may read it")
    put(f"{'shards':16} {len(shards)}")
    for shard in shards:
        put(f"  {shard['digest']}  {shard['documents']:,} documents  {shard['size_bytes']:,} bytes")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "-"
    return str(value) if value != "" else "-"
