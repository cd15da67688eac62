"""Secrets by reference: the file says `env:NAME`, the environment holds the value.

A value read here goes to the provider that needs it and nowhere else; no error, record, log or
version ever contains one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from headrace.config.schema import Configuration

_REFERENCE = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)")
_PRINTABLE = re.compile(r"[\x21-\x7e]+")

FORM = "a reference of the form env:NAME (the value itself does not belong in the file)"


class SecretError(Exception):
    """A secret cannot be had. Names the variable, never its value."""


def is_reference(text: str) -> bool:
    """Whether `text` has the form `env:NAME`."""
    return _REFERENCE.fullmatch(text) is not None


def variables_of(configuration: Configuration) -> frozenset[str]:
    """The names of all variables that a configuration refers to."""
    references = [configuration.server.admin_key]
    for provider in configuration.providers.values():
        references += [provider.key, provider.access_key, provider.session_token]
    found = [_REFERENCE.fullmatch(reference) for reference in references if reference is not None]
    return frozenset(match[1] for match in found if match is not None)


def resolve(reference: str, environ: Mapping[str, str]) -> str:
    """The secret that `reference` stands for, without surrounding white space.

    Raises SecretError if the reference is malformed, or the variable is not set, empty, or holds
    a character that cannot stand in an HTTP header.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise SecretError(f"expected {FORM}")
    name = match[1]
    value = environ.get(name, "").strip()
    if not value:
        state = "empty" if name in environ else "not set"
        raise SecretError(f"the environment variable {name} is {state}")
    if _PRINTABLE.fullmatch(value) is None:
        raise SecretError(
            f"the environment variable {name} holds a character that a key cannot have"
        )
    return value
