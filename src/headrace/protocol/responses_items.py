"""The items that a stored response was made from, as OpenAI's Responses list them.

Source: the OpenAI API reference (responses, input items).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from headrace.protocol.content import Document, Image, Opaque, Part, Text, Thinking
from headrace.protocol.generation import Message

DONE = {"status": "completed"}


class ItemsPage(Struct, frozen=True):
    """Which items to list."""

    limit: Annotated[int, Meta(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None


def items_body(response_id: str, messages: Sequence[Message], page: ItemsPage) -> bytes:
    """A page of the items of `messages`, the input of a response."""
    stem = response_id.removeprefix("resp_")
    items = [
        {"id": f"item_{stem}_{place}", **item} for place, item in enumerate(items_of(messages))
    ]
    if page.order == "desc":
        items.reverse()
    begin = next((i + 1 for i, item in enumerate(items) if item["id"] == page.after), 0)
    shown = items[begin : begin + page.limit]
    return msgspec.json.encode(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": begin + page.limit < len(items),
        }
    )


def items_of(messages: Iterable[Message]) -> Iterator[dict[str, Any]]:
    """The items that turns were read from."""
    for message in messages:
        content = message.content
        parts: Sequence[Part] = (Text(content),) if isinstance(content, str) else content or ()
        if message.role == "tool":
            output = content if isinstance(content, str) else list(_said(parts, "input_text"))
            about = {"call_id": message.tool_call_id, "output": output}
            yield {"type": "function_call_output", **DONE, **about}
            continue
        for part in parts:
            if isinstance(part, Thinking):
                summary = [{"type": "summary_text", "text": part.text}] if part.text else []
                signed = {"summary": summary, "encrypted_content": part.signature}
                yield {"type": "reasoning", **DONE, **signed}
        kind = "output_text" if message.role == "assistant" else "input_text"
        if said := list(_said(parts, kind)):
            yield {"type": "message", "role": message.role, **DONE, "content": said}
        for call in message.tool_calls:
            if not isinstance(call, Opaque):
                called = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
                yield {"type": "function_call", **DONE, **called}


def _said(parts: Iterable[Part], kind: str) -> Iterator[dict[str, Any]]:
    for part in parts:
        match part:
            case Text(text):
                annotated: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
                yield {"type": kind, "text": text, **annotated}
            case Image(url, detail):
                yield {"type": "input_image", "image_url": url, "detail": detail or "auto"}
            case Document(url, name):
                field = "file_data" if url.startswith("data:") else "file_url"
                yield {"type": "input_file", field: url} | (
                    {} if name is None else {"filename": name}
                )
