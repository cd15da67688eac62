"""`headrace keys`: who may call, and within what."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from headrace.app import data_directory
from headrace.cli.configuration import choose
from headrace.cli.errors import CommandError
from headrace.gateway.key_admin import NewKey
from headrace.gateway.keystore import Key, KeyExists, KeyStore
from headrace.observability.moment import parse_moment

keys_app = typer.Typer(
    help="Make, list and revoke callers' keys.", no_args_is_help=True, rich_markup_mode=None
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Configuration file (default: ./headrace.yaml, or the built-in one)."),
]


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="Its name, also the tenant of its calls.")],
    budget: Annotated[float | None, typer.Option(help="Dollars it may spend.")] = None,
    rpm: Annotated[int | None, typer.Option(help="Requests a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens a minute.")] = None,
    concurrent: Annotated[int | None, typer.Option(help="Requests at once.")] = None,
    models: Annotated[str | None, typer.Option(help="Names it may ask for: a,b,c.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="When it ends: 30d (from now), or 2027-01-31.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Make a key and print it: the only time that it is told.

    \b
    headrace keys create --name search --budget 50 --rpm 600 --models small,gpt --expires 90d

    From the first key on, every call needs one.
    """
    fields = {
        "name": name,
        "budget": budget,
        "rpm": rpm,
        "tpm": tpm,
        "concurrent": concurrent,
        "models": [part.strip() for part in (models or "").split(",") if part.strip()],
        "expires": None if expires is None else _moment(expires, time.time()),
    }
    try:
        wish = msgspec.convert(fields, NewKey)
        made, secret = _store(config).create(wish.key())
    except msgspec.ValidationError as error:
        raise CommandError(str(error)) from None
    except KeyExists:
        raise CommandError(f"the name '{name}' is or was in use; choose another.") from None
    typer.echo(f"Key '{made.name}' ({made.id}). It is not shown again:", err=True)
    typer.echo(secret)


@keys_app.command(name="list")
def list_(config: ConfigOption = None) -> None:
    """List the keys: name, state, what is spent, and the limits."""
    found = _store(config).every()
    for key in found:
        typer.echo(_line(key, time.time()))
    if not found:
        typer.echo("There are no keys: every caller on this machine is let in.")


@keys_app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name or id.")],
    config: ConfigOption = None,
) -> None:
    """Revoke a key. Running servers refuse it within a quarter of a second."""
    if not _store(config).revoke(name):
        raise CommandError(f"there is no key '{name}' to revoke.")
    typer.echo(f"Key '{name}' is revoked.")


def _store(config: Path | None) -> KeyStore:
    return KeyStore.within(data_directory(choose(config).configuration))


def _moment(text: str, now: float) -> float:
    """`30d` is from now on, as the end of a key is to come."""
    try:
        moment = parse_moment(text, now)
    except ValueError as error:
        raise CommandError(str(error).replace(" (ago)", "")) from None
    relative = text.strip()[-1:].isalpha()
    return 2 * now - moment if relative else moment


def _line(key: Key, now: float) -> str:
    state = "good"
    if key.revoked is not None:
        state = "revoked"
    elif key.expires is not None and now >= key.expires:
        state = "expired"
    limits = [
        f"{name} {value:g}"
        for name, value in (("rpm", key.rpm), ("tpm", key.tpm), ("concurrent", key.concurrent))
        if value is not None
    ]
    if key.models:
        limits.append(f"models {','.join(key.models)}")
    if key.expires is not None:
        limits.append(f"until {datetime.fromtimestamp(key.expires):%Y-%m-%d}")
    spent = f"${key.spent:.4f}" + (f" of ${key.budget:g}" if key.budget is not None else "")
    return f"{key.name:<24} {key.hint:<18} {state:<8} {spent:<20} {', '.join(limits)}".rstrip()
