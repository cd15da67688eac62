"""What a table knows of models at their makers' own addresses: the same name elsewhere may be
something else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlsplit

from headrace.config.schema import LOCAL, Configuration, Model

T = TypeVar("T")

_DATED = re.compile(r"-(\d{8}|\d{4}-\d\d-\d\d)$")  # a version of a model is as the model is


def listed(
    model: Model, configuration: Configuration, hosts: Mapping[str, Mapping[str, T]]
) -> T | None:
    """What `hosts` holds of `model`, by host and the name that it has there; None for nothing."""
    provider = configuration.providers.get(model.provider)
    if model.provider == LOCAL or provider is None:
        return None
    models = hosts.get(urlsplit(provider.address or "").hostname or "", {})
    name = model.source if model.source in models else _DATED.sub("", model.source)
    return models.get(name)
