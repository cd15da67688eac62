"""Anthropic's wire format, inwards: bodies of messages and messages/count_tokens.

Source: the Anthropic API reference (messages, count tokens, tool use, extended thinking, prompt
caching). What goes out is in `protocol.anthropic_answer`.

A tool's result stands in a user's turn there and is a turn of its own here; the order stays. All
fields that this module does not know go to `extra`; null counts as not given.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from headrace.protocol.content import (
    CacheTime,
    Document,
    Image,
    Opaque,
    Part,
    Reasoning,
    ResponseFormat,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
    data_url,
)
from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import GenerationRequest, Message
from headrace.protocol.json import check_bounds
from headrace.protocol.openai import MAX_MESSAGES, ModelName, TokenCount, convert
from headrace.protocol.openai_content import read_cache

MAX_STOP_SEQUENCES = 64

Blocks = list[dict[str, Any]]


class MessageTurn(Struct):
    """One turn of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | Blocks


class ThinkingWish(Struct):
    """Whether to think first, and how much."""

    type: str
    budget_tokens: TokenCount | None = None


class MessageToolChoice(Struct):
    """Whether a tool must be called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class OutputFormat(Struct):
    """What the answer's text must be."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, forbid_unknown_fields=True):
    """How to answer."""

    effort: str | None = None
    format: OutputFormat | None = None


class EndUser(Struct):
    """Who asks."""

    user_id: str | None = None


class PromptBody(Struct, kw_only=True):
    """A prompt: what both endpoints read."""

    model: ModelName
    messages: Annotated[list[MessageTurn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Blocks | None = None
    tools: Blocks | None = None
    tool_choice: MessageToolChoice | None = None
    thinking: ThinkingWish | None = None
    output_config: OutputConfig | None = None


class MessagesBody(PromptBody, kw_only=True):
    """A conversation to go on with; further fields go to a provider of this dialect."""

    max_tokens: TokenCount
    metadata: EndUser | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=MAX_STOP_SEQUENCES)] | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None


def messages_request(fields: dict[str, Any]) -> GenerationRequest:
    """The request in a messages body. Raises InvalidField."""
    body = convert(fields, MessagesBody)
    request = _prompt(body, fields)
    stops = tuple(body.stop_sequences or ())
    if "" in stops:
        raise InvalidField("stop_sequences", "expected sequences that are not empty.")
    return msgspec.structs.replace(
        request,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p or None,
        top_k=body.top_k,
        stop=stops,
        stream=bool(body.stream),
        user=None if body.metadata is None else body.metadata.user_id,
    )


def count_request(fields: dict[str, Any]) -> GenerationRequest:
    """The prompt in a count_tokens body. Raises InvalidField."""
    return _prompt(convert(fields, PromptBody), fields)


def _prompt(body: PromptBody, fields: dict[str, Any]) -> GenerationRequest:
    choice, config = body.tool_choice, body.output_config
    parallel = None if choice is None else choice.disable_parallel_tool_use
    form = None if config is None else config.format
    return GenerationRequest(
        endpoint="chat",
        dialect="anthropic",
        model=body.model,
        messages=(*_system(body.system), *_turns(body.messages)),
        tools=_tools(body.tools or []),
        tool_choice=None if choice is None else _choice(choice),
        parallel_tool_calls=None if parallel is None else not parallel,
        response_format=None
        if form is None
        else ResponseFormat("json_schema", form.schema, strict=True),
        reasoning=_reasoning(body.thinking, config, fields),
        extra=_extra(fields, frozenset(body.__struct_fields__)),
    )


def _extra(fields: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    extra = {}
    for name, value in fields.items():
        if name not in known and value is not None:
            check_bounds(name, value)
            extra[name] = value
    return extra


def _system(system: str | Blocks | None) -> Iterator[Message]:
    if system:
        content = system if isinstance(system, str) else _parts("system", system)
        yield Message(role="system", content=content)


def _turns(turns: list[MessageTurn]) -> Iterator[Message]:
    for place, turn in enumerate(turns):
        path = f"messages[{place}].content"
        if isinstance(turn.content, str):
            yield Message(role=turn.role, content=turn.content)
            continue
        if not turn.content:
            raise InvalidField(path, "expected at least one content block.")
        check_bounds(path, turn.content)
        if turn.role == "assistant":
            yield _assistant(path, turn.content)
        else:
            yield from _user(path, turn.role, turn.content)


def _assistant(path: str, blocks: Blocks) -> Message:
    """A turn of the model's: what it said, then what it called."""
    said = [(place, block) for place, block in enumerate(blocks) if block.get("type") != "tool_use"]
    calls = tuple(
        _tool_call(f"{path}[{place}]", block)
        for place, block in enumerate(blocks)
        if block.get("type") == "tool_use"
    )
    content = tuple(_part(f"{path}[{place}]", block) for place, block in said)
    return Message(role="assistant", content=_simple(content) or None, tool_calls=calls)


def _user(path: str, role: str, blocks: Blocks) -> Iterator[Message]:
    """A user's turn, split where tools' results stand in it."""
    said: list[Part] = []
    for place, block in enumerate(blocks):
        at = f"{path}[{place}]"
        if block.get("type") != "tool_result":
            said.append(_part(at, block))
            continue
        if said:
            yield Message(role=role, content=_simple(tuple(said)))
            said = []
        yield _tool_result(at, block)
    if said:
        yield Message(role=role, content=_simple(tuple(said)))


def _simple(parts: tuple[Part, ...]) -> str | tuple[Part, ...]:
    """One part of plain text is a string."""
    match parts:
        case (Text(text, None, extra),) if not extra:
            return text
    return parts


def _parts(path: str, blocks: Blocks) -> str | tuple[Part, ...]:
    check_bounds(path, blocks)
    return _simple(tuple(_part(f"{path}[{i}]", block) for i, block in enumerate(blocks)))


def _part(path: str, block: dict[str, Any]) -> Part:
    cache, rest = _marked(block)
    match rest:
        case {"type": "text", "text": str(text), **extra}:
            return Text(text, cache, extra)
        case {"type": "image", "source": dict(source), **extra}:
            url = _url(source)
            return Opaque("anthropic", block) if url is None else Image(url, None, cache, extra)
        case {"type": "document", "source": dict(source), **extra}:
            url, title = _url(source), extra.pop("title", None)
            if url is None or not isinstance(title, str | None):
                return Opaque("anthropic", block)
            return Document(url, title, cache, extra)
        case {"type": "thinking", "thinking": str(text)}:
            signature = rest.get("signature")
            return Thinking(text, signature if isinstance(signature, str) and signature else None)
        case {"type": "redacted_thinking", "data": str(data)}:
            return Thinking(redacted=data)
        case {"type": "text"}:
            raise InvalidField(f"{path}.text", "expected a string.")
        case {"type": ("image" | "document")}:
            raise InvalidField(f"{path}.source", "expected an object.")
        case {"type": str()}:
            return Opaque("anthropic", block)
    raise InvalidField(f"{path}.type", "expected a string such as 'text'.")


def _marked(block: dict[str, Any]) -> tuple[CacheTime | None, dict[str, Any]]:
    cache, rest = read_cache(block)
    return cache, {name: value for name, value in rest.items() if value is not None}


def _url(source: dict[str, Any]) -> str | None:
    match source:
        case {"type": "base64", "media_type": str(media_type), "data": str(data)}:
            return data_url(media_type, data)
        case {"type": "url", "url": str(url)}:
            return url
        case {"type": "text", "data": str(text)}:
            return data_url("text/plain", b64encode(text.encode()).decode())
    return None


def _tool_call(path: str, block: dict[str, Any]) -> ToolCall:
    cache, rest = _marked(block)
    match rest:
        case {"type": _, "id": str(id), "name": str(name), "input": dict(arguments), **extra}:
            written = msgspec.json.encode(arguments).decode()
            return ToolCall(id, name, written, None, cache, extra)
    raise InvalidField(path, "expected a tool_use block with id, name and input.")


def _tool_result(path: str, block: dict[str, Any]) -> Message:
    cache, rest = _marked(block)
    call, content = rest.pop("tool_use_id", None), rest.pop("content", "")
    failed = rest.pop("is_error", False)
    rest.pop("type")
    if not isinstance(call, str):
        raise InvalidField(f"{path}.tool_use_id", "expected the id of the call this answers.")
    if isinstance(content, list) and all(isinstance(one, dict) for one in content):
        content = _parts(f"{path}.content", content)
    elif not isinstance(content, str):
        raise InvalidField(f"{path}.content", "expected a string or a list of content blocks.")
    return Message(
        role="tool",
        content=content,
        tool_call_id=call,
        is_error=failed is True,
        cache=cache,
        extra=rest,
    )


def _tools(tools: Blocks) -> tuple[Tool | Opaque, ...]:
    check_bounds("tools", tools)
    return tuple(_tool(f"tools[{place}]", tool) for place, tool in enumerate(tools))


def _tool(path: str, raw: dict[str, Any]) -> Tool | Opaque:
    cache, rest = _marked(raw)
    if rest.pop("type", "custom") != "custom":
        return Opaque("anthropic", raw)
    name, description = rest.pop("name", None), rest.pop("description", None)
    schema, strict = rest.pop("input_schema", None), rest.pop("strict", None)
    if not isinstance(name, str):
        raise InvalidField(f"{path}.name", "expected a string.")
    if not isinstance(description, str | None):
        raise InvalidField(f"{path}.description", "expected a string.")
    if not isinstance(schema, dict):
        raise InvalidField(f"{path}.input_schema", "expected a JSON schema.")
    strictly = None if strict is None else strict is True
    return Tool(name, description, schema, strictly, cache, rest)


def _choice(choice: MessageToolChoice) -> ToolChoice:
    if choice.type == "tool":
        if choice.name is None:
            raise InvalidField("tool_choice.name", "expected the name of a tool.")
        return ToolChoice("named", choice.name)
    return ToolChoice("required" if choice.type == "any" else choice.type)


def _reasoning(
    thinking: ThinkingWish | None, config: OutputConfig | None, fields: dict[str, Any]
) -> Reasoning | None:
    effort = None if config is None else config.effort
    if thinking is None:
        return None if effort is None else Reasoning(effort=effort)
    raw = fields["thinking"]
    extra = {name: raw[name] for name in raw if name not in ("type", "budget_tokens")}
    if thinking.type not in ("enabled", "disabled", "adaptive"):
        extra["type"] = thinking.type
    return Reasoning(thinking.type != "disabled", effort, thinking.budget_tokens, extra)
