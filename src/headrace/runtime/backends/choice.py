"""Which backend runs: the one asked for, or the fastest that this installation has."""

from __future__ import annotations

import logging
from importlib import import_module

from .base import Load

FASTEST_FIRST = ("cpu", "reference")
AUTO = "auto"

log = logging.getLogger(__name__)


def choose(name: str) -> Load:
    """The loader of a backend by name, or of the fastest there is for "auto".

    Backends are optional: one whose parts were not installed is passed over by "auto", and said
    to be missing otherwise. Raises ValueError.
    """
    if name == AUTO:
        return next(load for load in map(importable, FASTEST_FIRST) if load is not None)
    if name not in FASTEST_FIRST:
        raise ValueError(f"backend '{name}'; there are: {', '.join((AUTO, *FASTEST_FIRST))}")
    found = importable(name)
    if found is None:
        raise ValueError(f"backend '{name}' is not part of this installation")
    return found


def importable(name: str) -> Load | None:
    """A backend's loader, or None where its parts are missing."""
    try:
        load: Load = import_module(f"headrace.runtime.backends.{name}").load
    except ImportError as error:
        log.warning("backend %s is not available: %s", name, error)
        return None
    return load
