"""Bedrock's dialect, outwards: what is asked of `converse-stream`.

Source: the Amazon Bedrock API reference (Converse, ConverseStream). A place to cache up to is a
block of its own behind what it marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from headrace.config.schema import UpstreamProvider
from headrace.protocol.content import (
    Document,
    Image,
    Opaque,
    Part,
    Text,
    Thinking,
    Tool,
    ToolCall,
    inline,
)
from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import GenerationRequest, Message
from headrace.providers.amazon import CONTENT_TYPE, Signer
from headrace.providers.anthropic import arguments_of, tool_id
from headrace.providers.bedrock_events import ConverseReader
from headrace.providers.dialect import Dialect, encode
from headrace.providers.translation import HARMLESS, native, native_extra, not_there, refuse_given
from headrace.providers.upstream import Exchange

UNKNOWN = (
    "logit_bias", "logprobs", "prompt_logprobs", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "min_p", "min_tokens", "ignore_eos", "stop_token_ids", "echo", "prompt",
    "response_format",
)  # fmt: skip

CACHE_POINT = {"cachePoint": {"type": "default"}}
FORMATS = {
    "application/pdf": "pdf",
    "text/plain": "txt",
    "text/csv": "csv",
    "text/html": "html",
    "text/markdown": "md",
}

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9 ()\[\]-]+")


def bedrock_dialect(
    name: str,
    settings: UpstreamProvider,
    key: str | None,
    access_key: str | None,
    session_token: str | None,
    clock: Callable[[], float],
) -> Dialect:
    """The dialect of the provider `name`: `key` is a bearer token, or with `access_key` the secret
    that requests are signed with. `clock` gives Unix seconds."""
    headers = {"Accept": CONTENT_TYPE}
    signer = None
    if access_key is not None and key is not None:
        region = settings.region or ""
        signer = Signer(access_key, key, session_token, region, "bedrock", clock)
    elif key is not None:
        headers["Authorization"] = f"Bearer {key}"

    def write(request: GenerationRequest, model: str) -> Exchange:
        path = f"/model/{quote(model, safe='')}/converse-stream"
        return Exchange(path, encode(request_body(request)))

    return Dialect(
        write=write,
        reader=lambda request: ConverseReader(name),
        framing="amazon",
        headers=headers,
        sign=signer,
    )


def request_body(request: GenerationRequest) -> dict[str, Any]:
    """`request` in Converse's words. Raises InvalidField where it has none for it."""
    refuse_given(request, *UNKNOWN)
    for name, given in {
        "n": request.n > 1,
        "seed": request.seed is not None,
        "parallel_tool_calls": request.parallel_tool_calls is False,
        "reasoning_effort": request.reasoning is not None and request.reasoning.effort is not None,
    }.items():
        if given:
            raise not_there(name)
    native_extra(request, None, HARMLESS)
    request = native(request, None)
    system, messages = _conversation(request)
    settings = {
        "maxTokens": request.max_tokens,
        "temperature": request.temperature,
        "topP": request.top_p,
        "stopSequences": request.stop or None,
    }
    body: dict[str, Any] = {
        "messages": messages,
        "inferenceConfig": {name: value for name, value in settings.items() if value is not None},
    }
    if system:
        body["system"] = system
    if request.tools:
        body["toolConfig"] = _tools(request)
    more: dict[str, Any] = {}
    if request.top_k:
        more["top_k"] = request.top_k
    reasoning = request.reasoning
    if reasoning is not None and reasoning.budget is not None:
        more["thinking"] = {"type": "enabled", "budget_tokens": reasoning.budget}
    if more:
        body["additionalModelRequestFields"] = more
    return body


def _tools(request: GenerationRequest) -> dict[str, Any]:
    specs: list[dict[str, Any]] = []
    for tool in request.tools:
        if isinstance(tool, Tool):
            schema = tool.parameters or {"type": "object", "properties": {}}
            spec: dict[str, Any] = {"name": tool.name, "inputSchema": {"json": schema}}
            if tool.description:
                spec["description"] = tool.description
            specs.append({"toolSpec": spec})
            if tool.cache is not None:
                specs.append(CACHE_POINT)
    body: dict[str, Any] = {"tools": specs}
    choice = request.tool_choice
    if choice is not None and not isinstance(choice, Opaque):
        if choice.mode == "none":
            raise not_there("tool_choice 'none'")
        kinds = {"auto": "auto", "required": "any", "named": "tool"}
        named = {"name": choice.name} if choice.mode == "named" else {}
        body["toolChoice"] = {kinds[choice.mode]: named}
    return body


def _conversation(
    request: GenerationRequest,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system prompt and the turns; neighbours of one role are one turn."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for place, message in enumerate(request.messages or ()):
        blocks = list(_blocks(f"messages[{place}]", message))
        if message.role in ("system", "developer"):
            system += blocks
            continue
        role = "user" if message.role == "tool" else message.role
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return system, turns


def _blocks(path: str, message: Message) -> Iterator[dict[str, Any]]:
    content = message.content
    parts = (Text(content),) if isinstance(content, str) else content or ()
    said = [
        block
        for place, part in enumerate(parts)
        for block in _part(f"{path}.content[{place}]", part)
    ]
    if message.role == "tool":
        marked = message.cache is not None or CACHE_POINT in said
        said = [block for block in said if block is not CACHE_POINT]  # it cannot stand inside
        result: dict[str, Any] = {"toolUseId": tool_id(message.tool_call_id or ""), "content": said}
        if message.is_error:
            result["status"] = "error"
        yield {"toolResult": result}
        if marked:
            yield CACHE_POINT
        return
    yield from said
    for place, call in enumerate(message.tool_calls):
        if isinstance(call, ToolCall):
            input = arguments_of(f"{path}.tool_calls[{place}].function.arguments", call.arguments)
            yield {"toolUse": {"toolUseId": tool_id(call.id), "name": call.name, "input": input}}
            if call.cache is not None:
                yield CACHE_POINT


def _part(path: str, part: Part) -> Iterator[dict[str, Any]]:
    match part:
        case Text(""):
            return
        case Text(text):
            yield {"text": text}
        case Image(url):
            media_type, data = _held(path, url)
            form = media_type.removeprefix("image/")
            yield {"image": {"format": form, "source": {"bytes": data}}}
        case Document(url, name):
            media_type, data = _held(path, url)
            form = FORMATS.get(media_type, media_type.rpartition("/")[2])
            title = _NOT_IN_A_NAME.sub(" ", name or "document").strip() or "document"
            yield {"document": {"format": form, "name": title, "source": {"bytes": data}}}
        case Thinking(_, _, str(redacted)):
            yield {"reasoningContent": {"redactedContent": redacted}}
        case Thinking(text, str(signature)):
            said = {"text": text, "signature": signature}
            yield {"reasoningContent": {"reasoningText": said}}
        case Thinking():
            return  # another model's
        case _:
            raise not_there(path)
    if getattr(part, "cache", None) is not None:
        yield CACHE_POINT


def _held(path: str, url: str) -> tuple[str, str]:
    """The media type and base64 data of a URL. Raises InvalidField where it holds none."""
    held = inline(url)
    if held is None:
        raise InvalidField(path, "the provider of this model takes inline data, not addresses.")
    return held
