"""OpenAI's wire format, outwards: whole answers, chunks, errors and the model list.

A chunk is encoded once per token, so its parts that stay the same are encoded once per answer
(`ChunkEncoder`) and only the text is encoded anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from headrace.protocol.answer import Answer
from headrace.protocol.errors import HeadraceError
from headrace.protocol.generation import (
    Delta,
    Endpoint,
    Finished,
    FinishReason,
    TextDelta,
    Usage,
)

_encode = msgspec.json.Encoder().encode


class Identity(Struct, frozen=True):
    """What names an answer on the wire. `created` is Unix time in whole seconds."""

    id: str
    created: int
    model: str
    endpoint: Endpoint


def answer_id(endpoint: Endpoint, unique: str) -> str:
    """An id in the form that the endpoint's clients know."""
    return f"chatcmpl-{unique}" if endpoint == "chat" else f"cmpl-{unique}"


def error_body(error: HeadraceError) -> bytes:
    """The body that tells a caller of `error`; also the data of an in-band error event."""
    return _encode(
        {
            "error": {
                "message": error.message,
                "type": error.kind,
                "param": error.param,
                "code": error.code,
            }
        }
    )


def model_body(name: str, created: int, owned_by: str) -> bytes:
    """One model."""
    return _encode(_model(name, created, owned_by))


def model_list_body(models: Iterable[tuple[str, str]], created: int) -> bytes:
    """All models, as (name, owner) pairs."""
    data = [_model(name, created, owner) for name, owner in models]
    return _encode({"object": "list", "data": data})


def whole_body(identity: Identity, answer: Answer) -> bytes:
    """A finished answer as one body. Raises ValueError where it has not finished."""
    finished = answer.finished
    if finished is None:
        raise ValueError("an answer that has not finished has no body")
    chat = identity.endpoint == "chat"
    if chat:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.tool_calls:
            message["content"] = answer.text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.tool_calls.values()
            ]
        said: dict[str, Any] = {"message": message}
    else:
        said = {"text": answer.text}
    return _encode(
        {
            "id": identity.id,
            "object": "chat.completion" if chat else "text_completion",
            "created": identity.created,
            "model": identity.model,
            "choices": [
                {"index": 0, **said, "logprobs": None, "finish_reason": finished.reason},
            ],
            "usage": _usage(finished.usage),
        }
    )


class ChunkEncoder:
    """Encodes the chunks of one streamed answer, as JSON without framing."""

    __slots__ = ("_after_text", "_before_choices", "_before_text", "_chat", "_tail")

    def __init__(self, identity: Identity, *, include_usage: bool) -> None:
        self._chat = identity.endpoint == "chat"
        head = _encode(
            {
                "id": identity.id,
                "object": "chat.completion.chunk" if self._chat else "text_completion",
                "created": identity.created,
                "model": identity.model,
            }
        )
        # With include_usage every chunk but the last says `"usage": null`.
        self._tail = b',"usage":null}' if include_usage else b"}"
        self._before_choices = head[:-1] + b',"choices":['
        if self._chat:
            self._before_text = self._before_choices + b'{"index":0,"delta":{"content":'
            self._after_text = b'},"logprobs":null,"finish_reason":null}]' + self._tail
        else:
            self._before_text = self._before_choices + b'{"index":0,"text":'
            self._after_text = b',"logprobs":null,"finish_reason":null}]' + self._tail

    def opening(self) -> bytes | None:
        """The chunk that says who speaks; completions have none."""
        if not self._chat:
            return None
        return self._chat_chunk({"role": "assistant", "content": ""})

    def delta(self, event: Delta) -> bytes:
        """One chunk of text or of a tool call."""
        if isinstance(event, TextDelta):
            return self._before_text + _encode(event.text) + self._after_text
        function: dict[str, str] = {"arguments": event.arguments}
        call: dict[str, Any] = {"index": event.index, "function": function}
        if event.name is not None:
            function["name"] = event.name
        if event.id is not None:
            call |= {"id": event.id, "type": "function"}
        return self._chat_chunk({"tool_calls": [call]})

    def closing(self, reason: FinishReason) -> bytes:
        """The chunk that says why the answer ended."""
        if self._chat:
            return self._chat_chunk({}, reason)
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": reason}
        return self._before_choices + _encode(choice) + b"]" + self._tail

    def usage(self, finished: Finished) -> bytes:
        """The last chunk of a caller who asked for usage: no choice, only the counts."""
        return self._before_choices + b'],"usage":' + _encode(_usage(finished.usage)) + b"}"

    def _chat_chunk(self, delta: dict[str, Any], reason: FinishReason | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._before_choices + _encode(choice) + b"]" + self._tail


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _model(name: str, created: int, owned_by: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owned_by}
