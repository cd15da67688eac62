"""The parameters of a query, by their types."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from headrace.protocol.errors import InvalidField

T = TypeVar("T")


def query_of(request: Request, page: type[T]) -> T:
    """The query of `request` as a `page`. Raises InvalidField."""
    try:
        return msgspec.convert(dict(request.query_params), page, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error) from None


def invalid(error: msgspec.ValidationError) -> InvalidField:
    """What msgspec says, by the field it names."""
    said, _, place = str(error).partition(" - at `$.")
    if place:
        return InvalidField(place.rstrip("`"), f"{said}.")
    field = said.rpartition("field `")[2].rstrip("`") if "field `" in said else "body"
    return InvalidField(field, f"{said}.")
