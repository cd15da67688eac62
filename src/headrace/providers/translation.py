"""A request that came by one dialect, for an upstream of another.

What all dialects share is typed and stays. Fields that only the caller's dialect has are dropped
from parts, tools and calls, where they tune but do not ask; a part or tool that is another
dialect's as a whole asks for something, and is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from msgspec import structs

from headrace.protocol.content import (
    Audio,
    Dialect,
    Document,
    Image,
    Opaque,
    Part,
    Text,
    Thinking,
    Tool,
    ToolCall,
)
from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import GenerationRequest, Message
from headrace.protocol.responses import INSTRUCTIONS, PREVIOUS, STORE

SHARED = frozenset(
    {"metadata", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity"}
)
SERVERS = frozenset(
    {INSTRUCTIONS, PREVIOUS, STORE, "include"}
)  # the gateway's own work in a response

# Fields that tune or label a call where its caller comes from, and ask for nothing elsewhere: of
# OpenAI's dialect, and with those of Anthropic's.
OPENAIS = frozenset(
    {
        "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "stream_options", "verbosity", "include", "truncation",
    }
)  # fmt: skip
HARMLESS = OPENAIS | {"context_management", "inference_geo"}
# What most hosted models have no field for.
UNKNOWN = (
    "logit_bias", "logprobs", "prompt_logprobs", "repetition_penalty", "min_p", "min_tokens",
    "ignore_eos", "stop_token_ids", "echo", "prompt",
)  # fmt: skip

Thing = TypeVar("Thing", Text, Image, Document, Audio, Thinking, Tool, ToolCall)


def native(request: GenerationRequest, dialect: Dialect | None) -> GenerationRequest:
    """`request` with nothing in its conversation and tools that `dialect` does not know.

    Raises InvalidField. A request that came by `dialect` is given back as it is.
    """
    if request.dialect == dialect:
        return request
    choice, form = request.tool_choice, request.response_format
    if isinstance(choice, Opaque):
        raise not_there(f"tool_choice.{choice.kind}")
    if isinstance(form, Opaque):
        raise not_there(f"response_format.{form.kind}")
    messages = request.messages
    if messages is not None:
        messages = tuple(_message(f"messages[{i}]", one) for i, one in enumerate(messages))
    return structs.replace(request, messages=messages, tools=tuple(_plain("tools", request.tools)))


def _message(path: str, message: Message) -> Message:
    content = message.content
    if isinstance(content, str) and not message.tool_calls and not message.extra:
        return message
    return structs.replace(
        message,
        content=tuple(_plain(f"{path}.content", content))
        if isinstance(content, tuple)
        else content,
        tool_calls=tuple(_plain(f"{path}.tool_calls", message.tool_calls)),
        extra={},
    )


def _plain(path: str, things: Iterable[Thing | Opaque]) -> Iterable[Thing]:
    for place, thing in enumerate(things):
        if isinstance(thing, Opaque):
            raise not_there(f"{path}[{place}].{thing.kind}")
        if isinstance(thing, Thinking) or not thing.extra:
            yield thing
        else:
            yield structs.replace(thing, extra={})


def native_extra(
    request: GenerationRequest, dialect: Dialect | None, harmless: frozenset[str]
) -> dict[str, Any]:
    """The request's further fields, where it came by the upstream's own `dialect`.

    Of another dialect's those in `harmless`, which change nothing about the answer, are left out.
    Raises InvalidField on any other.
    """
    if request.dialect == dialect:
        return request.extra
    # OpenAI's two formats have some fields in common.
    shared = SHARED if (request.dialect, dialect) == ("responses", "openai") else frozenset()
    for name in request.extra:
        if name not in harmless | shared | SERVERS:
            raise not_there(name)
    return {name: value for name, value in request.extra.items() if name in shared}


def texts_and_images(
    path: str, content: tuple[Part, ...], image: Callable[[str], Any]
) -> list[dict[str, Any]]:
    """Content in the form that OpenAI gave it, for who takes nothing but text and images: `image`
    makes an `image_url` of an address. Raises InvalidField on anything else at `path`."""
    parts: list[dict[str, Any]] = []
    for place, part in enumerate(content):
        match part:
            case Text(text):
                parts.append({"type": "text", "text": text})
            case Image(url):
                parts.append({"type": "image_url", "image_url": image(url)})
            case Thinking():
                continue  # another model's
            case _:
                raise not_there(f"{path}[{place}]")
    return parts


def not_there(field: str) -> InvalidField:
    """What is said of a field that the upstream's dialect cannot express."""
    return InvalidField(field, "the provider of this model has nothing like it.")


def refuse_given(request: GenerationRequest, *names: str) -> None:
    """Raise InvalidField where one of these fields asks for something."""
    for name in names:
        value = getattr(request, name)
        counted = name in ("logprobs", "prompt_logprobs") and value is not None  # 0 asks too
        if counted or value not in (None, False, (), {}):
            raise not_there(name)
