"""The dialect-neutral form of a generation: what came in, and the events that go out.

Every dialect (OpenAI, Anthropic ...) is parsed into a `GenerationRequest`; every provider yields
`Event`s; so a request can come in by one format and go out by another.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from headrace.protocol.content import (
    CacheTime,
    Dialect,
    Opaque,
    Part,
    Reasoning,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolChoice,
)
from headrace.protocol.encoding import Encoded, EncodingRequest
from headrace.protocol.media import MediaEndpoint, MediaPiece, MediaRequest

Endpoint = (
    Literal["chat", "completions", "messages", "responses", "embeddings", "rerank", "classify"]
    | MediaEndpoint
)
# `refusal`: the model would not; `pause`: the provider wants to be asked on.
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "refusal", "pause"]
# `unknown`: something was used, and nobody said how much.
Provenance = Literal["provider", "counted", "estimated", "unknown"]


class Message(Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation.

    `role` is system, developer, user, assistant or tool. `content` is a string, parts, or None for
    an assistant turn that only calls tools; calls come after content. A tool's turn answers one
    call, `is_error` where the tool failed. `extra` holds the turn's other fields, as they came
    (such as `reasoning_content`).
    """

    role: str
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall | Opaque, ...] = ()
    tool_call_id: str | None = None
    is_error: bool = False
    cache: CacheTime | None = None  # of a tool's turn; elsewhere parts are marked
    extra: dict[str, Any] = {}


class Objectives(Struct, frozen=True):
    """What a caller needs of whoever serves it here; nothing of it is sent to a remote provider.

    A higher `priority` goes first. Seconds to the first token (`ttft`): a request that cannot have
    it by then is refused at once. Seconds between tokens (`itl`) bound what runs beside it.
    """

    priority: int = 0
    ttft: float | None = None
    itl: float | None = None


class GenerationRequest(Struct, frozen=True, kw_only=True):
    """One generation, normalised.

    Exactly one of `messages` (chat) and `prompt` (completions) is set; a prompt is text or token
    ids. None means that the caller said nothing and the model's own default holds. `extra` holds
    the remaining fields of the body, as they came by `dialect`: a remote provider of that dialect
    is sent them, any other and the local runtime refuse those they cannot honour. `user` is the
    caller's name of its end user. `tenant` is the server's own knowledge of the caller, never from
    the body.

    `n` answers are wanted, the best of `best_of` by mean log-probability; answer i of a seeded
    request has the seed `seed` + i. `logprobs` asks for the log-probability of each token and of
    that many of the most likely ones, `prompt_logprobs` for those of the prompt; `echo` puts the
    prompt before the answer.
    """

    endpoint: Endpoint  # chat for every dialect of a conversation
    dialect: Dialect = "openai"
    model: str
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    tools: tuple[Tool | Opaque, ...] = ()
    tool_choice: ToolChoice | Opaque | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | Opaque | None = None
    reasoning: Reasoning | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    echo: bool = False
    n: int = 1
    best_of: int | None = None
    stream: bool = False
    include_usage: bool = False
    user: str | None = None
    objectives: Objectives = Objectives()
    tenant: str = ""
    extra: dict[str, Any] = {}

    @property
    def deterministic(self) -> bool:
        """Whether asking twice should give the same answer (temperature 0, or a seed)."""
        return self.temperature == 0 or self.seed is not None


class Usage(Struct, frozen=True):
    """Tokens of one generation, all its choices together; the prompt is counted once.

    `prompt_tokens` includes `cached_tokens`, which were read from a cache, and
    `cache_write_tokens`, which were written to one (`cache_write_1h_tokens` of them for an hour);
    a token is in at most one of the two. `completion_tokens` includes `reasoning_tokens`. What has
    no tokens is counted by `images` made, `seconds` of sound heard or `characters` spoken.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    reasoning_tokens: int = 0
    provenance: Provenance = "provider"
    images: int = 0
    seconds: float = 0.0
    characters: int = 0


class EngineTimings(Struct, frozen=True):
    """Where the local engine spent a request's time, in seconds."""

    queued: float
    prefill: float
    decode: float


class TokenLogprob(Struct, frozen=True, omit_defaults=True):
    """A token, its natural log-probability, and the most likely tokens at its place.

    `logprob` is None for the first token of a prompt. `bytes` are what the token stands for, where
    that is known: `text` alone cannot say a part of a character.
    """

    text: str
    logprob: float | None
    bytes: bytes | None = None
    id: int | None = None
    ranked: tuple[TokenLogprob, ...] = ()


class TextDelta(Struct, frozen=True, tag="text"):
    """More text of one choice of the answer, whole characters only.

    `logprobs` are of the tokens that came with it, where they were asked for; text may lag behind
    its tokens, so `text` may be empty where `logprobs` is not.
    """

    text: str
    choice: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class ReasoningDelta(Struct, frozen=True, tag="reasoning"):
    """More of what the model says to itself before one choice of the answer.

    `signature` comes at the end of a block of it and closes the block; `redacted` is a whole block
    that is shown to nobody.
    """

    text: str
    choice: int = 0
    signature: str | None = None
    redacted: str | None = None


class ToolCallDelta(Struct, frozen=True, tag="tool_call"):
    """More of one tool call; `id`, `name` and `signature` come with its first delta only."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    choice: int = 0
    signature: str | None = None


class PromptScored(Struct, frozen=True, tag="prompt_scored"):
    """The log-probabilities of the prompt's tokens; at most once, before the first choice."""

    logprobs: tuple[TokenLogprob, ...]


class ChoiceFinished(Struct, frozen=True, tag="choice_finished"):
    """The end of one choice of several; an answer of one choice has only `Finished`."""

    choice: int
    reason: FinishReason


class Finished(Struct, frozen=True, tag="finished"):
    """The last event of a generation that ended well. A cut stream never yields it.

    `reason` is that of choice 0; `stop_sequence` is the stop string that ended it, where that is
    known. `whole`: the answer came at once, so nothing is known of when its tokens did.
    """

    reason: FinishReason
    usage: Usage
    timings: EngineTimings | None = None
    stop_sequence: str | None = None
    whole: bool = False


Delta = TextDelta | ReasoningDelta | ToolCallDelta | PromptScored
Event = Delta | ChoiceFinished | Finished | Encoded | MediaPiece
AnyRequest = GenerationRequest | EncodingRequest | MediaRequest
