"""Which configuration a command works with: a file, or the built-in one."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from headrace.config.load import Loaded, load, version_of
from headrace.config.schema import Configuration, Model
from headrace.registry.catalogue import CATALOGUE

FILE = Path("headrace.yaml")


def choose(path: Path | None, model: str | None = None) -> Loaded:
    """The configuration at `path`, else ./headrace.yaml, else the built-in one.

    `model` is a model reference that is served first: besides those of a file, instead of the
    built-in one. Raises ConfigurationError.
    """
    if path is None and FILE.exists():
        path = FILE
    loaded = load(path)
    if model is None:
        return loaded
    others = loaded.configuration.models if loaded.path else {}
    models = {short_name(model): Model(source=model)} | others
    return changed(loaded, replace(loaded.configuration, models=models))


def changed(loaded: Loaded, configuration: Configuration) -> Loaded:
    """`loaded` with another content, and that content's version."""
    return replace(loaded, configuration=configuration, version=version_of(configuration))


def short_name(reference: str) -> str:
    """What callers call a model that was given by its reference alone."""
    if reference in CATALOGUE:
        return reference
    last = reference.rstrip("/").replace(":", "/").rpartition("/")[2]
    return last.removesuffix(".gguf") or reference
