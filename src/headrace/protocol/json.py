"""JSON from strangers: one decode, and bounds on what it may hold.

What comes out can be encoded again: no lone surrogate, no NaN or infinity (the decoder refuses
them), no integer of over 64 bits, no nesting deeper than `MAX_DEPTH`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.protocol.errors import InvalidField, MalformedBody

MAX_DEPTH = 64

_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_decoder = msgspec.json.Decoder()


def decode_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises MalformedBody."""
    try:
        value = _decoder.decode(body)
    except RecursionError:
        raise MalformedBody("The body is nested too deeply.") from None
    except UnicodeDecodeError:
        raise MalformedBody("The body is not valid UTF-8.") from None
    except msgspec.DecodeError as error:
        raise MalformedBody(f"The body is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise MalformedBody("The body must be a JSON object.")
    return value


def check_bounds(path: str, value: object) -> None:
    """Raise InvalidField, naming the field `path`, where `value` nests too deep or an integer
    in it has over 64 bits."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH):
        below: list[object] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, int) and not _INT_MIN <= item <= _INT_MAX:
                raise InvalidField(path, "expected integers of at most 64 bits.")
        if not below:
            return
        level = below
    raise InvalidField(path, f"expected at most {MAX_DEPTH} levels of nesting.")
