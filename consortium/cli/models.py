"""Commands on trained models, for those at home, where the private stores' keys are: generate and export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from consortium.cli.show import say

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A pretrain job's id.")]
Round = Annotated[int, typer.Option(help="Which outer state: 0 is before training, -1 the newest.", min=-1)]
Site = Annotated[str, typer.Option(help="The site whose store is read; default: the first that keeps it.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("generate", help="Go on from a text with a trained model, at home.")(generate)
    app.command("export", help="Write a trained model for Hugging Face's transformers, at home.")(export)


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
    begun = False
    for piece in generate_at_home(model, text, sampling, round=round, site=site):
        sys.stdout.write(piece if begun else text + piece)
        sys.stdout.flush()
        begun = True
    sys.stdout.write("\n" if begun else text + "\n")


def export(
    model: Model,
    path: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    precision: Annotated[Literal["bfloat16", "float32"], typer.Option(help="Of the parameters written.")] = "bfloat16",
    round: Round = -1,
    site: Site = "",
) -> None:
    """Write safetensors, config and tokenizer in the layout of a LlamaForCausalLM."""
    from consortium.local.model_home import export_at_home

    files = export_at_home(model, path, precision=precision, round=round, site=site)
    total = sum(file.stat().st_size for file in files)
    say(f"{len(files)} files, {total / 1e6:,.1f} MB; these are weights: nothing watches this copy")
    print(path)
