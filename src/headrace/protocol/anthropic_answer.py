"""Anthropic's wire format, outwards: whole messages, the events of a stream, errors.

Source: the Anthropic API reference (messages, streaming messages, errors). A stream's usage is
known at its end: `message_start` says zero and `message_delta` all counts, which its clients add
to the message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.protocol.answer import Answer, Choice
from headrace.protocol.blocks import Block, Blocks, Closed, Opened, Step
from headrace.protocol.errors import BudgetSpent, HeadraceError
from headrace.protocol.generation import Event, Finished, FinishReason, Usage
from headrace.protocol.openai_answer import Identity

OVERLOADED = 529  # Anthropic's status for it
UNPAID = 402

_encode = msgspec.json.Encoder().encode
_STOPS: Mapping[FinishReason, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
    "refusal": "refusal",
    "pause": "pause_turn",
}
_ERRORS: Mapping[int, str] = {
    401: "authentication_error",
    UNPAID: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def error_status(error: HeadraceError) -> int:
    """The HTTP status of `error`: an overload and a spent budget have their own."""
    if isinstance(error, BudgetSpent):
        return UNPAID
    return OVERLOADED if error.status == 503 else error.status


def error_body(error: HeadraceError, request_id: str) -> bytes:
    """The body that tells a caller of `error`; also the data of an in-band error event."""
    status = error_status(error)
    kind = _ERRORS.get(status, "invalid_request_error" if status < 500 else "api_error")
    told = {"type": kind, "message": error.message}
    return _encode({"type": "error", "error": told, "request_id": request_id})


def count_body(tokens: int) -> bytes:
    """The answer of count_tokens."""
    return _encode({"input_tokens": tokens})


def whole_body(identity: Identity, answer: Answer) -> bytes:
    """A finished answer as one message. Raises ValueError where it has not finished."""
    finished = answer.finished
    if finished is None:
        raise ValueError("an answer that has not finished has no body")
    body = _message(identity, _content(answer.choices[0]), _usage(finished.usage))
    return _encode(body | _stop(finished))


def _content(choice: Choice) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    for thought in choice.thoughts:
        if thought.redacted is not None:
            blocks.append({"type": "redacted_thinking", "data": thought.redacted})
        else:
            signature = thought.signature or ""
            blocks.append({"type": "thinking", "thinking": thought.text, "signature": signature})
    if choice.text:
        blocks.append({"type": "text", "text": choice.text})
    for call in choice.tool_calls.values():
        arguments = arguments_object(call.arguments)
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": arguments})
    return blocks


def arguments_object(arguments: str) -> dict[str, Any]:
    """A call's arguments as an object; what is none stands under one name in it."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        value = arguments
    return value if isinstance(value, dict) else {"arguments": value}


class MessageStream:
    """Encodes the events of one streamed message, framed."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._blocks = Blocks()

    def opening(self) -> bytes:
        """The event that begins the message."""
        message = _message(self._identity, [], _usage(Usage(0, 0)))
        message |= {"stop_reason": None, "stop_sequence": None}
        return _frame("message_start", {"message": message})

    def event(self, event: Event) -> bytes:
        """One event before the last."""
        return b"".join(map(_step, self._blocks.feed(event)))

    def closing(self, finished: Finished) -> bytes:
        """Everything that ends the message."""
        ends = b"".join(map(_step, self._blocks.finish()))
        delta = {"delta": _stop(finished), "usage": _usage(finished.usage)}
        return ends + _frame("message_delta", delta) + _frame("message_stop", {})

    def failure(self, error: HeadraceError, request_id: str) -> bytes:
        """The event that says that the message broke."""
        return b"event: error\ndata: " + error_body(error, request_id) + b"\n\n"


def _frame(kind: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **fields}))


def _step(step: Step) -> bytes:
    block = step.block
    index = {"index": block.index}
    if isinstance(step, Opened):
        return _frame("content_block_start", {**index, "content_block": _opened(block)})
    if isinstance(step, Closed):
        signed = b""
        if block.signature is not None:
            delta = {"type": "signature_delta", "signature": block.signature}
            signed = _frame("content_block_delta", {**index, "delta": delta})
        return signed + _frame("content_block_stop", index)
    match block.kind:
        case "text":
            delta = {"type": "text_delta", "text": step.text}
        case "thinking":
            delta = {"type": "thinking_delta", "thinking": step.text}
        case _:
            delta = {"type": "input_json_delta", "partial_json": step.text}
    return _frame("content_block_delta", {**index, "delta": delta})


def _opened(block: Block) -> dict[str, Any]:
    match block.kind:
        case "text":
            return {"type": "text", "text": ""}
        case "thinking":
            return {"type": "thinking", "thinking": "", "signature": ""}
        case "redacted":
            return {"type": "redacted_thinking", "data": block.text}
        case "tool_call":
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": {}}


def _message(
    identity: Identity, content: list[dict[str, Any]], usage: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": identity.id,
        "type": "message",
        "role": "assistant",
        "model": identity.model,
        "content": content,
        "usage": usage,
    }


def _stop(finished: Finished) -> dict[str, Any]:
    reason, sequence = _STOPS[finished.reason], finished.stop_sequence
    if finished.reason == "stop" and sequence is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence}
    return {"stop_reason": reason, "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, Any]:
    """Anthropic's input tokens are those that no cache had a part in."""
    cached, written = usage.cached_tokens, usage.cache_write_tokens
    hour = usage.cache_write_1h_tokens
    return {
        "input_tokens": max(usage.prompt_tokens - cached - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": written - hour,
            "ephemeral_1h_input_tokens": hour,
        },
        "output_tokens": usage.completion_tokens,
    }
