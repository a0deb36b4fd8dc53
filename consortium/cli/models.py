"""Commands on trained models, for those at home, where private stores' keys are: generate, export, checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from consortium.cli.context import Json, check_job_id
from consortium.cli.show import plain, put, put_json, say, table
from consortium.errors import UsageError

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A pretrain job's id.")]
Round = Annotated[int, typer.Option(help="Which outer state: 0 is before training, -1 the newest.", min=-1)]
Site = Annotated[str, typer.Option(help="The site whose store is read; default: the first that keeps it.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("generate", help="Go on from a text with a trained model, at home.")(generate)
    app.command("checkpoints", help="List a training's checkpoints at home; check, pin and prune them.")(checkpoints)
    app.command("export", help="Write a trained model for Hugging Face's transformers or torch, at home.")(export)


def generate(
    model: Model,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the text begins with.")],
    tokens: Annotated[int, typer.Option(help="At most so many.", min=1)] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0)] = 0.8,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this probability together.")] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text on the same machine.", min=0)] = 0,
    round: Round = -1,
    site: Site = "",
) -> None:
    """Print the text and what follows it, as it comes."""
    from consortium.local.model_home import generate_at_home
    from consortium.train.generate import Sampling

    sampling = Sampling(tokens=tokens, temperature=temperature, top_p=top_p, seed=seed)
    begun, shown = False, plain if sys.stdout.isatty() else str
    for piece in generate_at_home(model, text, sampling, round=round, site=site):
        sys.stdout.write(shown(piece if begun else text + piece))
        sys.stdout.flush()
        begun = True
    sys.stdout.write("\n" if begun else text + "\n")


def checkpoints(
    job: Annotated[str, typer.Argument(metavar="JOB", help="A pretrain job's id.")],
    site: Annotated[str, typer.Option(help="The site whose store it is; default: all here.")] = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every byte; exit 7 where one is not as written.")
    ] = False,
    pin: Annotated[list[int] | None, typer.Option(metavar="ROUND", help="Keep it whatever is pruned.")] = None,
    unpin: Annotated[list[int] | None, typer.Option(metavar="ROUND", help="Let it be pruned again.")] = None,
    prune: Annotated[
        int | None, typer.Option(metavar="NEWEST", help="Delete all but so many newest, round 0 and pinned ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Pin and unpin, then prune, then list what is kept."""
    from consortium.domain.codec import to_json
    from consortium.local.model_home import checkpoints_at_home
    from consortium.train.checkpoints import faults

    found = checkpoints_at_home(check_job_id(job), site)
    for name, kept in found.items():
        for number in pin or ():
            kept.pin(number)
        for number in unpin or ():
            kept.unpin(number)
        if prune is not None:
            rounds, freed = kept.prune(prune)
            say(f"{name}: {rounds} rounds pruned, {freed / 1e6:,.1f} MB freed")
    listed = {name: kept.listed(verify=verify) for name, kept in found.items()}
    if as_json:
        put_json({name: to_json(list(all_)) for name, all_ in listed.items()})
    else:
        rows = [
            (
                name,
                one.round,
                "in mid-round" if one.inner else "outer state",
                f"{one.size_bytes / 1e6:,.1f}",
                one.fault or ("pinned" if one.pinned else "-"),
            )
            for name, all_ in listed.items()
            for one in all_
        ]
        table(["kept at", "round", "what", "MB", "note"], rows, empty="none is left")
    if fault := faults([one for all_ in listed.values() for one in all_]):
        raise fault


def export(
    model: Model,
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    layout: Annotated[
        Literal["transformers", "dcp"], typer.Option(help="dcp: a checkpoint of torch.distributed.checkpoint.")
    ] = "transformers",
    precision: Annotated[
        Literal["bfloat16", "float32"] | None, typer.Option(help="Of the parameters written; bfloat16, in dcp float32.")
    ] = None,
    round: Round = -1,
    site: Site = "",
) -> None:
    """Write safetensors, config and tokenizer in the layout of a LlamaForCausalLM.

    With `--layout dcp` the parameters under their own names, the inner optimiser's state and the outer momentum.
    """
    from consortium.local.model_home import checkpoint_at_home, export_at_home

    if layout == "dcp":
        if precision == "bfloat16":
            raise UsageError("a checkpoint is written in float32", where="--precision", fix="leave it out")
        files = checkpoint_at_home(model, path, round=round, site=site)
    else:
        files = export_at_home(model, path, precision=precision or "bfloat16", round=round, site=site)
    total = sum(file.stat().st_size for file in files)
    say(f"{len(files)} files, {total / 1e6:,.1f} MB; these are weights: nothing watches this copy")
    put(str(path))
