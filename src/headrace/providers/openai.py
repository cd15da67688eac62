"""OpenAI's dialect, outwards: what is asked of any upstream that speaks it, Azure's included.

Source: the OpenAI API reference; Azure OpenAI's (v1, and by deployment with an `api-version`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

from msgspec import structs

from headrace.config.schema import UpstreamProvider
from headrace.protocol.content import Part, Text, Thinking
from headrace.protocol.encoding import EmbeddingRequest
from headrace.protocol.generation import GenerationRequest, Message
from headrace.protocol.openai_content import (
    write_format,
    write_parts,
    write_thinking,
    write_tool,
    write_tool_call,
    write_tool_choice,
)
from headrace.providers.dialect import Dialect, encode
from headrace.providers.openai_chunks import Translator
from headrace.providers.openai_embeddings import embedded, embedding_body
from headrace.providers.openai_media import PATHS, Meter, media_exchange
from headrace.providers.translation import native, native_extra
from headrace.providers.upstream import Exchange

# Fields of other dialects that change nothing about the answer here.
HARMLESS = frozenset({"context_management", "service_tier", "betas", "inference_geo"})
EFFORTS = ((4096, "low"), (16384, "medium"))  # thinking of under so many tokens


def new_call_id() -> str:
    """The id of a tool call that an upstream left without one."""
    return f"call_{secrets.token_hex(12)}"


def new_boundary() -> str:
    """What parts a form: it stands in no file by chance."""
    return f"headrace-{secrets.token_hex(16)}"


def openai_dialect(
    name: str,
    settings: UpstreamProvider,
    address: str,
    key: str | None,
    new_id: Callable[[], str] = new_call_id,
) -> Dialect:
    """The dialect of the provider `name` at `address`. `key` goes into one header and nowhere
    else."""
    azure = settings.dialect == "azure"
    headers = {}
    if key is not None:
        headers = {"api-key": key} if azure else {"Authorization": f"Bearer {key}"}

    def path(model: str, endpoint: str) -> str:
        if settings.api_version is None:
            return f"/{endpoint}"
        deployment = quote(model, safe="")
        return f"/deployments/{deployment}/{endpoint}?api-version={quote(settings.api_version)}"

    def write(request: GenerationRequest, model: str) -> Exchange:
        endpoint = "chat/completions" if request.endpoint == "chat" else "completions"
        return Exchange(path(model, endpoint), encode(request_body(request, model, address)))

    def write_embedding(request: EmbeddingRequest, model: str) -> Exchange:
        return Exchange(path(model, "embeddings"), encode(embedding_body(request, model)))

    return Dialect(
        write=write,
        reader=lambda request: Translator(name, new_id, request.n),
        whole=True,
        headers=headers,
        write_embedding=write_embedding,
        read_embedding=embedded,
        write_media=lambda request, model: media_exchange(
            request, model, path(model, PATHS[request.endpoint]), new_boundary
        ),
        meter=lambda request: Meter(request, name),
    )


def request_body(request: GenerationRequest, model: str, base_url: str) -> dict[str, Any]:
    """`request` in OpenAI's words, for the upstream at `base_url`.

    `extra` goes as it came but overrides nothing.
    """
    extra = native_extra(request, "openai", HARMLESS)
    request = native(request, "openai")
    body: dict[str, Any] = {
        **extra,
        "model": model,
        "stream": request.stream,
    }
    body.pop("stream_options", None)  # refused where nothing is streamed
    if request.stream:
        options = extra.get("stream_options")
        asked = options if isinstance(options, dict) else {}
        body["stream_options"] = {**asked, "include_usage": True}
    if request.endpoint == "chat":
        _converse(body, request, marks=request.dialect == "openai" or _takes_marks(base_url))
    else:
        body["prompt"] = request.prompt
    if request.logprobs is not None:
        if request.endpoint == "chat":
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        else:
            body["logprobs"] = request.logprobs
    limit = "max_tokens"
    if request.endpoint == "chat" and _is_openai(base_url):
        limit = "max_completion_tokens"  # its newer models refuse the old name
    given = {
        limit: request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "repetition_penalty": request.repetition_penalty,
        "logit_bias": request.logit_bias or None,
        "seed": request.seed,
        "stop": request.stop or None,
        "stop_token_ids": request.stop_token_ids or None,
        "min_tokens": request.min_tokens,
        "ignore_eos": request.ignore_eos or None,
        "prompt_logprobs": request.prompt_logprobs,
        "echo": request.echo or None,
        "n": request.n if request.n > 1 else None,
        "best_of": request.best_of,
        "user": request.user,
        "parallel_tool_calls": request.parallel_tool_calls,
        "reasoning_effort": _effort(request),
    }
    if request.response_format is not None:
        body["response_format"] = write_format(request.response_format)
    body.update((name, value) for name, value in given.items() if value is not None)
    return body


def _converse(body: dict[str, Any], request: GenerationRequest, *, marks: bool) -> None:
    """Add the conversation and its tools; with `marks` what is to be cached."""
    messages = request.messages or ()
    if request.dialect != "openai":
        messages = tuple(_shown_apart(messages))
    body["messages"] = [_turn(message, marks) for message in messages]
    if request.tools:
        body["tools"] = [write_tool(tool, marks=marks) for tool in request.tools]
    if request.tool_choice is not None:
        body["tool_choice"] = write_tool_choice(request.tool_choice)


def _shown_apart(messages: Iterable[Message]) -> Iterator[Message]:
    """The turns, with what tools' results hold besides text in a user's turn behind all of them:
    a tool's turn takes text alone here."""
    shown: list[Part] = []
    for message in messages:
        if shown and message.role != "tool":
            yield Message(role="user", content=tuple(shown))
            shown = []
        content = message.content
        if message.role == "tool" and isinstance(content, tuple):
            texts = tuple(part for part in content if isinstance(part, Text))
            shown += [part for part in content if not isinstance(part, Text)]
            yield structs.replace(message, content=texts or "")
        else:
            yield message
    if shown:
        yield Message(role="user", content=tuple(shown))


def _turn(message: Message, marks: bool) -> dict[str, Any]:
    turn: dict[str, Any] = {**message.extra, "role": message.role}
    content = message.content
    if isinstance(content, tuple):
        if marks and (thoughts := [part for part in content if isinstance(part, Thinking)]):
            turn["thinking_blocks"] = [write_thinking(part) for part in thoughts]
        written = write_parts(content, marks=marks)
        plain = not marks and len(written) == 1 and written[0].keys() == {"type", "text"}
        turn["content"] = written[0]["text"] if plain else written or None
    elif content is not None:
        turn["content"] = content
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls:
        turn["tool_calls"] = [write_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _effort(request: GenerationRequest) -> str | None:
    reasoning = request.reasoning
    if reasoning is None:
        return None
    if reasoning.thinking is False:
        return "none"
    if reasoning.effort is None and reasoning.budget is not None:
        budget = reasoning.budget
        return next((effort for limit, effort in EFFORTS if budget < limit), "high")
    return reasoning.effort


@lru_cache(64)
def _takes_marks(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    return host == "openrouter.ai" or host.endswith(".openrouter.ai")


@lru_cache(64)
def _is_openai(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    return host == "api.openai.com" or host.endswith(".openai.azure.com")
