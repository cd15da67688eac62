"""Mistral's dialect, outwards: near OpenAI's, with names and bounds of its own.

Source: the Mistral API reference (chat completion, embeddings). It refuses fields it does not
know, and takes ids of tool calls of nine letters and digits only.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

from headrace.protocol.content import Opaque, ToolCall
from headrace.protocol.encoding import EmbeddingRequest
from headrace.protocol.generation import GenerationRequest, Message
from headrace.protocol.openai_content import write_format, write_tool, write_tool_choice
from headrace.providers.dialect import Dialect, encode
from headrace.providers.openai import new_call_id
from headrace.providers.openai_chunks import Translator
from headrace.providers.openai_embeddings import embedded
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

ID_LETTERS = 9

_TOOL_ID = re.compile(r"[A-Za-z0-9]{9}")


def mistral_dialect(name: str, key: str | None) -> Dialect:
    """The dialect of the provider `name`. `key` goes into one header and nowhere else."""
    return Dialect(
        write=lambda request, model: Exchange(
            "/chat/completions", encode(request_body(request, model))
        ),
        reader=lambda request: Translator(name, new_call_id, request.n),
        headers={} if key is None else {"Authorization": f"Bearer {key}"},
        write_embedding=lambda request, model: Exchange(
            "/embeddings", encode(embedding_body(request, model))
        ),
        read_embedding=embedded,
    )


def embedding_body(request: EmbeddingRequest, model: str) -> dict[str, Any]:
    """`request` in Mistral's words."""
    body: dict[str, Any] = {"model": model, "input": request.input}
    if request.dimensions is not None:
        body["output_dimension"] = request.dimensions
    return body


def request_body(request: GenerationRequest, model: str) -> dict[str, Any]:
    """`request` in Mistral's words. Raises InvalidField where it has none for it."""
    refuse_given(request, *UNKNOWN, "top_k")
    native_extra(request, None, HARMLESS)
    request = native(request, None)
    if request.reasoning is not None and request.reasoning.thinking is not False:
        raise not_there("reasoning_effort")
    choice, form = request.tool_choice, request.response_format
    chosen = None if choice is None else write_tool_choice(choice)
    body: dict[str, Any] = {
        "model": model,
        "messages": [
            _turn(f"messages[{place}]", message)
            for place, message in enumerate(request.messages or ())
        ],
        "stream": True,
    }
    given = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "random_seed": request.seed,
        "stop": request.stop or None,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "n": request.n if request.n > 1 else None,
        "tools": [write_tool(tool, marks=False) for tool in request.tools] or None,
        "tool_choice": "any" if chosen == "required" else chosen,
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": None if form is None else write_format(form),
    }
    body.update((name, value) for name, value in given.items() if value is not None)
    return body


def _turn(path: str, message: Message) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    content = message.content
    if isinstance(content, tuple):
        turn["content"] = texts_and_images(f"{path}.content", content, lambda url: url)
    else:
        turn["content"] = content or ""
    if message.tool_calls:
        turn["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = tool_id(message.tool_call_id)
    return turn


def _call(call: ToolCall | Opaque) -> dict[str, Any]:
    if isinstance(call, Opaque):
        return call.fields
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": tool_id(call.id), "type": "function", "function": function}


def tool_id(id: str) -> str:
    """A call's id as Mistral takes it; any other becomes one, always the same."""
    if _TOOL_ID.fullmatch(id):
        return id
    return blake2b(id.encode(), digest_size=8).hexdigest()[:ID_LETTERS]
