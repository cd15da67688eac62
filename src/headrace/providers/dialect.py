"""What a remote provider's dialect is made of: how a request is written, how an answer is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec

from headrace.protocol.encoding import EmbeddingRequest, RankRequest
from headrace.protocol.errors import UpstreamError
from headrace.protocol.generation import Event, FinishReason, GenerationRequest, Usage
from headrace.protocol.media import MediaRequest
from headrace.providers.upstream import Exchange

encode = msgspec.json.Encoder().encode


class Reader(Protocol):
    """Reads one answer, a JSON text at a time."""

    thinking: bool  # the last text held reasoning, told of in an event or not

    @property
    def complete(self) -> bool:
        """Whether all that was asked for has come, though the stream may go on."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the dialect's own mark of the end has come: nothing follows."""
        ...

    def feed(self, data: str | bytes) -> Iterator[Event]:
        """The events of one JSON text of the answer. Raises UpstreamError on a malformed one."""
        ...

    def end(self, request: GenerationRequest) -> Iterator[Event]:
        """What closes the answer, last `Finished`. Raises UpstreamError if it was cut."""
        ...


class Meter(Protocol):
    """Reads from an answer that passes through what it used."""

    def feed(self, data: bytes, content_type: str) -> None:
        """Look at more of the answer."""
        ...

    def usage(self) -> Usage:
        """What the answer used, once it is over."""
        ...


# Signs an exchange with the server at an address: the headers to add.
Signature = Callable[[str, Exchange], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How to speak to one upstream. The functions take the upstream's own name of a model.

    `framing` is how JSON texts stand in a stream: as server-sent events, or as Amazon's binary
    event stream. `headers` go with every request. `whole`: an answer need not be streamed.
    """

    write: Callable[[GenerationRequest, str], Exchange]
    reader: Callable[[GenerationRequest], Reader]
    whole: bool = False
    framing: Literal["sse", "amazon"] = "sse"
    headers: Mapping[str, str] = field(default_factory=dict)
    sign: Signature | None = None
    write_count: Callable[[GenerationRequest, str], Exchange] | None = None
    read_count: Callable[[bytes, str], int] | None = None
    write_embedding: Callable[[EmbeddingRequest, str], Exchange] | None = None
    read_embedding: Callable[[bytes, EmbeddingRequest, str], Iterator[Event]] | None = None
    write_ranking: Callable[[RankRequest, str], Exchange] | None = None
    read_ranking: Callable[[bytes, RankRequest, str], Iterator[Event]] | None = None
    write_media: Callable[[MediaRequest, str], Exchange] | None = None
    meter: Callable[[MediaRequest], Meter] | None = None


def decoded(decoder: msgspec.json.Decoder[Any], data: str | bytes, provider: str) -> Any:
    """What `data` holds. Raises UpstreamError where it is not what the dialect says."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamError(f"Provider '{provider}' sent malformed JSON.") from None


def cut_off(provider: str) -> UpstreamError:
    """What is said of an answer that stopped in the middle."""
    return UpstreamError(f"The answer of provider '{provider}' was cut off before its end.")


def known_reason(reasons: Mapping[str, FinishReason], reason: str, provider: str) -> FinishReason:
    """Why an answer ended, in our words. Raises UpstreamError for a reason we do not know."""
    if reason in reasons:
        return reasons[reason]
    raise UpstreamError(
        f"Provider '{provider}' ended its answer with the unknown reason '{reason[:40]}'."
    )
