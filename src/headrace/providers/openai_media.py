"""OpenAI's images, audio and moderations, from the caller's side: a request out, its
answer passed through.

Source: the OpenAI API reference (images, audio, moderations); RFC 7578 (forms).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from headrace.protocol.errors import UpstreamError
from headrace.protocol.generation import Usage
from headrace.protocol.media import MediaEndpoint, MediaRequest
from headrace.protocol.sse import CONTENT_TYPE, SSEDecoder
from headrace.providers.dialect import encode
from headrace.providers.upstream import Exchange, Upload

PATHS: Mapping[MediaEndpoint, str] = {
    "images": "images/generations",
    "image_edits": "images/edits",
    "speech": "audio/speech",
    "transcriptions": "audio/transcriptions",
    "translations": "audio/translations",
    "moderations": "moderations",
}
MAX_EVENT_BYTES = 32 * 1024 * 1024  # an event may hold an image


class _Details(Struct):
    cached_tokens: int = 0


class _Used(Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _Details | None = None
    seconds: float | None = None


class _Told(Struct):
    """What an answer, or an event of it, says of what it used."""

    usage: _Used | None = None
    duration: float | str | None = None
    data: list[msgspec.Raw] | None = None


_decode = msgspec.json.Decoder(_Told).decode


def media_exchange(
    request: MediaRequest, model: str, path: str, boundary: Callable[[], str]
) -> Exchange:
    """`request` in OpenAI's words, at `path`; a form where it has files."""
    if not request.files:
        return Exchange(path, encode({**dict(request.fields), "model": model}))
    mark = boundary()
    upload = form([("model", model), *request.fields], request, mark)
    return Exchange(path, b"", upload=upload, content_type=f"multipart/form-data; boundary={mark}")


def form(fields: Sequence[tuple[str, Any]], request: MediaRequest, boundary: str) -> Upload:
    """A form of these fields and the request's files, which are not read."""
    text = b"".join(
        _head(boundary, name) + b"\r\n" + str(value).encode() + b"\r\n" for name, value in fields
    )
    parts: list[bytes | Path] = [text]
    size = len(text)
    for file in request.files:
        head = _head(boundary, file.name, file.filename)
        head += b"Content-Type: %b\r\n\r\n" % _plain(file.content_type).encode()
        parts += [head, Path(file.path), b"\r\n"]
        size += len(head) + file.size + 2
    end = b"--%b--\r\n" % boundary.encode()
    return Upload((*parts, end), size + len(end))


def _head(boundary: str, name: str, filename: str | None = None) -> bytes:
    told = f'form-data; name="{_quoted(name)}"'
    if filename is not None:
        told += f'; filename="{_quoted(filename)}"'
    return f"--{boundary}\r\nContent-Disposition: {told}\r\n".encode()


def _quoted(text: str) -> str:
    """As browsers write it."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _plain(text: str) -> str:
    return text.replace("\r", " ").replace("\n", " ")


class Meter:
    """What an answer used: as it says itself, else by what was asked and what came."""

    def __init__(self, request: MediaRequest, provider: str) -> None:
        self._request = request
        self._provider = provider
        self._events = SSEDecoder(MAX_EVENT_BYTES)
        self._told: _Told | None = None

    def feed(self, data: bytes, content_type: str) -> None:
        """Look at more of the answer. Raises UpstreamError where it says that it failed."""
        if content_type == "application/json":
            self._told = self._read(data)
        elif content_type == CONTENT_TYPE:
            for event in self._events.feed(data):
                if '"usage"' in event.data:
                    self._told = self._read(event.data.encode())

    def usage(self) -> Usage:
        """What the answer used."""
        request, told = self._request, self._told or _Told()
        if (used := told.usage) is not None and used.input_tokens is not None:
            details = used.input_tokens_details or _Details()
            return Usage(
                max(used.input_tokens, 0),
                max(used.output_tokens or 0, 0),
                cached_tokens=max(details.cached_tokens, 0),
                images=self._images(told),
            )
        if request.endpoint == "speech":
            return Usage(0, 0, characters=request.characters, provenance="counted")
        if request.images:
            return Usage(0, 0, images=self._images(told), provenance="counted")
        seconds = _seconds(told)
        if seconds is None:
            return Usage(0, 0, provenance="unknown")
        return Usage(0, 0, seconds=seconds)

    def _images(self, told: _Told) -> int:
        return len(told.data) if told.data is not None else self._request.images

    def _read(self, data: bytes) -> _Told:
        try:
            return _decode(data)
        except msgspec.ValidationError:
            return _Told()  # in order, but not as we know it
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamError(f"Provider '{self._provider}' sent malformed JSON.") from None


def _seconds(told: _Told) -> float | None:
    said = told.usage.seconds if told.usage is not None else None
    if said is None:
        said_so = told.duration
        try:
            said = None if said_so is None else float(said_so)
        except ValueError:
            return None
    return said if said is not None and 0 <= said < float("inf") else None
