"""Bodies of OpenAI's images, audio and moderations, inwards.

Source: the OpenAI API reference (images, audio, moderations). What is typed here is what
the way of a call has to know; every other field goes to the provider as it came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from headrace.protocol.errors import InvalidField
from headrace.protocol.json import check_bounds
from headrace.protocol.media import Attachment, MediaEndpoint, MediaRequest
from headrace.protocol.openai import ModelName, convert

MAX_IMAGES = 10
_COUNTS = frozenset(map(str, range(1, MAX_IMAGES + 1)))

Fields = Sequence[tuple[str, str]]
Files = tuple[Attachment, ...]
ReadForm = Callable[[Fields, Files], MediaRequest]
Images = Annotated[int, Meta(ge=1, le=MAX_IMAGES)]


class ImageBody(Struct, kw_only=True):
    """Images to make."""

    model: ModelName
    prompt: Annotated[str, Meta(min_length=1)]
    n: Images | None = None
    stream: bool | None = None


class SpeechBody(Struct, kw_only=True):
    """A text to speak."""

    model: ModelName
    input: Annotated[str, Meta(min_length=1)]
    voice: str | dict[str, Any]
    stream_format: Literal["audio", "sse"] | None = None


class ModerationBody(Struct, kw_only=True):
    """Texts, or parts of a message, to judge."""

    model: ModelName
    input: str | list[str | dict[str, Any]]


class ImageForm(Struct, kw_only=True):
    """The fields of a form with images to change (`image` or `image[]`, and a `mask`)."""

    model: ModelName
    prompt: Annotated[str, Meta(min_length=1)]
    n: str | None = None
    stream: str | None = None


class SoundForm(Struct, kw_only=True):
    """The fields of a form with sound to write down (`file`)."""

    model: ModelName
    prompt: str | None = None
    stream: str | None = None


def image_request(fields: dict[str, Any]) -> MediaRequest:
    """The request in an images/generations body. Raises InvalidField."""
    body = convert(fields, ImageBody)
    return MediaRequest(
        endpoint="images",
        model=body.model,
        fields=_passed_on(fields),
        text=body.prompt,
        images=body.n or 1,
        stream=bool(body.stream),
    )


def speech_request(fields: dict[str, Any]) -> MediaRequest:
    """The request in an audio/speech body. Raises InvalidField."""
    body = convert(fields, SpeechBody)
    return MediaRequest(
        endpoint="speech",
        model=body.model,
        fields=_passed_on(fields),
        text=body.input,
        stream=body.stream_format == "sse",
    )


def moderation_request(fields: dict[str, Any]) -> MediaRequest:
    """The request in a moderations body. Raises InvalidField."""
    body = convert(fields, ModerationBody)
    parts = [body.input] if isinstance(body.input, str) else body.input
    texts = (part if isinstance(part, str) else part.get("text") for part in parts)
    return MediaRequest(
        endpoint="moderations",
        model=body.model,
        fields=_passed_on(fields),
        text="\n".join(text for text in texts if isinstance(text, str)),
    )


def image_edit_request(fields: Fields, files: Files) -> MediaRequest:
    """The request in an images/edits form. Raises InvalidField."""
    body = convert(_once(fields, ImageForm), ImageForm)
    _check_files(files, ("image", "image[]"), ("mask",))
    return MediaRequest(
        endpoint="image_edits",
        model=body.model,
        fields=_but_model(fields),
        files=files,
        text=body.prompt,
        images=_count(body.n),
        stream=_flag(body.stream),
    )


def transcription_request(fields: Fields, files: Files) -> MediaRequest:
    """The request in an audio/transcriptions form. Raises InvalidField."""
    return _sound(fields, files, "transcriptions")


def translation_request(fields: Fields, files: Files) -> MediaRequest:
    """The request in an audio/translations form. Raises InvalidField."""
    return _sound(fields, files, "translations")


def _sound(fields: Fields, files: Files, endpoint: MediaEndpoint) -> MediaRequest:
    body = convert(_once(fields, SoundForm), SoundForm)
    _check_files(files, ("file",), ())
    if len(files) != 1:
        raise InvalidField("file", "expected one file.")
    return MediaRequest(
        endpoint=endpoint,
        model=body.model,
        fields=_but_model(fields),
        files=files,
        text=body.prompt or "",
        stream=_flag(body.stream),
    )


def _passed_on(fields: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    for name, value in fields.items():
        check_bounds(name, value)
    return _but_model(fields.items())


def _but_model(fields: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, value) for name, value in fields if name != "model" and value is not None)


def _once(fields: Fields, body: type[Struct]) -> dict[str, Any]:
    """The fields of a form that `body` knows. Raises InvalidField where one came twice."""
    found: dict[str, Any] = {}
    for name, value in fields:
        if name in body.__struct_fields__:
            if name in found:
                raise InvalidField(name, "expected this field once.")
            found[name] = value
    return found


def _check_files(files: Files, needed: tuple[str, ...], further: tuple[str, ...]) -> None:
    for file in files:
        if file.name not in needed + further:
            raise InvalidField(file.name[:80], f"expected no file but {', '.join(needed)}.")
    if not any(file.name in needed for file in files):
        raise InvalidField(needed[0], "expected a file.")


def _count(said: str | None) -> int:
    if said is None:
        return 1
    if said in _COUNTS:
        return int(said)
    raise InvalidField("n", f"expected a number from 1 to {MAX_IMAGES}.")


def _flag(said: str | None) -> bool:
    if said is None or said.lower() == "false":
        return False
    if said.lower() == "true":
        return True
    raise InvalidField("stream", "expected true or false.")
