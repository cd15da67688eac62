"""How a command ends badly: one line, and an exit status."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from headrace.config.load import ConfigurationError
from headrace.protocol.errors import HeadraceError
from headrace.registry.errors import RegistryError
from headrace.runtime.request import RequestRefused


class CommandError(Exception):
    """The command cannot do what was asked; the message is the one line the user sees."""


EXPECTED = (CommandError, ConfigurationError, HeadraceError, RegistryError, RequestRefused)


@contextmanager
def one_line() -> Iterator[None]:
    """Turn expected errors into a line on stderr and exit status 1, Ctrl-C into 130."""
    try:
        yield
    except EXPECTED as error:
        for line in str(error).splitlines():  # a configuration may have several problems
            typer.echo(f"headrace: {line}", err=True)
        raise typer.Exit(1) from None
    except BrokenPipeError:
        raise typer.Exit(141) from None  # `headrace ... | head`
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
