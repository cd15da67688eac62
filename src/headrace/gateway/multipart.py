"""Forms with files (multipart/form-data, RFC 7578): read as they come, their files to disk.

Whatever is sent, memory holds one piece of the body and the fields, which are bounded; a file's
bytes are in a file of a folder that the caller names, gone when the form is.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import Receive

from headrace.gateway.admission import too_large
from headrace.gateway.disconnect import ClientGone
from headrace.gateway.faults import fault_of
from headrace.protocol.errors import (
    InvalidField,
    MalformedBody,
    PermissionDenied,
    RequestTimeout,
)

SILENCE = 60.0  # seconds between two pieces of a body
MAX_FIELDS = 64
MAX_FIELD_BYTES = 64 * 1024
MAX_FILES = 32
FORM_BYTES = 1024 * 1024  # that a form may have beside its largest file
BUFFER = 1024 * 1024  # bytes, written to disk at once


@dataclass(slots=True)
class Upload:
    """A file of a form. `path` is where its bytes are."""

    name: str  # of its field
    filename: str
    content_type: str
    path: Path
    size: int = 0


@dataclass(slots=True)
class Form:
    """What a form held, each in the order it came."""

    fields: list[tuple[str, str]] = field(default_factory=list)
    uploads: list[Upload] = field(default_factory=list)

    def get(self, name: str) -> str | None:
        """The last value of a field."""
        return next((value for key, value in reversed(self.fields) if key == name), None)

    def upload(self, name: str) -> Upload:
        """The one file of this field. Raises InvalidField."""
        found = [one for one in self.uploads if one.name == name]
        if len(found) != 1:
            raise InvalidField(name, "expected one file.")
        return found[0]


@contextlib.asynccontextmanager
async def read_form(
    headers: Mapping[str, str], receive: Receive, folder: Path, limit: int
) -> AsyncIterator[Form]:
    """The form in a body of at most `limit` bytes; its files are in `folder` until the block ends.

    Raises MalformedBody, BodyTooLarge, InvalidField, RequestTimeout, ClientGone, PermissionDenied,
    and ServiceError where the files cannot be written.
    """
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        # A web page can send forms to any address without asking.
        raise PermissionDenied("Another site may not send forms here.")
    announced = headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit)
    reader = _Reader(_boundary(headers), folder)
    size = 0
    try:
        more = True
        while more:
            piece, more = await _piece(receive)
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            reader.feed(piece)
            if reader.waiting >= BUFFER:
                await asyncio.to_thread(reader.flush)
        await asyncio.to_thread(reader.finish)
        yield reader.form
    except OSError as error:
        raise fault_of(error, f"The body could not be stored: {error.strerror}.") from error
    finally:
        await asyncio.to_thread(reader.close)


async def _piece(receive: Receive) -> tuple[bytes, bool]:
    try:
        async with asyncio.timeout(SILENCE):
            message = await receive()
    except TimeoutError:
        raise RequestTimeout(f"Nothing of the body came for {SILENCE:g} s.") from None
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


def _boundary(headers: Mapping[str, str]) -> bytes:
    kind, options = parse_options_header(headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise MalformedBody("The content-type must be 'multipart/form-data' with a boundary.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise MalformedBody("A content-encoding is not supported; send the body as it is.")
    return options[b"boundary"]


class _Reader:
    """Takes pieces of a body, and writes its files when told to."""

    def __init__(self, boundary: bytes, folder: Path) -> None:
        self.form = Form()
        self.waiting = 0  # bytes of files that are not written yet
        self._folder = folder
        self._written: list[tuple[IO[bytes], bytearray]] = []
        self._opened: list[IO[bytes]] = []
        self._headers: dict[str, str] = {}
        self._header = ""
        self._name = ""
        self._value: bytearray | None = None  # of the field that is being read
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_over,
                    "on_headers_finished": self._begin,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_end": self._over,
                },
            )
        except FormParserError as error:
            raise MalformedBody(f"The form cannot be read: {error}.") from None

    def feed(self, piece: bytes) -> None:
        """Take the next piece. Raises MalformedBody or InvalidField."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise MalformedBody(f"The form cannot be read: {error}.") from None

    def flush(self) -> None:
        """Write what waits; blocks."""
        for file, bytes in self._written:
            file.write(bytes)
        self._written.clear()
        self.waiting = 0

    def finish(self) -> None:
        """The body is over; blocks. Raises MalformedBody where the form is not."""
        if not self._ended:
            raise MalformedBody("The form was cut off before its end.")
        self.flush()
        for file in self._opened:
            file.flush()

    def close(self) -> None:
        """Remove the files that are still in the folder; blocks."""
        for file in self._opened:
            with contextlib.suppress(OSError):  # what a full disk did not take
                file.close()
            Path(file.name).unlink(missing_ok=True)

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].decode("latin-1").lower()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        said = self._headers.get(self._header, "")
        self._headers[self._header] = said + data[start:end].decode("latin-1")

    def _header_over(self) -> None:
        self._header = ""

    def _begin(self) -> None:
        headers, self._headers = self._headers, {}
        options = _options(headers.get("content-disposition", ""))
        self._name = options.get("name", "")
        if not self._name:
            raise MalformedBody("The form has a part without a name.")
        if "filename" not in options:
            if len(self.form.fields) >= MAX_FIELDS:
                raise MalformedBody(f"The form has over {MAX_FIELDS} fields.")
            self._value = bytearray()
            return
        if len(self.form.uploads) >= MAX_FILES:
            raise MalformedBody(f"The form has over {MAX_FILES} files.")
        file = tempfile.NamedTemporaryFile(  # noqa: SIM115 (closed by `close`)
            dir=self._folder, prefix=".upload-", delete=False
        )
        self._opened.append(file)
        kind = headers.get("content-type", "application/octet-stream")
        self.form.uploads.append(Upload(self._name, options["filename"], kind, Path(file.name)))
        self._value = None

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._value is not None:
            self._value += data[start:end]
            if len(self._value) > MAX_FIELD_BYTES:
                raise InvalidField(self._name[:80], f"over {MAX_FIELD_BYTES} bytes.")
            return
        file = self._opened[-1]
        if not self._written or self._written[-1][0] is not file:
            self._written.append((file, bytearray()))
        self._written[-1][1].extend(data[start:end])
        self.waiting += end - start
        self.form.uploads[-1].size += end - start

    def _end(self) -> None:
        if self._value is not None:
            try:
                self.form.fields.append((self._name, self._value.decode()))
            except UnicodeDecodeError:
                raise InvalidField(self._name[:80], "expected UTF-8.") from None
            self._value = None

    def _over(self) -> None:
        self._ended = True


def _options(disposition: str) -> dict[str, str]:
    """The options of a content-disposition, as UTF-8, which is what browsers and clients send."""
    _, found = parse_options_header(disposition)
    return {
        name.decode("latin-1").lower(): value.decode("utf-8", "replace")
        for name, value in found.items()
    }
