"""OpenAI's wire format, outwards: whole answers, chunks, errors and the model list.

A chunk is encoded once per token, so its parts that stay the same are encoded once per answer
(`ChunkEncoder`) and only the text is encoded anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from headrace.protocol.answer import Answer, Choice
from headrace.protocol.content import Thinking, ToolCall
from headrace.protocol.errors import HeadraceError
from headrace.protocol.generation import (
    Delta,
    Endpoint,
    Finished,
    FinishReason,
    PromptScored,
    ReasoningDelta,
    TextDelta,
    Usage,
)
from headrace.protocol.openai_content import thought_signature, write_thinking, write_tool_call
from headrace.protocol.openai_logprobs import (
    characters,
    chat_logprobs,
    completion_logprobs,
    prompt_logprobs,
)

_encode = msgspec.json.Encoder().encode
# What OpenAI has no word for: a paused answer is one that is not whole.
_REASONS: Mapping[FinishReason, FinishReason] = {"refusal": "content_filter", "pause": "length"}
_PREFIXES: Mapping[Endpoint, str] = {
    "chat": "chatcmpl",
    "completions": "cmpl",
    "messages": "msg",
    "responses": "resp",
    "embeddings": "embd",
    "rerank": "rank",
    "classify": "classify",
    "images": "img",
    "image_edits": "img",
    "speech": "audio",
    "transcriptions": "audio",
    "translations": "audio",
    "moderations": "modr",
}


class Identity(Struct, frozen=True):
    """What names an answer on the wire. `created` is Unix time in whole seconds."""

    id: str
    created: int
    model: str
    endpoint: Endpoint


def answer_id(endpoint: Endpoint, unique: str) -> str:
    """An id in the form that the endpoint's clients know."""
    mark = "_" if endpoint in ("messages", "responses") else "-"
    return f"{_PREFIXES[endpoint]}{mark}{unique}"


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


def model_body(name: str, created: int, owned_by: str, about: Mapping[str, Any]) -> bytes:
    """One model, with what is known `about` it."""
    return _encode(_model(name, created, owned_by, about))


def model_list_body(models: Iterable[tuple[str, str, Mapping[str, Any]]], created: int) -> bytes:
    """All models, as (name, owner, what is known about it)."""
    data = [_model(name, created, owner, about) for name, owner, about in models]
    return _encode({"object": "list", "data": data})


def whole_body(identity: Identity, answer: Answer) -> bytes:
    """A finished answer as one body. Raises ValueError where it has not finished."""
    finished = answer.finished
    if finished is None:
        raise ValueError("an answer that has not finished has no body")
    chat = identity.endpoint == "chat"
    choices = [
        {
            "index": index,
            **(_chat_choice(choice) if chat else _completion_choice(choice)),
            "finish_reason": _REASONS.get(choice.reason or "stop", choice.reason),
        }
        for index, choice in sorted(answer.choices.items())
    ]
    body: dict[str, Any] = {
        "id": identity.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": identity.created,
        "model": identity.model,
        "choices": choices,
        "usage": _usage(finished.usage),
    }
    if answer.prompt:
        # vLLM's place of it: in the body of a chat, in each choice of a completion
        for holder in [body] if chat else choices:
            holder["prompt_logprobs"] = prompt_logprobs(answer.prompt)
    return _encode(body)


def _chat_choice(choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if any(thought.signature or thought.redacted for thought in choice.thoughts):
        message["thinking_blocks"] = [
            write_thinking(Thinking(thought.text, thought.signature, thought.redacted))
            for thought in choice.thoughts
        ]
    if choice.tool_calls:
        message["content"] = choice.text or None
        message["tool_calls"] = [
            write_tool_call(ToolCall(call.id, call.name, call.arguments, call.signature))
            for call in choice.tool_calls.values()
        ]
    return {
        "message": message,
        "logprobs": chat_logprobs(choice.logprobs) if choice.logprobs else None,
    }


def _completion_choice(choice: Choice) -> dict[str, Any]:
    return {
        "text": choice.text,
        "logprobs": completion_logprobs(choice.logprobs) if choice.logprobs else None,
    }


class ChunkEncoder:
    """Encodes the chunks of one streamed answer, as JSON without framing."""

    __slots__ = ("_after_text", "_before_choices", "_before_text", "_chat", "_offsets", "_tail")

    def __init__(self, identity: Identity, *, include_usage: bool) -> None:
        self._chat = identity.endpoint == "chat"
        self._offsets: dict[int, int] = {}  # characters of each choice whose tokens are told
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

    def opening(self, choice: int = 0) -> bytes | None:
        """The chunk that says who speaks in a choice; completions have none."""
        if not self._chat:
            return None
        return self._chunk(choice, {"delta": {"role": "assistant", "content": ""}})

    def delta(self, event: Delta) -> bytes:
        """One chunk of text, of reasoning, of a tool call, or of the prompt's log-probabilities."""
        if isinstance(event, TextDelta):
            if event.choice or event.logprobs:
                return self._text(event)
            return self._before_text + _encode(event.text) + self._after_text
        if isinstance(event, PromptScored):
            said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
            return self._chunk(0, said, prompt_logprobs=prompt_logprobs(event.logprobs))
        if isinstance(event, ReasoningDelta):
            return self._chunk(event.choice, {"delta": _thought(event)})
        function: dict[str, str] = {"arguments": event.arguments}
        call: dict[str, Any] = {"index": event.index, "function": function}
        if event.name is not None:
            function["name"] = event.name
        if event.id is not None:
            call |= {"id": event.id, "type": "function"}
        if event.signature is not None:
            call["extra_content"] = thought_signature(event.signature)
        return self._chunk(event.choice, {"delta": {"tool_calls": [call]}})

    def closing(self, reason: FinishReason, choice: int = 0) -> bytes:
        """The chunk that says why a choice ended."""
        said: dict[str, Any] = {"delta": {}} if self._chat else {"text": ""}
        return self._chunk(choice, said, finish_reason=_REASONS.get(reason, reason))

    def usage(self, finished: Finished) -> bytes:
        """The last chunk of a caller who asked for usage: no choice, only the counts."""
        return self._before_choices + b'],"usage":' + _encode(_usage(finished.usage)) + b"}"

    def _text(self, event: TextDelta) -> bytes:
        said: dict[str, Any]
        logprobs: dict[str, Any] | None = None
        if self._chat:
            said = {"delta": {"content": event.text}}
            if event.logprobs:
                logprobs = chat_logprobs(event.logprobs)
        else:
            said = {"text": event.text}
            if event.logprobs:
                offset = self._offsets.get(event.choice, 0)
                self._offsets[event.choice] = offset + sum(map(characters, event.logprobs))
                logprobs = completion_logprobs(event.logprobs, offset)
        return self._chunk(event.choice, said, logprobs=logprobs)

    def _chunk(self, index: int, said: dict[str, Any], **more: Any) -> bytes:
        choice = {"index": index, **said, "logprobs": None, "finish_reason": None, **more}
        return self._before_choices + _encode(choice) + b"]" + self._tail


def _thought(event: ReasoningDelta) -> dict[str, Any]:
    """A thought's piece; one that is signed says so at its end."""
    delta: dict[str, Any] = {"reasoning_content": event.text}
    if event.signature is not None or event.redacted is not None:
        block = Thinking("", event.signature, event.redacted)
        delta["thinking_blocks"] = [write_thinking(block)]
    return delta


def _usage(usage: Usage) -> dict[str, Any]:
    details: dict[str, int] = {"cached_tokens": usage.cached_tokens}
    if usage.cache_write_tokens:
        details["cache_write_tokens"] = usage.cache_write_tokens
    body: dict[str, Any] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": details,
    }
    if usage.reasoning_tokens:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


def _model(name: str, created: int, owned_by: str, about: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": owned_by, **about}
