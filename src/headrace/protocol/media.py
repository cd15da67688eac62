"""The dialect-neutral form of what makes, hears or judges images, sound and text, and passes
through.

What comes back is no text of ours: pieces of an answer as the upstream sent them, then `Finished`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

MediaEndpoint = Literal[
    "images", "image_edits", "speech", "transcriptions", "translations", "moderations",
]  # fmt: skip


class Attachment(Struct, frozen=True):
    """A file of a request: `size` bytes that are in the file at `path` while the request runs."""

    name: str  # of its field
    filename: str
    content_type: str
    size: int
    path: str


class MediaRequest(Struct, frozen=True, kw_only=True):
    """A request for images or sound, or for a judgement of what is in them.

    `fields` are those of its body besides `model`, in order, `files` what was uploaded: a request
    that has any goes out as a form, any other as JSON. `text` is what it says in words, `images`
    how many are wanted.
    """

    endpoint: MediaEndpoint
    model: str
    fields: tuple[tuple[str, Any], ...]
    files: tuple[Attachment, ...] = ()
    text: str = ""
    images: int = 0
    stream: bool = False
    tenant: str = ""

    deterministic = False

    @property
    def extra(self) -> dict[str, Any]:
        """The fields, as rules look at them."""
        return dict(self.fields)

    @property
    def seconds(self) -> float:
        """The most sound there may be in its files, at a bit rate that speech needs at least."""
        if self.endpoint not in ("transcriptions", "translations"):
            return 0.0
        return sum(file.size for file in self.files) / LEAST_BYTES_PER_SECOND

    @property
    def characters(self) -> int:
        """How many are to be spoken."""
        return len(self.text) if self.endpoint == "speech" else 0

    def recorded(self) -> dict[str, Any]:
        """What its record holds: the words, and of files what they are."""
        told = [
            {"name": file.name, "filename": file.filename, "type": file.content_type}
            | {"bytes": file.size}
            for file in self.files
        ]
        return {"endpoint": self.endpoint, "model": self.model, **self.extra, "files": told}


LEAST_BYTES_PER_SECOND = 2000.0  # 16 kbit/s


class MediaPiece(Struct, frozen=True, tag="media"):
    """More of an answer of `content_type`; `whole`: all of it, which is JSON."""

    data: bytes
    content_type: str
    whole: bool = False


class _Said(Struct):
    text: str | None = None
    data: list[msgspec.Raw] = []


class Media:
    """What has come of an answer that passes through: how much, and of JSON what it says."""

    __slots__ = ("_whole", "content_type", "size")

    def __init__(self) -> None:
        self.content_type = ""
        self.size = 0
        self._whole = b""

    def add(self, piece: MediaPiece) -> None:
        """Count one more piece."""
        self.content_type = piece.content_type
        self.size += len(piece.data)
        if piece.whole:
            self._whole = piece.data

    def content(self) -> dict[str, Any]:
        """The answer as the call record keeps it, which holds no image and no sound."""
        told: dict[str, Any] = {"type": self.content_type, "bytes": self.size}
        try:
            said = msgspec.json.decode(self._whole or b"{}", type=_Said)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return told
        if said.text is not None:
            told["text"] = said.text
        if said.data:
            told["images"] = len(said.data)
        return told
