"""Embeddings, ranks and classes from the local engine's encoders."""

from __future__ import annotations

import secrets
from array import array

from headrace.protocol.encoding import (
    Classified,
    Embedded,
    EmbeddingRequest,
    Encoded,
    EncodingRequest,
    Ranked,
    RankRequest,
)
from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import Usage
from headrace.runtime.request import EncodeRequest, Encoding

# Fields that change nothing about the answer, or that are read here.
KNOWN = frozenset({"user", "metadata", "truncation"})
TRUNCATION = "truncation"  # whether what is too long is cut and not refused


def asked_of(request: EncodingRequest) -> EncodeRequest:
    """The engine's request. Raises InvalidField on a field it could not honour."""
    for field in request.extra:
        if field not in KNOWN:
            raise InvalidField(field, "this model is served locally, where it is not supported")
    truncate = request.extra.get(TRUNCATION, False)
    if not isinstance(truncate, bool):
        raise InvalidField(TRUNCATION, "expected true or false")
    id = secrets.token_hex(8)
    if isinstance(request, EmbeddingRequest):
        return EncodeRequest(
            id, "embed", request.input, dimensions=request.dimensions, truncate=truncate
        )
    if isinstance(request, RankRequest):
        return EncodeRequest(id, "rank", request.documents, request.query, truncate=truncate)
    return EncodeRequest(id, "classify", request.input, truncate=truncate)


def encoded_of(request: EncodingRequest, found: Encoding) -> tuple[Encoded, Usage]:
    """What the engine found, in the protocol's words."""
    usage = Usage(found.tokens, 0, provenance="counted")
    row = 4 * found.width  # bytes
    rows = [found.values[at : at + row] for at in range(0, len(found.values), row)]
    if isinstance(request, EmbeddingRequest):
        return Embedded(tuple(rows)), usage
    values = [tuple(array("f", row)) for row in rows]
    if isinstance(request, RankRequest):
        return Ranked(tuple(value for (value,) in values)), usage
    return Classified(found.labels, tuple(values)), usage
