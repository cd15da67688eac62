"""`headrace logs`: the record of calls, in a terminal or a pipe."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.exc import DatabaseError

from headrace.cli.errors import CommandError
from headrace.observability.moment import FORM, parse_moment
from headrace.observability.record import CallRecord, CallStatus
from headrace.observability.store import CallFilter, CallStore, store_url
from headrace.registry.home import home

POLL_SECONDS = 0.5

logs_app = typer.Typer(
    help="Read the record of calls.", no_args_is_help=True, rich_markup_mode=None
)


Directory = Annotated[
    Path | None, typer.Option(help="Data directory (default: $HEADRACE_HOME, or the user's own).")
]
ModelOption = Annotated[str | None, typer.Option(help="Only calls that this model served.")]
ProviderOption = Annotated[str | None, typer.Option(help="Only calls of this provider.")]
StatusOption = Annotated[CallStatus | None, typer.Option(help="Only calls that ended so.")]
SinceOption = Annotated[str | None, typer.Option(help=f"Only calls since {FORM}.")]
UntilOption = Annotated[str | None, typer.Option(help="Only calls before this time.")]


class Column(NamedTuple):
    """A column of `tail`."""

    heading: str
    width: int
    cell: Callable[[CallRecord], str]


COLUMNS = (
    Column("time", 19, lambda call: _clock(call.started_at)),
    Column("id", 36, lambda call: call.id),
    Column("status", 9, lambda call: call.status),
    Column("http", 4, lambda call: str(call.http_status)),
    Column("model", 24, lambda call: call.served_model or call.model),
    Column("provider", 12, lambda call: call.provider or "-"),
    Column("cache", 6, lambda call: call.cache),
    Column("ttft", 8, lambda call: _milliseconds(call.ttft)),
    Column("total", 9, lambda call: _milliseconds(call.duration)),
    Column("in", 6, lambda call: str(call.prompt_tokens)),
    Column("out", 6, lambda call: str(call.completion_tokens)),
    Column("dollars", 10, lambda call: "?" if call.cost is None else f"{call.cost:.6f}"),
    Column("error", 60, lambda call: call.error or ""),
)


@logs_app.command()
def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as calls come.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many to begin with.")
    ] = 20,
    model: ModelOption = None,
    provider: ProviderOption = None,
    status: StatusOption = None,
    directory: Directory = None,
) -> None:
    """Show the last calls, the newest last; tab-separated when piped.

    \b
    headrace logs tail -f
    headrace logs tail -n 100 --status error
    """
    which = CallFilter(model=model, provider=provider, status=status, limit=lines)
    with _opened(directory) as store:
        latest = store.calls(CallFilter(limit=1))
        calls = store.calls(which)[::-1]
        newest = (calls or latest)[-1].id if calls or latest else None
        _print_row([column.heading for column in COLUMNS], "bold")
        _print_calls(calls)
        which = msgspec.structs.replace(which, limit=1000)
        while follow:
            time.sleep(POLL_SECONDS)
            calls = store.calls_after(newest, which)
            newest = calls[-1].id if calls else newest
            _print_calls(calls)


@logs_app.command()
def show(
    call_id: Annotated[str, typer.Argument(metavar="ID", help="The call's x-request-id.")],
    directory: Directory = None,
) -> None:
    """Show one call in full; as JSON when piped.

    \b
    headrace logs show req-0123456789abcdef
    headrace logs show req-0123456789abcdef | jq .attempts
    """
    with _opened(directory) as store:
        record = store.call(call_id)
    if record is None:
        raise CommandError(f"No call has the id '{_printable(call_id)}'.")
    if not sys.stdout.isatty():
        typer.echo(msgspec.json.format(msgspec.json.encode(record)))
        return
    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(record):
        facts.add_row(Text(name, style="bold"), Text(_printable(value)))
    console.print(facts)
    for title, content in (("input", record.input), ("output", record.output)):
        text = "not recorded" if content is None else _json(content)
        console.print(Text(f"\n{title}", style="bold"))
        console.print(Text(_printable(text)), soft_wrap=True)


@logs_app.command()
def export(
    format: Annotated[Literal["jsonl"], typer.Option(help="One JSON object per line.")] = "jsonl",
    out: Annotated[Path | None, typer.Option(help="File to write (default: output).")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    model: ModelOption = None,
    status: StatusOption = None,
    directory: Directory = None,
) -> None:
    """Write all calls, the oldest first. A file is complete or not there.

    \b
    headrace logs export --since 24h --out calls.jsonl
    headrace logs export --status error | jq .error
    """
    which = CallFilter(
        model=model,
        status=status,
        since=_moment("--since", since),
        until=_moment("--until", until),
    )
    with _opened(directory) as store:
        if out is None:
            for record in store.all_calls(which):
                sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")
            sys.stdout.buffer.flush()
            return
        written = _write(out, store.all_calls(which))
    typer.echo(f"{written} calls in {out}", err=True)


def _write(out: Path, records: Iterator[CallRecord]) -> int:
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    written = 0
    try:
        with partial.open("wb") as file:
            for record in records:
                file.write(msgspec.json.encode(record) + b"\n")
                written += 1
        partial.replace(out)
    except OSError as error:
        raise CommandError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return written


@contextmanager
def _opened(directory: Path | None) -> Iterator[CallStore]:
    place = directory or home()
    if not (place / "calls.db").exists():
        raise CommandError(f"No calls are recorded in {place}.")
    try:
        store = CallStore(store_url(place))
        try:
            yield store
        finally:
            store.close()
    except DatabaseError as error:
        raise CommandError(f"The call log in {place} cannot be read: {error.orig}") from None


def _moment(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_moment(text, time.time())
    except ValueError as error:
        raise CommandError(f"{option}: {error}") from None


def _print_calls(calls: list[CallRecord]) -> None:
    for call in calls:
        style = {"ok": "", "error": "red", "cancelled": "yellow"}[call.status]
        _print_row([_printable(column.cell(call), "") for column in COLUMNS], style)


def _print_row(cells: list[str], style: str) -> None:
    if not sys.stdout.isatty():
        print("\t".join(cells), flush=True)
        return
    padded = (
        cell if len(cell) > column.width else cell.ljust(column.width)
        for column, cell in zip(COLUMNS, cells, strict=True)
    )
    Console(highlight=False).print(
        Text(" ".join(padded).rstrip(), style=style), no_wrap=True, overflow="ellipsis", crop=True
    )


def _printable(text: str, kept: str = "\n\t") -> str:
    """What callers and models wrote, without what a terminal would take as a command."""
    return "".join(
        character if character.isprintable() or character in kept else "\ufffd"
        for character in text
    )


def _facts(record: CallRecord) -> Iterator[tuple[str, str]]:
    """The fields of a record that say something, as text."""
    fields = msgspec.to_builtins(record)
    for name, value in fields.items():
        if name in ("input", "output") or value is None or value == []:
            continue
        if name == "started_at":
            yield name, _clock(record.started_at)
        elif name in ("attempts", "skipped"):
            for place, entry in enumerate(value):
                yield f"{name}[{place}]", _json(entry)
        else:
            yield name, value if isinstance(value, str) else _json(value)


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f}ms"
