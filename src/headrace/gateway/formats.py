"""The wire formats that callers speak: how each reads a body and writes an answer or an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.protocol import (
    anthropic,
    anthropic_answer,
    openai,
    openai_answer,
    openai_encoding,
    openai_media,
    responses,
    responses_answer,
)
from headrace.protocol.answer import Answer
from headrace.protocol.errors import HeadraceError, MalformedBody, UpstreamError
from headrace.protocol.generation import AnyRequest, Endpoint, Event, Finished, GenerationRequest
from headrace.protocol.media import MediaRequest
from headrace.protocol.openai_answer import Identity
from headrace.protocol.openai_stream import ChunkStream


class StreamEncoder(Protocol):
    """Encodes the events of one streamed answer, framed."""

    def opening(self) -> bytes:
        """What comes before the first event."""
        ...

    def event(self, event: Event) -> bytes:
        """One event before the last."""
        ...

    def closing(self, finished: Finished) -> bytes:
        """Everything that ends the stream."""
        ...

    def failure(self, error: HeadraceError, request_id: str) -> bytes:
        """What tells the caller that the stream broke."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One wire format of one endpoint."""

    read: Callable[[dict[str, Any]], AnyRequest]
    whole: Callable[[Identity, AnyRequest, Answer], bytes]
    stream: Callable[[Identity, GenerationRequest], StreamEncoder]
    error_body: Callable[[HeadraceError, str], bytes]
    error_status: Callable[[HeadraceError], int]
    id_header: bytes | None = None  # names the request beside x-request-id


def _openai(
    read: Callable[[dict[str, Any]], AnyRequest],
    whole: Callable[[Identity, AnyRequest, Answer], bytes],
) -> Format:
    return Format(
        read=read,
        whole=whole,
        stream=lambda identity, request: ChunkStream(identity, include_usage=request.include_usage),
        error_body=lambda error, _: openai_answer.error_body(error),
        error_status=lambda error: error.status,
    )


def _encoded(identity: Identity, request: AnyRequest, answer: Answer) -> bytes:
    if (
        isinstance(request, GenerationRequest | MediaRequest)
        or answer.encoded is None
        or answer.finished is None
    ):
        raise UpstreamError("The answer ended before it was finished.")
    usage = answer.finished.usage
    return openai_encoding.encoding_body(
        identity.id, identity.model, request, answer.encoded, usage
    )


def _generated(identity: Identity, _: AnyRequest, answer: Answer) -> bytes:
    return openai_answer.whole_body(identity, answer)


def _form_only(_: dict[str, Any]) -> AnyRequest:
    raise MalformedBody("The body must be a form.")


FORMS: Mapping[Endpoint, openai_media.ReadForm] = {
    "image_edits": openai_media.image_edit_request,
    "transcriptions": openai_media.transcription_request,
    "translations": openai_media.translation_request,
}
FORMATS: Mapping[Endpoint, Format] = {
    "chat": _openai(openai.chat_request, _generated),
    "completions": _openai(openai.completion_request, _generated),
    "embeddings": _openai(openai_encoding.embedding_request, _encoded),
    "rerank": _openai(openai_encoding.rank_request, _encoded),
    "classify": _openai(openai_encoding.classification_request, _encoded),
    "images": _openai(openai_media.image_request, _generated),
    "speech": _openai(openai_media.speech_request, _generated),
    "moderations": _openai(openai_media.moderation_request, _generated),
    **{endpoint: _openai(_form_only, _generated) for endpoint in FORMS},
    "messages": Format(
        read=anthropic.messages_request,
        whole=lambda identity, _, answer: anthropic_answer.whole_body(identity, answer),
        stream=lambda identity, _: anthropic_answer.MessageStream(identity),
        error_body=anthropic_answer.error_body,
        error_status=anthropic_answer.error_status,
        id_header=b"request-id",
    ),
    "responses": Format(
        read=responses.responses_request,
        whole=responses_answer.whole_body,
        stream=responses_answer.ResponseStream,
        error_body=lambda error, _: openai_answer.error_body(error),
        error_status=lambda error: error.status,
    ),
}


def format_of_path(path: str) -> Format:
    """The format that errors outside of a call are told in."""
    messages = path == "/v1/messages" or path.startswith("/v1/messages/")
    return FORMATS["messages" if messages else "chat"]
