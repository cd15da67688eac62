"""Cohere's dialect, version 2, outwards: chat, embed and rerank.

Source: the Cohere API reference (v2 chat, embed, rerank).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from headrace.protocol.content import Opaque, Text
from headrace.protocol.encoding import Embedded, EmbeddingRequest, Ranked, RankRequest
from headrace.protocol.errors import InvalidField, UpstreamError
from headrace.protocol.generation import Event, Finished, GenerationRequest, Message, Usage
from headrace.protocol.openai_content import write_tool, write_tool_call
from headrace.providers.cohere_events import ChatReader
from headrace.providers.dialect import Dialect, decoded, encode
from headrace.providers.translation import (
    HARMLESS,
    UNKNOWN,
    native,
    native_extra,
    not_there,
    refuse_given,
    texts_and_images,
)
from headrace.providers.upstream import Exchange


class _Vectors(Struct, rename={"values": "float"}):
    values: list[list[float]]


class _Embeddings(Struct):
    embeddings: _Vectors
    meta: dict[str, Any] = {}


class _Result(Struct):
    index: int
    relevance_score: float


class _Ranking(Struct):
    results: list[_Result]
    meta: dict[str, Any] = {}


_embeddings = msgspec.json.Decoder(_Embeddings)
_ranking = msgspec.json.Decoder(_Ranking)


def cohere_dialect(name: str, key: str | None) -> Dialect:
    """The dialect of the provider `name`. `key` goes into one header and nowhere else."""
    return Dialect(
        write=lambda request, model: Exchange("/chat", encode(request_body(request, model))),
        reader=lambda request: ChatReader(name),
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        write_embedding=lambda request, model: Exchange(
            "/embed", encode(embedding_body(request, model))
        ),
        read_embedding=embedded,
        write_ranking=lambda request, model: Exchange(
            "/rerank", encode(ranking_body(request, model))
        ),
        read_ranking=ranked,
    )


def request_body(request: GenerationRequest, model: str) -> dict[str, Any]:
    """`request` in Cohere's words. Raises InvalidField where it has none for it."""
    refuse_given(request, *UNKNOWN)
    if request.n > 1:
        raise not_there("n")
    if request.parallel_tool_calls is False:
        raise not_there("parallel_tool_calls")
    native_extra(request, None, HARMLESS)
    request = native(request, None)
    messages = [_turn(f"messages[{i}]", one) for i, one in enumerate(request.messages or ())]
    body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
    form = request.response_format
    given = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "p": request.top_p,
        "k": request.top_k or None,
        "seed": request.seed,
        "stop_sequences": request.stop or None,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "tools": [write_tool(tool, marks=False) for tool in request.tools] or None,
        "tool_choice": _tool_choice(request),
        "thinking": _thinking(request),
    }
    if form is not None and not isinstance(form, Opaque) and form.kind != "text":
        schema = {} if form.schema is None else {"json_schema": form.schema}
        given["response_format"] = {"type": "json_object", **schema}
    body.update((name, value) for name, value in given.items() if value is not None)
    return body


def _tool_choice(request: GenerationRequest) -> str | None:
    choice = request.tool_choice
    if choice is None or isinstance(choice, Opaque) or choice.mode == "auto":
        return None
    if choice.mode == "named":
        raise not_there("tool_choice")
    return choice.mode.upper()


def _thinking(request: GenerationRequest) -> dict[str, Any] | None:
    reasoning = request.reasoning
    if reasoning is None:
        return None
    if reasoning.thinking is False:
        return {"type": "disabled"}
    budget = {} if reasoning.budget is None else {"token_budget": reasoning.budget}
    return {"type": "enabled", **budget}


def _turn(path: str, message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    content = message.content
    if isinstance(content, tuple):
        if message.role == "tool" and not all(isinstance(part, Text) for part in content):
            raise not_there(f"{path}.content")
        parts = texts_and_images(f"{path}.content", content, lambda url: {"url": url})
        if parts:
            turn["content"] = parts
    elif content is not None:
        turn["content"] = content
    if message.tool_calls:
        turn["tool_calls"] = [write_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def embedding_body(request: EmbeddingRequest, model: str) -> dict[str, Any]:
    """`request` in Cohere's words; what the texts are for is `input_type` among its fields."""
    if any(not isinstance(text, str) for text in request.input):
        raise InvalidField("input", "the provider of this model takes text, not token ids.")
    body: dict[str, Any] = {
        "model": model,
        "texts": request.input,
        "input_type": request.extra.get("input_type", "search_document"),
        "embedding_types": ["float"],
    }
    if request.dimensions is not None:
        body["output_dimension"] = request.dimensions
    return body


def embedded(answer: bytes, request: EmbeddingRequest, provider: str) -> Iterator[Event]:
    """The events of an answer of embed."""
    sent: _Embeddings = decoded(_embeddings, answer, provider)
    vectors = tuple(array("f", vector).tobytes() for vector in sent.embeddings.values)
    sizes = {len(vector) for vector in vectors}
    if len(vectors) != len(request.input) or len(sizes) > 1:
        raise UpstreamError(f"Provider '{provider}' did not send one vector for each text.")
    yield Embedded(vectors)
    yield Finished("stop", _usage(sent.meta, sum(map(len, request.input)) // 4))


def ranking_body(request: RankRequest, model: str) -> dict[str, Any]:
    """`request` in Cohere's words; all documents are scored, the best are chosen later."""
    return {"model": model, "query": request.query, "documents": request.documents}


def ranked(answer: bytes, request: RankRequest, provider: str) -> Iterator[Event]:
    """The events of an answer of rerank."""
    sent: _Ranking = decoded(_ranking, answer, provider)
    scores = {result.index: result.relevance_score for result in sent.results}
    if sorted(scores) != list(range(len(request.documents))) or not all(
        map(math.isfinite, scores.values())
    ):
        raise UpstreamError(f"Provider '{provider}' did not send one score for each document.")
    yield Ranked(tuple(scores[index] for index in range(len(scores))))
    characters = len(request.query) + sum(map(len, request.documents))
    yield Finished("stop", _usage(sent.meta, characters // 4))


def _usage(meta: dict[str, Any], estimate: int) -> Usage:
    match meta:
        case {"billed_units": {"input_tokens": int(tokens) | float(tokens)}}:
            return Usage(int(tokens), 0)
    return Usage(estimate, 0, provenance="estimated")
