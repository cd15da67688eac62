"""OpenAI's Responses format, inwards.

Source: the OpenAI API reference (responses). What goes out is in `protocol.responses_answer`.
Items become turns: a run of reasoning, a message and calls of the model is one assistant's turn.
`previous_response_id`, `store` and `instructions`, which are the first turn too, stay in `extra`;
the gateway takes them from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from headrace.protocol.content import (
    Document,
    Image,
    Part,
    Reasoning,
    ResponseFormat,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolChoice,
)
from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import GenerationRequest, Message
from headrace.protocol.json import check_bounds
from headrace.protocol.openai import ModelName, TokenCount, convert
from headrace.protocol.openai_content import described_format

INSTRUCTIONS, PREVIOUS, STORE = "instructions", "previous_response_id", "store"

Items = list[dict[str, Any]]


class ReasoningWish(Struct):
    """How hard to think first."""

    effort: str | None = None


class TextWish(Struct):
    """What the answer's text must be."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseBody(Struct, kw_only=True):
    """Input to respond to; further fields go to a provider of OpenAI's dialect."""

    model: ModelName
    input: str | Items
    instructions: str | None = None
    max_output_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    tools: Items | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: TextWish | None = None
    reasoning: ReasoningWish | None = None
    user: str | None = None
    stream: bool | None = None
    previous_response_id: str | None = None
    store: bool | None = None


_KNOWN = frozenset(ResponseBody.__struct_fields__) - {INSTRUCTIONS, PREVIOUS, STORE}
# Fields whose work is not done here, and the values at which there is none.
_FIXED: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "max_tool_calls": (),
    "prompt": (),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}


def responses_request(fields: dict[str, Any]) -> GenerationRequest:
    """The request in a responses body. Raises InvalidField."""
    body = convert(fields, ResponseBody)
    text = body.text or TextWish()
    extra: dict[str, Any] = {}
    for name, value in fields.items():
        if name in _KNOWN or value is None:
            continue
        check_bounds(name, value)
        if name in _FIXED and value not in _FIXED[name]:
            raise InvalidField(name, "is not supported here.")
        if name not in _FIXED and value != "":
            extra[name] = value
    if text.verbosity is not None:
        extra["verbosity"] = text.verbosity
    effort = body.reasoning.effort if body.reasoning is not None else None
    return GenerationRequest(
        endpoint="chat",
        dialect="responses",
        model=body.model,
        messages=(*_instructions(body.instructions), *_turns(body.input)),
        tools=tuple(_tool(f"tools[{i}]", tool) for i, tool in enumerate(body.tools or ())),
        tool_choice=None if body.tool_choice is None else _choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=None if text.format is None else _format(text.format),
        reasoning=_reasoning(effort),
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stream=bool(body.stream),
        user=body.user,
        extra=extra,
    )


def _reasoning(effort: str | None) -> Reasoning | None:
    if effort is None:
        return None
    return Reasoning(thinking=False) if effort == "none" else Reasoning(effort=effort)


def _instructions(instructions: str | None) -> Iterator[Message]:
    if instructions:
        yield Message(role="developer", content=instructions)


def _turns(given: str | Items) -> Iterator[Message]:
    if isinstance(given, str):
        yield Message(role="user", content=given)
        return
    check_bounds("input", given)
    said: list[Part] = []
    calls: list[ToolCall] = []
    for place, item in enumerate(given):
        path = f"input[{place}]"
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message" and item.get("role") == "assistant":
            if calls:
                yield _assistant(said, calls)
            said += _content(path, item)
        elif kind == "reasoning":
            said += _thoughts(item)
        elif kind == "function_call":
            calls.append(_call(path, item))
        else:
            if said or calls:
                yield _assistant(said, calls)
            yield _other(path, kind, item)
    if said or calls:
        yield _assistant(said, calls)


def _assistant(said: list[Part], calls: list[ToolCall]) -> Message:
    """The turn that has come together; the lists are empty again after it."""
    turn = Message(role="assistant", content=tuple(said) or None, tool_calls=tuple(calls))
    said.clear()
    calls.clear()
    return turn


def _other(path: str, kind: Any, item: dict[str, Any]) -> Message:
    if kind == "function_call_output":
        call = item.get("call_id")
        if not isinstance(call, str):
            raise InvalidField(f"{path}.call_id", "expected the id of the call this answers.")
        parts = _content(path, item, "output")
        return Message(role="tool", content=_simple(parts), tool_call_id=call)
    if kind == "message":
        role = item.get("role")
        if role not in ("system", "developer", "user"):
            raise InvalidField(
                f"{path}.role", "expected one of system, developer, user, assistant."
            )
        return Message(role=role, content=_simple(_content(path, item)))
    raise InvalidField(f"{path}.type", f"items of type '{str(kind)[:40]}' are not supported here.")


def _simple(parts: list[Part]) -> str | tuple[Part, ...]:
    match parts:
        case [Text(text, None, extra)] if not extra:
            return text
    return tuple(parts)


def _content(path: str, item: dict[str, Any], name: str = "content") -> list[Part]:
    content = item.get(name)
    if isinstance(content, str):
        return [Text(content)]
    if not isinstance(content, list):
        raise InvalidField(f"{path}.{name}", "expected a string or a list of content parts.")
    return [_part(f"{path}.{name}[{place}]", part) for place, part in enumerate(content)]


def _part(path: str, part: Any) -> Part:
    match part:
        case {"type": ("input_text" | "output_text" | "text"), "text": str(text)}:
            return Text(text)
        case {"type": "refusal", "refusal": str(text)}:
            return Text(text)
        case {"type": "input_image", "image_url": str(url), **rest}:
            detail = rest.get("detail")
            return Image(url, detail if isinstance(detail, str) and detail != "auto" else None)
        case {"type": "input_file", "file_data": str(url), **rest}:
            name = rest.get("filename")
            return Document(url, name if isinstance(name, str) else None)
        case {"type": "input_file", "file_url": str(url)}:
            return Document(url)
        case {"type": str(kind)}:
            raise InvalidField(path, f"parts such as this '{kind[:40]}' are not supported here.")
    raise InvalidField(f"{path}.type", "expected a string such as 'input_text'.")


def _thoughts(item: dict[str, Any]) -> Iterator[Part]:
    pieces = []
    for piece in (*(item.get("summary") or ()), *(item.get("content") or ())):
        match piece:
            case {"text": str(text)}:
                pieces.append(text)
    signature = item.get("encrypted_content")
    yield Thinking("".join(pieces), signature if isinstance(signature, str) else None)


def _call(path: str, item: dict[str, Any]) -> ToolCall:
    match item:
        case {"call_id": str(id), "name": str(name), "arguments": str(arguments)}:
            return ToolCall(id, name, arguments)
    raise InvalidField(path, "expected a call with call_id, name and arguments.")


def _tool(path: str, raw: dict[str, Any]) -> Tool:
    check_bounds(path, raw)
    if raw.get("type") != "function":
        raise InvalidField(f"{path}.type", "expected 'function': other tools cannot be served.")
    match raw:
        case {"name": str(name)}:
            description, schema = raw.get("description"), raw.get("parameters")
            strict = raw.get("strict")
            return Tool(
                name,
                description if isinstance(description, str) else None,
                schema if isinstance(schema, dict) else None,
                None if strict is None else strict is True,
            )
    raise InvalidField(f"{path}.name", "expected a string.")


def _choice(choice: str | dict[str, Any]) -> ToolChoice:
    modes: dict[str, Literal["auto", "none", "required"]]
    modes = {"auto": "auto", "none": "none", "required": "required"}
    if isinstance(choice, str) and choice in modes:
        return ToolChoice(modes[choice])
    match choice:
        case {"type": "function", "name": str(name)}:
            return ToolChoice("named", name)
    raise InvalidField("tool_choice", "expected auto, none, required or a function to call.")


def _format(raw: dict[str, Any]) -> ResponseFormat:
    match raw:
        case {"type": "text"}:
            return ResponseFormat("text")
        case {"type": "json_object"}:
            return ResponseFormat("json_object")
        case {"type": "json_schema", **described}:
            check_bounds("text.format", described)
            return described_format(described, "text.format.schema")
    raise InvalidField("text.format.type", "expected one of text, json_object, json_schema.")
