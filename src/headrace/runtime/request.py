"""What is asked of the engine and what it answers: plain records, ready to cross a process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# `late`: the TTFT target could no longer be met, so the request never ran
FinishReason = Literal["stop", "length", "tool_calls", "late", "error"]
GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]
Messages = Sequence[Mapping[str, Any]]  # role, content, as the chat template reads them
Prompt = str | Sequence[int] | Messages  # text, token ids, or a conversation


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How a request's tokens are chosen.

    `max_tokens` None runs to the end of the context. `top_k` 0 means all. Without a `seed` one
    is drawn when the request is admitted. Presence and frequency penalties count the tokens
    generated so far (OpenAI's definition), the repetition penalty those of the prompt too (Keskar
    et al. 2019, arXiv 1909.05858). `logprobs` asks for the log-probability of each token and of
    that many of the most likely ones; `prompt_logprobs` for those of the prompt's tokens.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # token, addend
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None


DEFAULT_SAMPLING = SamplingParameters()


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a request needs of the scheduler.

    A higher `priority` goes first. A request that cannot get its first token within `ttft`
    seconds is refused as soon as that is clear; `itl` seconds between its tokens bound what is
    computed beside it.
    """

    priority: int = 0
    ttft: float | None = None
    itl: float | None = None


NO_OBJECTIVES = Objectives()


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the answer's text must be.

    `source` is a JSON schema as JSON text (`json_schema`), a regular expression in the syntax of
    Rust's regex crate (`regex`), a JSON list of strings (`choice`), or a grammar in llguidance's
    form of Lark (`lark`); a `json_object` has none. `lenient` passes over keywords of a schema
    that cannot be enforced; without it they are refused.
    """

    kind: GrammarKind
    source: str = ""
    lenient: bool = False


@dataclass(frozen=True, slots=True)
class Tools:
    """Functions that the model may call, each as OpenAI's API has them: name, parameters ...

    `required`: the answer is nothing but calls; with `named` one call of that function.
    `parallel` allows several calls in one answer.
    """

    functions: tuple[Mapping[str, Any], ...]
    required: bool = False
    named: str | None = None
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """One generation asked of the engine."""

    id: str
    prompt: Prompt
    sampling: SamplingParameters = DEFAULT_SAMPLING
    tenant: str = ""  # requests of one tenant may share the KV of equal prefixes
    objectives: Objectives = NO_OBJECTIVES
    grammar: Grammar | None = None
    tools: Tools | None = None  # goes with a conversation only
    adapter: str | None = None  # the name of a loaded one; None: the base model
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the chat template


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made, whole; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability, and the most likely tokens at its place with theirs.

    `logprob` is None for the first token of a prompt: nothing comes before it. `bytes` are what
    the token stands for; of a special token its name.
    """

    token: int
    bytes: bytes
    logprob: float | None
    ranked: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds a request spent waiting, in prefill (to its first token) and in decode."""

    queued: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Finish:
    """Why and how a request ended; the counts are final."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    timings: Timings


@dataclass(frozen=True, slots=True)
class Output:
    """News of one request: more text, and at the end why it ended.

    `tokens` are the ids behind the text so far not reported; `text` may lag behind them while a
    character or a possible stop string or tool call is incomplete. Of a conversation, what a model
    that reasons says before its answer is in `reasoning`, and calls are in `calls` once they are
    whole; neither is in `text`. `logprobs` go with `tokens`, where they were asked for;
    `prompt_logprobs` come once, with the first token, for the prompt's tokens.
    """

    id: str
    text: str
    tokens: tuple[int, ...] = ()
    finish: Finish | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Counters:
    """The engine's state in numbers, for metrics and tests."""

    running: int = 0
    waiting: int = 0
    places: int = 0  # sequences that may run at once
    queued: Sequence[int] = ()  # tokens of prompts to be computed, by the bits of a prompt's count
    chunk_tokens: int = 0  # of prompts, that a step computes beside sequences that decode
    prefill_token_seconds: float = 0.0  # what computing one takes; so do the next two: 0 unknown
    step_seconds: float = 0.0  # of a step that only decodes
    turn_seconds: float = 0.0  # from one end of a sequence to the next, while others wait
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    kv_block_tokens: int = 0  # positions of one
    kv_evictions: int = 0
    kv_host_used: int = 0  # blocks in host memory
    kv_host_total: int = 0
    kv_offloaded: int = 0  # blocks copied there, and from there
    kv_fetched: int = 0
    steps: int = 0
    prompt_tokens: int = 0  # of admitted requests, cached ones included
    cached_tokens: int = 0  # of these, those that another request had computed
    generated_tokens: int = 0
    cancelled: int = 0
    preempted: int = 0
    drafted: int = 0  # tokens guessed ahead, and those of them that were kept
    accepted: int = 0
    adapters: int = 0  # those that requests may name
    adapter_bytes: int = 0

    @property
    def queued_tokens(self) -> int:
        """Tokens of all prompts that are still to be computed."""
        return sum(self.queued)


class RequestRefused(ValueError):
    """The request can never run; `code` is machine-readable.

    Codes: `context_too_long` (details limit, tokens), `invalid_value` (details field), `busy`
    (the queue is full).
    """

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Texts, or token ids, to embed or classify; or documents to rank by a query.

    `dimensions` are those of a vector, None for all. What is too long is cut where `truncate`.
    """

    id: str
    task: Literal["embed", "rank", "classify"]
    texts: tuple[str | tuple[int, ...], ...]
    query: str = ""
    dimensions: int | None = None
    truncate: bool = False


@dataclass(frozen=True, slots=True)
class Encoding:
    """What came of a request: float32 values [texts, width], in C order.

    They are the vectors; the probabilities of `labels`; or one score for each document.
    """

    id: str
    values: bytes
    width: int
    tokens: int
    labels: tuple[str, ...] = ()
