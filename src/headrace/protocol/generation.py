"""The dialect-neutral form of a generation: what came in, and the events that go out.

Every dialect (OpenAI, Anthropic ...) is parsed into a `GenerationRequest`; every provider yields
`Event`s; so a request can come in by one format and go out by another.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

Endpoint = Literal["chat", "completions"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Provenance = Literal["provider", "counted", "estimated"]


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation.

    `content` is a string, a list of content parts as the caller sent them, or None for an
    assistant turn that only calls tools. `extra` holds the turn's other fields, as they came (such
    as `reasoning_content`).
    """

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    extra: dict[str, Any] = {}


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """One generation, normalised.

    Exactly one of `messages` (chat) and `prompt` (completions) is set; a prompt is text or token
    ids. None means that the caller said nothing and the model's own default holds. `extra` holds
    the remaining fields of the body, as they came: a remote provider is sent them, the local
    runtime refuses those it cannot honour.
    """

    endpoint: Endpoint
    model: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    extra: dict[str, Any] = {}

    @property
    def deterministic(self) -> bool:
        """Whether asking twice should give the same answer (temperature 0, or a seed)."""
        return self.temperature == 0 or self.seed is not None


class Usage(Struct, frozen=True):
    """Tokens of one generation. `prompt_tokens` includes `cached_tokens`."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    provenance: Provenance = "provider"


class EngineTimings(Struct, frozen=True):
    """Where the local engine spent a request's time, in seconds."""

    queued: float
    prefill: float
    decode: float


class TextDelta(Struct, frozen=True, tag="text"):
    """More text of the answer, whole characters only."""

    text: str


class ToolCallDelta(Struct, frozen=True, tag="tool_call"):
    """More of one tool call; `id` and `name` come with its first delta only."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class Finished(Struct, frozen=True, tag="finished"):
    """The last event of a generation that ended well. A cut stream never yields it."""

    reason: FinishReason
    usage: Usage
    timings: EngineTimings | None = None


Delta = TextDelta | ToolCallDelta
Event = TextDelta | ToolCallDelta | Finished
