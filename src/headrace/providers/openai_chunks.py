"""OpenAI's stream, from the caller's side: chunks in, events out.

Source: the OpenAI API reference (chat completion chunks, completions), and what compatible
servers do in its name. Fields that are not used are not looked at, so an upstream may add its
own; a used field of a wrong type is a malformed answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from headrace.protocol.errors import UpstreamError
from headrace.protocol.generation import (
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from headrace.providers.refusals import error_for, refusal_of

MAX_TOOL_CALLS = 128
_CHARACTERS_PER_TOKEN = 4  # for an estimate, where the upstream does not say

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "tool_use": "tool_calls",
    "content_filter": "content_filter",
}


class _Function(Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct):
    """Of a chunk (`delta`) or of a whole answer (`message`)."""

    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    reasoning: Any = None
    reasoning_content: Any = None


class _Choice(Struct):
    index: int | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(Struct):
    cached_tokens: int | None = None


class _Usage(Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: str | None = None


_decoder = msgspec.json.Decoder(_Chunk)


@dataclass(slots=True)
class _OpenCall:
    """A tool call as far as it has come."""

    index: int  # ours: 0, 1, 2 ... in order of appearance
    id: str | None = None
    name: str | None = None
    announced: bool = False
    held: str = ""  # arguments not passed on yet
    passed: bool = False  # whether any were


class Translator:
    """The state of one answer. `new_id` names a tool call where the upstream does not."""

    def __init__(self, provider: str, new_id: Callable[[], str]) -> None:
        self.thinking = False  # the last chunk held reasoning, which no event carries
        self.finish_reason: FinishReason | None = None
        self._provider = provider
        self._new_id = new_id
        self._usage: _Usage | None = None
        self._characters = 0
        self._calls: list[_OpenCall] = []
        self._by_index: dict[int, _OpenCall] = {}

    def feed(self, data: str | bytes) -> Iterator[Event]:
        """The events of one chunk, or of one whole answer.

        Raises UpstreamError on a malformed one, and what `error_for` makes of an error in it.
        """
        try:
            chunk = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamError(f"Provider '{self._provider}' sent malformed JSON.") from None
        self._check_error(chunk, data)
        self.thinking = False
        if chunk.usage is not None:
            self._usage = chunk.usage
        for choice in chunk.choices or ():
            if not choice.index:  # one answer was asked for
                yield from self._choice(choice)

    def end(self, request: GenerationRequest) -> Iterator[Event]:
        """What closes the answer, last `Finished`. Raises UpstreamError if it was cut."""
        if self.finish_reason is None:
            raise UpstreamError(
                f"The answer of provider '{self._provider}' was cut off before its end."
            )
        for call in self._calls:
            if not call.announced:
                raise UpstreamError(f"Provider '{self._provider}' sent a tool call with no name.")
            if call.held:
                yield ToolCallDelta(index=call.index, arguments=call.held)
        reason = self.finish_reason
        if self._calls and reason == "stop":
            reason = "tool_calls"  # some upstreams say stop after a call
        yield Finished(reason=reason, usage=self._final_usage(request))

    def _check_error(self, chunk: _Chunk, data: str | bytes) -> None:
        if chunk.error is None and chunk.object != "error":
            return
        refusal = refusal_of(chunk.error if chunk.error is not None else msgspec.json.decode(data))
        raise error_for(self._provider, refusal.status, refusal)

    def _choice(self, choice: _Choice) -> Iterator[Event]:
        delta = choice.delta or choice.message
        if choice.text:
            yield self._text(choice.text)
        if delta is not None:
            self.thinking = bool(delta.reasoning or delta.reasoning_content)
            for text in (_plain(delta.content), delta.refusal):
                if text:
                    yield self._text(text)
            for place, call in enumerate(delta.tool_calls or ()):
                if choice.message is not None:
                    call.index = place  # a whole answer lists its calls without one
                yield from self._tool_call(call)
        if choice.finish_reason:
            reason = _REASONS.get(choice.finish_reason.lower())
            if reason is None:
                raise UpstreamError(
                    f"Provider '{self._provider}' ended its answer with the unknown reason "
                    f"'{choice.finish_reason[:40]}'."
                )
            self.finish_reason = reason

    def _text(self, text: str) -> TextDelta:
        self._characters += len(text)
        return TextDelta(text)

    def _tool_call(self, delta: _Call) -> Iterator[Event]:
        call = self._open_call(delta)
        call.id = call.id or delta.id or None
        function = delta.function or _Function()
        call.name = call.name or function.name or None
        arguments = function.arguments or ""
        if isinstance(arguments, dict):  # an object where its JSON text belongs
            arguments = msgspec.json.encode(arguments).decode()
        self._characters += len(arguments)
        if call.held == "{}" and arguments and not call.passed:
            call.held = ""  # the placeholder some send before the real arguments
        call.held += arguments
        if not call.announced:
            if call.name is None:
                return
            call.announced = True
            call.id = call.id or self._new_id()
            if call.held in ("", "{}"):
                yield ToolCallDelta(index=call.index, id=call.id, name=call.name)
            else:
                yield ToolCallDelta(
                    index=call.index, arguments=call.held, id=call.id, name=call.name
                )
                call.held, call.passed = "", True
        elif call.held and (call.passed or call.held != "{}"):
            yield ToolCallDelta(index=call.index, arguments=call.held)
            call.held, call.passed = "", True

    def _open_call(self, delta: _Call) -> _OpenCall:
        """The call that `delta` continues, or a new one.

        The index says which; a new id at a used index begins a new call (some upstreams give
        every call the index 0); without an index the id says it; without both it is the last.
        """
        if delta.index is not None:
            call = self._by_index.get(delta.index)
            if call is None or (delta.id and call.id is not None and call.id != delta.id):
                call = self._by_index[delta.index] = self._new_call()
            return call
        if delta.id:
            known = [call for call in self._calls if call.id == delta.id]
            return known[-1] if known else self._new_call()
        return self._calls[-1] if self._calls else self._new_call()

    def _new_call(self) -> _OpenCall:
        if len(self._calls) == MAX_TOOL_CALLS:
            raise UpstreamError(
                f"Provider '{self._provider}' sent over {MAX_TOOL_CALLS} tool calls."
            )
        call = _OpenCall(index=len(self._calls))
        self._calls.append(call)
        return call

    def _final_usage(self, request: GenerationRequest) -> Usage:
        usage = self._usage
        if usage is None or (usage.prompt_tokens is None and usage.completion_tokens is None):
            return Usage(
                prompt_tokens=_estimated_prompt(request),
                completion_tokens=_tokens(self._characters),
                provenance="estimated",
            )
        details = usage.prompt_tokens_details
        prompt = max(usage.prompt_tokens or 0, 0)
        cached = (details.cached_tokens or 0) if details is not None else 0
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=max(usage.completion_tokens or 0, 0),
            cached_tokens=min(max(cached, 0), prompt),
        )


def _plain(content: str | list[dict[str, Any]] | None) -> str | None:
    """The text of a content: itself, or that of its text parts."""
    if not isinstance(content, list):
        return content
    texts = (part.get("text") for part in content if part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def _estimated_prompt(request: GenerationRequest) -> int:
    if isinstance(request.prompt, tuple):
        return len(request.prompt)
    texts = [_plain(message.content) or "" for message in request.messages or ()]
    return _tokens(len(request.prompt or "") + sum(map(len, texts)))


def _tokens(characters: int) -> int:
    return -(-characters // _CHARACTERS_PER_TOKEN)
