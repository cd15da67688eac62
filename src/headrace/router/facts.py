"""What rules may know of a request: small, plain, and enough to decide again later."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from msgspec import Struct

from headrace.config.schema import Configuration
from headrace.protocol.content import Audio, Image, ResponseFormat, Text
from headrace.protocol.encoding import RankRequest
from headrace.protocol.generation import AnyRequest, GenerationRequest
from headrace.protocol.media import MediaRequest

CHARACTERS_PER_TOKEN = 4  # for an estimate
TAGS_HEADER = "x-headrace-tags"
MAX_TAGS = 32
MAX_TAG = 256  # characters
UNSAID = 1024  # tokens that an answer is taken to have where nothing bounds it

_CONVERSATIONS = {"openai": "chat", "anthropic": "messages", "responses": "responses"}
_NO_MEDIA = MediaRequest(endpoint="images", model="", fields=())


class Facts(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One request as the rules see it.

    `headers` holds those that rules name, in lower case; `prompt_tokens` is an estimate;
    `max_tokens` is for all choices together; `pictures` are wanted, `seconds` of sound at most to
    be heard, `characters` to be spoken; `budgeted` says that the key has a budget; `at` is Unix
    seconds, 0 where no rule asks for the time; `sticky` is a digest of what a split keeps together,
    empty where no rule splits.
    """

    endpoint: str
    model: str
    dialect: str = "openai"
    key: str = ""
    budgeted: bool = False
    tags: dict[str, str] = {}
    headers: dict[str, str] = {}
    prompt_tokens: int = 0
    max_tokens: int | None = None
    tools: bool = False
    images: bool = False
    audio: bool = False
    json_schema: bool = False
    reasoning: bool = False
    pictures: int = 0
    seconds: float = 0.0
    characters: int = 0
    at: int = 0
    sticky: str = ""


class Asked(Struct, frozen=True):
    """What the rules of one configuration ask of a request beyond the request itself."""

    headers: tuple[str, ...] = ()
    tags: bool = False
    sticky: bool = False
    time: bool = False


def asked_by(configuration: Configuration) -> Asked:
    """What has to be looked up for the rules of `configuration`."""
    routes = configuration.routes
    headers = {name.lower() for route in routes for name in route.when.headers}
    headers |= {route.sticky.lower() for route in routes if route.sticky is not None}
    return Asked(
        headers=tuple(sorted(headers)),
        tags=any(route.when.tags for route in routes),
        sticky=any(route.split for route in routes),
        time=any(route.when.hours is not None or route.when.days for route in routes),
    )


def facts_of(
    request: AnyRequest,
    asked: Asked,
    headers: Mapping[str, str],
    at: float,
    *,
    budgeted: bool = False,
) -> Facts:
    """The facts of `request`, which came with `headers` at `at` (Unix seconds), by a key that has
    a budget or has none."""
    characters, tokens, images, audio = _prompt(request)
    limit = None if isinstance(request, GenerationRequest | MediaRequest) else 0
    media = request if isinstance(request, MediaRequest) else _NO_MEDIA
    if isinstance(request, GenerationRequest) and request.max_tokens is not None:
        limit = request.max_tokens * max(request.n, request.best_of or 1)
    return Facts(
        endpoint=_endpoint(request),
        model=request.model,
        dialect=_dialect(request),
        key=request.tenant,
        budgeted=budgeted,
        tags=_tags(request.extra, headers.get(TAGS_HEADER)) if asked.tags else {},
        headers={
            name: value[:MAX_TAG]
            for name in asked.headers
            if (value := headers.get(name)) is not None
        },
        prompt_tokens=tokens - -characters // CHARACTERS_PER_TOKEN,
        max_tokens=limit,
        tools=isinstance(request, GenerationRequest) and bool(request.tools),
        images=images,
        audio=audio,
        json_schema=_schema(request),
        reasoning=_reasons(request),
        pictures=media.images,
        seconds=media.seconds,
        characters=media.characters,
        at=int(at) if asked.time else 0,
        sticky=_sticky(request) if asked.sticky else "",
    )


def _dialect(request: AnyRequest) -> str:
    """Whose words the caller used: OpenAI's or Anthropic's."""
    if isinstance(request, GenerationRequest) and request.dialect == "anthropic":
        return "anthropic"
    return "openai"


def _endpoint(request: AnyRequest) -> str:
    """What was called."""
    if not isinstance(request, GenerationRequest) or request.endpoint != "chat":
        return request.endpoint
    return _CONVERSATIONS[request.dialect]


def _schema(request: AnyRequest) -> bool:
    form = request.response_format if isinstance(request, GenerationRequest) else None
    return isinstance(form, ResponseFormat) and form.kind == "json_schema"


def _reasons(request: AnyRequest) -> bool:
    """Whether the model is asked to think."""
    asked = request.reasoning if isinstance(request, GenerationRequest) else None
    if asked is None or asked.thinking is False or asked.effort == "none":
        return False
    return bool(asked.thinking or asked.effort or asked.budget)


def _prompt(request: AnyRequest) -> tuple[int, int, bool, bool]:
    """Characters, token ids, and whether there is an image, and sound."""
    if isinstance(request, MediaRequest):
        return len(request.text), 0, False, False
    if isinstance(request, RankRequest):
        return len(request.query) + sum(map(len, request.documents)), 0, False, False
    if not isinstance(request, GenerationRequest):
        texts = request.input
        ids = sum(len(text) for text in texts if not isinstance(text, str))
        return sum(len(text) for text in texts if isinstance(text, str)), ids, False, False
    if request.messages is None:
        prompt = request.prompt or ""
        if isinstance(prompt, str):
            return len(prompt), 0, False, False
        return 0, len(prompt), False, False
    characters, images, audio = 0, False, False
    for message in request.messages:
        content = message.content
        if isinstance(content, str):
            characters += len(content)
            continue
        for part in content or ():
            if isinstance(part, Text):
                characters += len(part.text)
            images = images or isinstance(part, Image)
            audio = audio or isinstance(part, Audio)
    return characters, 0, images, audio


def _tags(extra: Mapping[str, Any], header: str | None) -> dict[str, str]:
    """The body's `metadata`, and what the header adds: `team=search, batch`."""
    metadata = extra.get("metadata")
    tags: dict[str, str] = {}
    if isinstance(metadata, dict):
        for name, value in list(metadata.items())[:MAX_TAGS]:
            if isinstance(value, str):
                tags[name[:MAX_TAG]] = value[:MAX_TAG]
    for item in (header or "").split(",")[:MAX_TAGS]:
        name, _, value = item.strip().partition("=")
        if name:
            tags[name[:MAX_TAG]] = value[:MAX_TAG] or "true"
    return tags


def _sticky(request: AnyRequest) -> str:
    """Who asks, where that is said; else how the conversation began, so its turns stay together."""
    named = request.user if isinstance(request, GenerationRequest) else request.extra.get("user")
    for value in (named, request.extra.get("safety_identifier")):
        if isinstance(value, str) and value:
            return _digest(f"{request.tenant}\0{value}")
    if isinstance(request, GenerationRequest) and request.messages is not None:
        return _digest(f"{request.tenant}\0{_opening(request)!r}")
    if isinstance(request, MediaRequest):
        return _digest(f"{request.tenant}\0{request.text}")
    return _digest(f"{request.tenant}\0{request!r}")


def _opening(request: GenerationRequest) -> list[Any]:
    """The turns up to the first of the user."""
    turns: list[Any] = []
    for message in request.messages or ():
        turns.append(message.content)
        if message.role == "user":
            break
    return turns


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
