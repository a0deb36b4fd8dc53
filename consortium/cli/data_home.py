"""Commands on datasets for those at home, where the private store's keys are: pages, statistics, single documents."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consortium.cli.context import As, Caller, Json
from consortium.cli.show import put, put_json, say, table

if TYPE_CHECKING:
    from consortium.reports.story import Score, Story

Name = Annotated[str, typer.Argument(metavar="DATASET", help="A name, name@version, or an id.")]


def add_to(data_app: typer.Typer) -> None:
    """Add the commands to the group `data`."""
    data_app.command("report", help="Write a dataset's page (HTML): what came in, what went and why, samples.")(report)
    data_app.command("statistic", help="Print what may be told of a dataset: languages, sources, lengths.")(statistic)
    data_app.command("explain", help="Say what cleaning did to one document, and how every rule scores it.")(explain)


def report(
    dataset: Name,
    out: Annotated[Path | None, typer.Option(help="The file; default: NAME-VERSION.html here.")] = None,
    samples: Annotated[int, typer.Option(help="Removals and changes shown per rule.", min=0, max=50)] = 2,
    person: As = "",
) -> None:
    """Write the page. Samples are the collection's text: the file is for its owner alone."""
    from consortium.errors import UsageError
    from consortium.local.dataset_home import dataset_facts
    from consortium.local.paths import write_file
    from consortium.reports.dataset_page import render

    client = Caller(person).client()
    found = client.dataset(dataset)
    facts = dataset_facts(client, found, samples=samples)
    path = out or Path(f"{found.name}-{found.version}.html")
    try:
        write_file(path, render(facts))
    except OSError as fault:
        raise UsageError(f"cannot write the page: {fault.strerror}", where=str(path), fix="choose another --out") from (
            fault
        )
    for line in facts.missing:
        say(line)
    if facts.samples:
        say(f"it shows pieces of the collection's text: it stays with {found.partner}")
    put(str(path))


def statistic(
    dataset: Name,
    at_least: Annotated[int, typer.Option(help="Documents in the smallest cell that is told.", min=3)] = 10,
    person: As = "",
) -> None:
    """Print the statistic of a text dataset as JSON, small cells suppressed."""
    from consortium.domain.codec import to_json
    from consortium.local.dataset_home import dataset_statistic

    found = dataset_statistic(Caller(person).client().dataset(dataset), at_least=at_least)
    if found.withheld:
        say(f"it has fewer than {at_least} documents: nothing can be told of it")
    put_json(to_json(found))


def explain(
    dataset: Name,
    document: Annotated[str, typer.Argument(metavar="DOCUMENT", help="Its id, or 32 hex digits: its text's hash.")],
    as_json: Json = False,
    person: As = "",
) -> None:
    """Explain one document of a clean or raw dataset."""
    from consortium.domain.codec import to_json
    from consortium.local.dataset_home import document_stories

    client = Caller(person).client()
    found = document_stories(client, client.dataset(dataset), document)
    if as_json:
        put_json([_plain(to_json(story), story) for story in found])
        return
    for number, story in enumerate(found):
        if number:
            put()
        _tell(story)


def _plain(told: dict[str, object], story: Story) -> dict[str, object]:
    """Annotations are named tuples: JSON gets their names."""
    return {**told, "annotations": [note._asdict() for note in story.annotations]}


def _tell(story: Story) -> None:
    fate = f"removed by {story.rule}" if story.rule else "stays"
    if story.clean:
        fate += f", as {story.clean} in row {story.clean_row} of its clean shard"
    certainty = f"found {story.language or 'none'} ({story.confidence:.3f})"
    put(f"document  {story.document}  {_seen(story.id)}")
    put(f"came as   {story.dataset}, shard {story.shard}, row {story.row}, {story.chars:,} characters")
    put(f"language  declared {_seen(story.declared)}, {certainty}")
    put(f"fate      {fate}")
    if story.annotations:
        put()
        table(
            ["rule", "value", "threshold", "from", "to"],
            [
                (note.rule, _seen(note.value), _seen(note.threshold), *_span(note.start, note.end))
                for note in story.annotations
            ],
            empty="",
        )
    put()
    put(f"scores of the text {'after its edits' if story.as_judged else 'as it came'}:")
    table(
        ["rule", "measured", "limit", "verdict"],
        [(score.rule, f"{score.value:.6g}", _limit(score), _verdict(score)) for score in story.scores],
        empty="no rule",
    )


def _limit(score: Score) -> str:
    return f"{'at least' if score.least else 'at most'} {score.limit:g}"


def _verdict(score: Score) -> str:
    verdict = "breaks" if score.breaks else "keeps"
    return verdict if score.asked else f"{verdict} (not asked)"


def _span(start: int, end: int) -> tuple[str, str]:
    return ("-", "-") if start < 0 else (str(start), str(end))


def _seen(text: str) -> str:
    """Names come from the collection: they stay on their line."""
    return text.replace("\n", " ").replace("\t", " ")
