"""One answer in every dialect that a provider speaks, byte for byte, for `FakeUpstream`.

The answer: the text "Let me see.", two parallel calls of `weather` (Ulm, Bonn), usage 7 in, 5 out.
"""

from __future__ import annotations

import json
import struct
from binascii import crc32
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fakes import anthropic
from tests.fakes.upstream import DONE, SSE, Script, chunk, sse, usage_chunk

AMAZON = {"content-type": "application/vnd.amazon.eventstream"}
ULM, BONN = '{"city":"Ulm"}', '{"city":"Bonn"}'


def amazon(kind: str, payload: Mapping[str, Any], message_type: str = "event") -> bytes:
    """One message of Amazon's event stream."""
    headers = {":message-type": message_type, ":content-type": "application/json"}
    headers[":exception-type" if message_type == "exception" else ":event-type"] = kind
    packed = b""
    for name, value in headers.items():
        packed += bytes([len(name)]) + name.encode() + b"\7"
        packed += struct.pack(">H", len(value)) + value.encode()
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(packed) + len(body), len(packed))
    message = prelude + struct.pack(">I", crc32(prelude)) + packed + body
    return message + struct.pack(">I", crc32(message))


def openai_parts() -> list[bytes]:
    def call(index: int, id: str, arguments: str) -> dict[str, Any]:
        function = {"name": "weather", "arguments": arguments}
        return {"index": index, "id": id, "type": "function", "function": function}

    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    return [
        chunk({"role": "assistant", "content": "Let me see."}),
        chunk({"tool_calls": [call(0, "call_1", ULM)]}),
        chunk({"tool_calls": [call(1, "call_2", BONN)]}),
        chunk({}, "tool_calls"),
        usage_chunk(usage),
        DONE,
    ]


def anthropic_parts() -> list[bytes]:
    return [
        anthropic.start(),
        *anthropic.text_block(0, "Let me see."),
        *anthropic.tool_block(1, "call_1", "weather", ULM[:5], ULM[5:]),
        *anthropic.tool_block(2, "call_2", "weather", BONN),
        *anthropic.end("tool_use", output_tokens=5),
    ]


def gemini_parts() -> list[bytes]:
    def said(*parts: Mapping[str, Any], **fields: Any) -> bytes:
        content = {"role": "model", "parts": list(parts)}
        return sse({"candidates": [{"content": content, "index": 0, **fields}]})

    def call(id: str, city: str) -> dict[str, Any]:
        return {"functionCall": {"id": id, "name": "weather", "args": {"city": city}}}

    last = {
        "candidates": [{"content": {"parts": []}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 5, "totalTokenCount": 12},
    }
    return [
        said({"text": "Let me see."}),
        said(call("call_1", "Ulm"), call("call_2", "Bonn")),
        sse(last),
    ]


def bedrock_parts() -> list[bytes]:
    def call(index: int, id: str, arguments: str) -> list[bytes]:
        place = {"contentBlockIndex": index}
        start = {"toolUse": {"toolUseId": id, "name": "weather"}}
        return [
            amazon("contentBlockStart", {**place, "start": start}),
            amazon("contentBlockDelta", {**place, "delta": {"toolUse": {"input": arguments}}}),
            amazon("contentBlockStop", place),
        ]

    return [
        amazon("messageStart", {"role": "assistant"}),
        amazon("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Let me see."}}),
        amazon("contentBlockStop", {"contentBlockIndex": 0}),
        *call(1, "call_1", ULM),
        *call(2, "call_2", BONN),
        amazon("messageStop", {"stopReason": "tool_use"}),
        amazon("metadata", {"usage": {"inputTokens": 7, "outputTokens": 5, "totalTokens": 12}}),
    ]


def cohere_parts() -> list[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return b"event: " + kind.encode() + b"\n" + sse({"type": kind, **fields})

    def call(index: int, id: str, arguments: str) -> list[bytes]:
        begun = {"id": id, "type": "function", "function": {"name": "weather", "arguments": ""}}
        more = {"function": {"arguments": arguments}}
        return [
            event("tool-call-start", index=index, delta={"message": {"tool_calls": begun}}),
            event("tool-call-delta", index=index, delta={"message": {"tool_calls": more}}),
            event("tool-call-end", index=index),
        ]

    text = {"message": {"content": {"text": "Let me see."}}}
    usage = {"tokens": {"input_tokens": 7, "output_tokens": 5}}
    return [
        event("message-start", id="1", delta={"message": {"role": "assistant"}}),
        event("content-delta", index=0, delta=text),
        *call(0, "call_1", ULM),
        *call(1, "call_2", BONN),
        event("message-end", delta={"finish_reason": "TOOL_CALL", "usage": usage}),
    ]


PARTS: Mapping[str, Sequence[bytes]] = {
    "openai": openai_parts(),
    "azure": openai_parts(),
    "anthropic": anthropic_parts(),
    "gemini": gemini_parts(),
    "bedrock": bedrock_parts(),
    "mistral": openai_parts(),
    "cohere": cohere_parts(),
}
# How many of the first parts say something, and nothing of the end.
BEGUN = {"bedrock": 2, "anthropic": 3, "cohere": 2}


def headers(dialect: str) -> Mapping[str, str]:
    return AMAZON if dialect == "bedrock" else SSE


def answer(dialect: str) -> Script:
    """The whole answer."""
    return Script(PARTS[dialect], headers=headers(dialect))


def refusal(dialect: str, message: str) -> bytes:
    """An error's body."""
    match dialect:
        case "anthropic":
            told: dict[str, Any] = {"type": "error", "error": {"type": "x", "message": message}}
        case "gemini":
            told = {"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}
        case "bedrock" | "cohere" | "mistral":
            told = {"message": message}
        case _:
            told = {"error": {"message": message, "type": "x", "param": None, "code": None}}
    return json.dumps(told).encode()


ENDS: Mapping[str, tuple[str, str, str]] = {  # stop, length, content filter
    "anthropic": ("end_turn", "max_tokens", "refusal"),
    "gemini": ("STOP", "MAX_TOKENS", "SAFETY"),
    "bedrock": ("end_turn", "max_tokens", "guardrail_intervened"),
    "cohere": ("COMPLETE", "MAX_TOKENS", "ERROR_TOXIC"),
}


def ended(dialect: str, reason: str) -> Script:
    """The text "Hi.", ended by `reason` (stop, length or content_filter); usage 7 in, of which 3
    were read from a cache, and 5 out."""
    reasons = ("stop", "length", "content_filter")
    word = ENDS.get(dialect, reasons)[reasons.index(reason)]
    match dialect:
        case "anthropic":
            usage = {"input_tokens": 4, "cache_read_input_tokens": 3, "output_tokens": 1}
            end = anthropic.end(word, output_tokens=5)
            parts = [anthropic.start(usage), *anthropic.text_block(0, "Hi."), *end]
        case "gemini":
            content = {"role": "model", "parts": [{"text": "Hi."}]}
            counts = {"promptTokenCount": 7, "candidatesTokenCount": 5}
            counts |= {"cachedContentTokenCount": 3, "totalTokenCount": 12}
            candidate = {"content": content, "finishReason": word, "index": 0}
            parts = [sse({"candidates": [candidate], "usageMetadata": counts})]
        case "bedrock":
            told = {"inputTokens": 4, "outputTokens": 5, "cacheReadInputTokens": 3}
            delta = {"contentBlockIndex": 0, "delta": {"text": "Hi."}}
            parts = [
                amazon("messageStart", {"role": "assistant"}),
                amazon("contentBlockDelta", delta),
                amazon("contentBlockStop", {"contentBlockIndex": 0}),
                amazon("messageStop", {"stopReason": word}),
                amazon("metadata", {"usage": {**told, "totalTokens": 12}}),
            ]
        case "cohere":
            text = {"message": {"content": {"text": "Hi."}}}
            counted = {"tokens": {"input_tokens": 7, "output_tokens": 5}, "cached_tokens": 3}
            end_ = {"finish_reason": word, "usage": counted}
            parts = [
                sse({"type": "message-start", "id": "1", "delta": {}}),
                sse({"type": "content-delta", "index": 0, "delta": text}),
                sse({"type": "message-end", "delta": end_}),
            ]
        case _:
            usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
            cached = {"prompt_tokens_details": {"cached_tokens": 3}}
            parts = [
                chunk({"content": "Hi."}),
                chunk({}, word),
                usage_chunk({**usage, **cached}),
                DONE,
            ]
    return Script(parts, headers=headers(dialect))
