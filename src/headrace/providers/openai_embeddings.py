"""OpenAI's embeddings, from the caller's side: a request out, vectors in.

Source: the OpenAI API reference (embeddings). Vectors are asked for as numbers, which every
compatible server can send, and taken as numbers or base64.
"""

from __future__ import annotations

import math
from array import array
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from headrace.protocol.encoding import Embedded, EmbeddingRequest
from headrace.protocol.errors import UpstreamError
from headrace.protocol.generation import Event, Finished, Usage

_CHARACTERS_PER_TOKEN = 4  # for an estimate, where the upstream does not say


class _Vector(Struct):
    embedding: list[float] | str
    index: int


class _Usage(Struct):
    prompt_tokens: int | None = None
    total_tokens: int | None = None


class _Answer(Struct):
    data: list[_Vector]
    usage: _Usage | None = None


_decoder = msgspec.json.Decoder(_Answer)


def embedding_body(request: EmbeddingRequest, model: str) -> dict[str, Any]:
    """`request` in OpenAI's words. `extra` goes as it came but overrides nothing."""
    body = {**request.extra, "model": model, "input": request.input, "encoding_format": "float"}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return body


def embedded(answer: bytes, request: EmbeddingRequest, provider: str) -> Iterator[Event]:
    """The events of an answer. Raises UpstreamError where it is malformed or incomplete."""
    try:
        sent = _decoder.decode(answer)
        vectors = {one.index: _bytes(one.embedding) for one in sent.data}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise UpstreamError(f"Provider '{provider}' sent malformed embeddings.") from None
    if sorted(vectors) != list(range(len(request.input))) or len({*map(len, vectors.values())}) > 1:
        raise UpstreamError(f"Provider '{provider}' did not send one vector for each text.")
    yield Embedded(tuple(vectors[index] for index in range(len(request.input))))
    yield Finished("stop", _usage(sent.usage, request))


def _bytes(vector: list[float] | str) -> bytes:
    """A vector as float32. Raises ValueError where it is none, or holds what is not finite."""
    values = array("f", vector if isinstance(vector, list) else b64decode(vector, validate=True))
    if not math.isfinite(sum(values)):
        raise ValueError("not finite")
    return values.tobytes()


def _usage(sent: _Usage | None, request: EmbeddingRequest) -> Usage:
    if sent is None or sent.prompt_tokens is None:
        tokens = (
            -(-len(one) // _CHARACTERS_PER_TOKEN) if isinstance(one, str) else len(one)
            for one in request.input
        )
        return Usage(sum(tokens), 0, provenance="estimated")
    return Usage(max(sent.prompt_tokens, 0), 0)
