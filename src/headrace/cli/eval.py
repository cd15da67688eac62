"""`headrace eval`: grade a model or a route on a data set."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from sqlalchemy.exc import SQLAlchemyError

from headrace.cli.errors import CommandError
from headrace.config.load import ConfigurationError
from headrace.config.secrets import SecretError, resolve
from headrace.evaluation.dataset import Item, load_items
from headrace.evaluation.experiment import Outcome
from headrace.evaluation.experiment import run as run_experiment
from headrace.evaluation.report import render, summarise
from headrace.evaluation.results import Experiment, ResultStore
from headrace.evaluation.specification import Specification, load_specification
from headrace.observability.store import CallStore, store_url
from headrace.registry.home import home

BAR_MISSED = 1
BAD_FILE = 2

eval_app = typer.Typer(
    help="Grade a model or a route on a data set.", no_args_is_help=True, rich_markup_mode=None
)


@eval_app.callback()
def eval_() -> None:
    """Grade a model or a route on a data set."""


@eval_app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The experiment, a YAML file.")],
    directory: Annotated[
        Path | None,
        typer.Option(help="Data directory (default: $HEADRACE_HOME, or the user's own)."),
    ] = None,
) -> None:
    """Ask every question of a data set, grade the answers, print a report, keep the results.

    Exit status: 0; 1 if a bar was missed or every call failed; 2 if the file is not in order.

    \b
    headrace eval run docs/examples/eval/facts.yaml
    """
    place = directory or home()
    try:
        store = CallStore(store_url(place))
        results = ResultStore(store.engine)
    except (SQLAlchemyError, OSError) as error:
        raise CommandError(f"The call log in {place} cannot be opened: {error}") from None
    try:
        specification, items, key = _prepared(file, store)
        started_at = time.time()
        outcomes = asyncio.run(_run(specification, items, key))
        report = summarise(specification, outcomes)
        Console().print(render(specification, report))
        experiment = Experiment(
            started_at=started_at,
            finished_at=time.time(),
            specification=specification,
            report=report,
            outcomes=outcomes,
        )
        try:
            typer.echo(f"Kept as experiment {results.add(experiment)}.", err=True)
        except SQLAlchemyError as error:
            raise CommandError(f"The results cannot be kept in {place}: {error}") from None
    finally:
        store.close()
    if not report.good:
        raise typer.Exit(BAR_MISSED)


def _prepared(file: Path, store: CallStore) -> tuple[Specification, list[Item], str | None]:
    try:
        specification = load_specification(file)
        items = load_items(specification, file, store, time.time())
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(BAD_FILE) from None
    reference = specification.target.key
    try:
        key = None if reference is None else resolve(reference, os.environ)
    except SecretError as error:
        typer.echo(f"{file}: target.key: {error}", err=True)
        raise typer.Exit(BAD_FILE) from None
    return specification, items, key


async def _run(specification: Specification, items: list[Item], key: str | None) -> list[Outcome]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(specification.name, total=len(items))
        return await run_experiment(specification, items, key, lambda: progress.advance(task))
