"""OpenAI's wire format, inwards: bodies of chat/completions and completions.

Source: the OpenAI API reference (chat completions, completions, errors). What goes out is in
`protocol.openai_answer`.

Fields that ask for what an answer cannot carry here (legacy function calls, audio) are refused by
name and never ignored. All other fields that this module does not know go to `extra`; null counts
as not given.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct, structs

from headrace.protocol.content import Part, Reasoning, Text
from headrace.protocol.errors import InvalidField
from headrace.protocol.generation import GenerationRequest, Message, Objectives
from headrace.protocol.json import check_bounds
from headrace.protocol.openai_content import (
    read_format,
    read_parts,
    read_thinking,
    read_tool_call,
    read_tool_choice,
    read_tools,
)

MAX_STOP_SEQUENCES = 4
MAX_MESSAGES = 16_384
MAX_BIASES = 1024  # tokens in a logit_bias
MAX_CHOICES = 128
MAX_RANKED = 20  # most likely tokens at a place
MAX_PRIORITY = 1000
LONGEST_TARGET = 3600  # seconds

Role = Literal["system", "developer", "user", "assistant", "tool"]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Token = Annotated[int, Meta(ge=0, lt=2**31)]
TokenCount = Annotated[int, Meta(ge=1, lt=2**31)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Ranked = Annotated[int, Meta(ge=0, le=MAX_RANKED)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]
Target = Annotated[float, Meta(gt=0, le=LONGEST_TARGET)]
Body = TypeVar("Body", bound=Struct)


class StreamOptions(Struct):
    """What a stream tells besides."""

    include_usage: bool | None = None


class ChatFunction(Struct):
    """What a call of a tool calls."""

    name: str
    arguments: str


class ChatToolCall(Struct):
    """A call that an assistant's turn made."""

    id: str
    type: str = "function"
    function: ChatFunction | None = None


class ChatTurn(Struct):
    """One turn of a conversation; its further fields go to the provider."""

    role: Role
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[ChatToolCall] | None = None
    tool_call_id: str | None = None


class _Sampling(Struct, kw_only=True):
    """The fields that both endpoints share."""

    model: ModelName
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: Annotated[list[Token], Meta(max_length=MAX_BIASES)] | None = None
    min_tokens: Annotated[int, Meta(ge=0, lt=2**31)] | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: Ranked | None = None
    response_format: dict[str, Any] | None = None
    user: str | None = None
    n: Choices | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Meta(ge=-MAX_PRIORITY, le=MAX_PRIORITY)] | None = None
    ttft_target: Target | None = None
    itl_target: Target | None = None


class ChatBody(_Sampling, kw_only=True):
    """A conversation to go on with; further fields go to a remote provider."""

    messages: Annotated[list[ChatTurn], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    logprobs: bool | None = None
    top_logprobs: Ranked | None = None


class CompletionBody(_Sampling, kw_only=True):
    """A prompt to go on with; further fields go to a remote provider."""

    prompt: str | list[Any]
    logprobs: Ranked | None = None
    echo: bool | None = None
    best_of: Choices | None = None


_CHAT_FIELDS = frozenset(ChatBody.__struct_fields__)
_COMPLETION_FIELDS = frozenset(CompletionBody.__struct_fields__)
_TURN_FIELDS = frozenset(ChatTurn.__struct_fields__)

# Fields that would change the shape of the answer, and the values at which they do not.
_FIXED: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"], []),
}

_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$(?:\.)?(?P<path>[^`]*)`)?$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]+)`")


def chat_request(fields: dict[str, Any]) -> GenerationRequest:
    """The request in a chat/completions body. Raises InvalidField."""
    body = convert(fields, ChatBody)
    messages = tuple(
        _message(f"messages[{place}]", turn, raw)
        for place, (turn, raw) in enumerate(zip(body.messages, fields["messages"], strict=True))
    )
    if body.top_logprobs and not body.logprobs:
        raise InvalidField("top_logprobs", "expected 'logprobs': true beside it.")
    request = _request(body, _extra(fields, _CHAT_FIELDS), messages=messages)
    choice, effort = body.tool_choice, body.reasoning_effort
    return structs.replace(
        request,
        tools=read_tools(body.tools or []),
        tool_choice=None if choice is None else read_tool_choice(choice),
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning=None if effort is None else read_effort(effort),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def read_effort(effort: str) -> Reasoning:
    """How much to think: an effort, of which 'none' means not at all."""
    return Reasoning(thinking=False) if effort == "none" else Reasoning(effort=effort)


def completion_request(fields: dict[str, Any]) -> GenerationRequest:
    """The request in a completions body. Raises InvalidField."""
    body = convert(fields, CompletionBody)
    request = _request(body, _extra(fields, _COMPLETION_FIELDS), prompt=_prompt(body.prompt))
    if body.best_of is not None:
        if body.best_of < request.n:
            raise InvalidField("best_of", f"expected at least 'n', which is {request.n}.")
        if body.best_of > request.n and request.stream:
            raise InvalidField("best_of", "expected 'n' in a stream: the best is known at the end.")
    return structs.replace(
        request, logprobs=body.logprobs, echo=bool(body.echo), best_of=body.best_of
    )


def _request(
    body: _Sampling,
    extra: dict[str, Any],
    messages: tuple[Message, ...] | None = None,
    prompt: str | tuple[int, ...] | None = None,
) -> GenerationRequest:
    if None not in (body.max_tokens, body.max_completion_tokens) and (
        body.max_tokens != body.max_completion_tokens
    ):
        raise InvalidField(
            "max_tokens", "expected the same value as 'max_completion_tokens', or only one of them."
        )
    limit = body.max_completion_tokens or body.max_tokens
    if limit is not None and (body.min_tokens or 0) > limit:
        raise InvalidField("min_tokens", f"expected at most 'max_tokens', which is {limit}.")
    options = body.stream_options
    return GenerationRequest(
        endpoint="completions" if messages is None else "chat",
        model=body.model,
        messages=messages,
        prompt=prompt,
        max_tokens=limit,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=0 if body.top_k == -1 else body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=_logit_bias(body.logit_bias or {}),
        seed=body.seed,
        stop=_stop(body.stop),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        min_tokens=body.min_tokens,
        ignore_eos=bool(body.ignore_eos),
        prompt_logprobs=body.prompt_logprobs,
        response_format=None if body.response_format is None else read_format(body.response_format),
        user=body.user,
        n=body.n or 1,
        stream=bool(body.stream),
        include_usage=bool(body.stream and options is not None and options.include_usage),
        objectives=Objectives(body.priority or 0, body.ttft_target, body.itl_target),
        extra=extra,
    )


def _message(path: str, turn: ChatTurn, raw: dict[str, Any]) -> Message:
    content = _content(f"{path}.content", turn)
    if turn.role == "tool" and turn.tool_call_id is None:
        raise InvalidField(f"{path}.tool_call_id", "expected the id of the call this answers.")
    extra: dict[str, Any] = {}
    for name, value in raw.items():
        if name not in _TURN_FIELDS and value is not None and value != []:
            check_bounds(f"{path}.{name}", value)
            extra[name] = value
    if turn.tool_calls:
        check_bounds(f"{path}.tool_calls", raw["tool_calls"])
    if thoughts := read_thinking(extra.pop("thinking_blocks", None)):
        said = (Text(content),) if isinstance(content, str) else content or ()
        content = (*thoughts, *said)
    return Message(
        role=turn.role,
        content=content,
        name=turn.name,
        tool_calls=tuple(map(read_tool_call, raw["tool_calls"])) if turn.tool_calls else (),
        tool_call_id=turn.tool_call_id,
        extra=extra,
    )


def _content(path: str, turn: ChatTurn) -> str | tuple[Part, ...] | None:
    content = turn.content
    if content is None:
        if turn.role != "assistant":
            raise InvalidField(path, "expected a string or a list of content parts.")
        if not turn.tool_calls:
            raise InvalidField(path, "expected content or tool_calls.")
    return read_parts(path, content) if isinstance(content, list) else content


def _prompt(prompt: str | list[Any]) -> str | tuple[int, ...]:
    if isinstance(prompt, str):
        return prompt
    if prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise InvalidField("prompt", f"expected one prompt, got {len(prompt)}.")
        return _prompt(prompt[0])
    if not prompt:
        raise InvalidField("prompt", "expected text or token ids, got an empty list.")
    try:
        return msgspec.convert(prompt, tuple[Token, ...])
    except msgspec.ValidationError:
        raise InvalidField("prompt", "expected a string or a list of token ids.") from None


def _stop(stop: str | list[str] | None) -> tuple[str, ...]:
    sequences = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(sequences) > MAX_STOP_SEQUENCES:
        raise InvalidField(
            "stop", f"expected at most {MAX_STOP_SEQUENCES} sequences, got {len(sequences)}."
        )
    if "" in sequences:
        raise InvalidField("stop", "expected sequences that are not empty.")
    return sequences


def _logit_bias(biases: dict[str, float]) -> dict[str, float]:
    if len(biases) > MAX_BIASES:
        raise InvalidField("logit_bias", f"expected at most {MAX_BIASES} tokens.")
    for token in biases:
        if not (token.isascii() and token.isdecimal() and len(token) <= 10 and int(token) < 2**31):
            raise InvalidField(f"logit_bias.{token[:40]}", "expected a token id as the name.")
    return biases


def _extra(fields: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    for name, value in fields.items():
        if name in known or value is None:
            continue
        allowed = _FIXED.get(name)
        if allowed is None:
            check_bounds(name, value)
            extra[name] = value
        elif value not in allowed or isinstance(value, bool) != isinstance(allowed[0], bool):
            raise InvalidField(name, f"only {allowed[0]!r} is supported.")
    return extra


def convert(fields: dict[str, Any], body: type[Body]) -> Body:
    """The fields of a body by their types. Raises InvalidField, which names the wrong one."""
    try:
        return msgspec.convert(fields, body)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None


def _invalid_field(problem: str) -> InvalidField:
    """Msgspec says `what - at `$.path``; the caller gets the path as the field."""
    match = _AT.match(problem)
    what, path = (match["what"], match["path"] or "") if match else (problem, "")
    missing = _MISSING.match(what)
    if missing:
        path = f"{path}.{missing['name']}" if path else missing["name"]
        return InvalidField(path, "this field is required.")
    if path.endswith(".role"):
        what = f"expected one of {', '.join(get_args(Role))}"
    return InvalidField(path or "body", what[:1].lower() + what[1:].replace("`", "") + ".")
