"""What models can do, as far as it is known when the package is made.

`capabilities.json` says what each dialect has endpoints for here, and of models at their makers'
own addresses what they take. What the file says of a model goes before it; what nobody knows is
tried.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import Struct, structs

from headrace.config.hosted import listed
from headrace.config.schema import LOCAL, Configuration, Count, EndpointName, Model, WireDialect


class Capabilities(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one model; the fields are those of `schema.Model`, None and empty where not known."""

    context: Count | None = None
    tools: bool | None = None
    images: bool | None = None
    audio: bool | None = None
    json_schema: bool | None = None
    reasoning: bool | None = None
    endpoints: tuple[EndpointName, ...] = ()


class Host(Struct, frozen=True):
    """The models of one host, and the page that says so."""

    source: str
    models: dict[str, Capabilities]


class Table(Struct, frozen=True):
    """The table; `as_of` is the day it was true."""

    as_of: str
    dialects: dict[WireDialect, tuple[EndpointName, ...]]
    hosts: dict[str, Host]


TABLE = msgspec.json.decode(Path(__file__).with_name("capabilities.json").read_bytes(), type=Table)
# What our own engine is asked for; a model of another task refuses it.
OWN: tuple[EndpointName, ...] = (
    "chat", "completions", "messages", "responses", "embeddings", "rerank", "classify",
)  # fmt: skip
EVERY: tuple[EndpointName, ...] = get_args(EndpointName)
NAMES = Capabilities.__struct_fields__
UNKNOWN = Capabilities()


def capable(configuration: Configuration) -> Configuration:
    """`configuration`, with what the table knows of each model and its file does not say."""
    models = {name: _known(model, configuration) for name, model in configuration.models.items()}
    return structs.replace(configuration, models=models)


def answers(model: Model, configuration: Configuration, endpoint: str) -> bool:
    """Whether a model and its provider have an endpoint."""
    if model.provider == LOCAL:
        having = OWN
    else:
        having = TABLE.dialects[configuration.providers[model.provider].dialect]
    return endpoint in having and (not model.endpoints or endpoint in model.endpoints)


def told(model: Model, configuration: Configuration) -> dict[str, Any]:
    """What is known of a model, as the list of models tells it; null where nobody knows."""
    abilities = ("tools", "images", "audio", "json_schema", "reasoning")
    return {
        "context_length": model.context,
        "endpoints": [name for name in EVERY if answers(model, configuration, name)],
        "capabilities": {name: getattr(model, name) for name in abilities},
    }


def _known(model: Model, configuration: Configuration) -> Model:
    found = listed(model, configuration, {host: of.models for host, of in TABLE.hosts.items()})
    if found is None:
        return model
    given: dict[str, Any] = {}
    for name in NAMES:
        if getattr(model, name) == getattr(UNKNOWN, name):
            given[name] = getattr(found, name)
    return structs.replace(model, **given)
