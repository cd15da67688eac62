"""The price table that comes with the package: what providers asked when it was made.

`prices.json` holds it, with its date and the pages that say so. It is for the providers' own
addresses only: the same name elsewhere may cost something else. A price in the file goes before it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct, structs

from headrace.config.hosted import listed
from headrace.config.schema import Configuration, Model, Price


class Listed(Struct, frozen=True):
    """The prices of one host, and the page that says so."""

    source: str
    models: dict[str, Price]


class Prices(Struct, frozen=True):
    """The table; `as_of` is the day it was true."""

    as_of: str
    unit: str
    hosts: dict[str, Listed]


TABLE = msgspec.json.decode(Path(__file__).with_name("prices.json").read_bytes(), type=Prices)


def priced(configuration: Configuration) -> Configuration:
    """`configuration`, with the table's price for each model that has none of its own."""
    models = {name: _priced(model, configuration) for name, model in configuration.models.items()}
    return structs.replace(configuration, models=models)


def _priced(model: Model, configuration: Configuration) -> Model:
    if model.price != Price():
        return model
    price = listed(model, configuration, {host: of.models for host, of in TABLE.hosts.items()})
    return model if price is None else structs.replace(model, price=price)
