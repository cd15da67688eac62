"""The lines of a batch's input file: read a bounded piece at a time, checked one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from msgspec import Struct

from headrace.gateway.formats import FORMATS
from headrace.protocol.errors import HeadraceError
from headrace.protocol.generation import Endpoint, GenerationRequest
from headrace.protocol.json import decode_object
from headrace.protocol.openai_batches import BatchEndpoint, LineProblem

MAX_LINES = 50_000
MAX_CUSTOM_ID = 512  # characters
PIECE_LINES, PIECE_BYTES = 64, 1024 * 1024  # read, or checked, at once

ENDPOINTS: dict[BatchEndpoint, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}


RawLine = tuple[int, bytes | None]  # its number, and None where it is too long


class Line(Struct, frozen=True):
    """One request of a batch; `number` counts from 1."""

    number: int
    custom_id: str
    body: dict[str, Any]


class LineFault(Exception):
    """What is wrong with a line."""

    def __init__(self, problem: LineProblem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class LineFile:
    """The lines of a file, blank ones left out. Its methods block.

    A line of over `most` bytes comes as None. Raises OSError where the file cannot be opened.
    """

    def __init__(self, path: Path, most: int) -> None:
        self._file: IO[bytes] = path.open("rb")
        self._most = most
        self._number = 0

    def take(self) -> list[RawLine]:
        """The next lines with their numbers; empty at the end."""
        taken: list[RawLine] = []
        size = 0
        while len(taken) < PIECE_LINES and size < PIECE_BYTES:
            raw = self._file.readline(self._most + 2)
            if not raw:
                break
            self._number += 1
            size += len(raw)
            text = raw.strip()
            if len(raw) > self._most + 1 and not raw.endswith(b"\n"):
                self._skip()
                taken.append((self._number, None))
            elif text:
                taken.append((self._number, text))
        return taken

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _skip(self) -> None:
        """Go to the end of a line that is too long."""
        while (rest := self._file.readline(PIECE_BYTES)) and not rest.endswith(b"\n"):
            pass


def read_line(number: int, raw: bytes | None, url: BatchEndpoint) -> Line:
    """The request in one line. Raises LineFault."""
    if raw is None:
        raise _fault(number, "line_too_long", "The line is over the limit of a body's size.")
    try:
        fields = decode_object(raw)
    except HeadraceError as error:
        raise _fault(number, "invalid_json_line", f"Not a JSON object: {error.message}") from None
    custom_id, body = fields.get("custom_id"), fields.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID:
        wanted = f"expected a string of 1 to {MAX_CUSTOM_ID} characters."
        raise _fault(number, "invalid_value", f"Invalid 'custom_id': {wanted}", "custom_id")
    if fields.get("method") != "POST":
        raise _fault(number, "invalid_method", "Invalid 'method': expected 'POST'.", "method")
    if fields.get("url") != url:
        wanted = f"Invalid 'url': expected the batch's endpoint, '{url}'."
        raise _fault(number, "mismatched_endpoint", wanted, "url")
    if not isinstance(body, dict):
        raise _fault(number, "invalid_value", "Invalid 'body': expected an object.", "body")
    return Line(number, custom_id, body)


def checked(
    pieces: list[RawLine],
    url: BatchEndpoint,
    permit: Callable[[str], None],
    seen: set[str],
) -> Iterator[LineProblem]:
    """What is wrong with these lines. `permit` raises where a model may not be asked for; `seen`
    holds the custom ids before, and takes these."""
    for number, raw in pieces:
        try:
            line = read_line(number, raw, url)
            if line.custom_id in seen:
                said = f"The custom_id '{line.custom_id[:80]}' was used by a line before."
                raise _fault(number, "duplicate_custom_id", said, "custom_id")
            seen.add(line.custom_id)
            _check_body(line, url, permit)
        except LineFault as fault:
            yield fault.problem


def _check_body(line: Line, url: BatchEndpoint, permit: Callable[[str], None]) -> None:
    try:
        request = FORMATS[ENDPOINTS[url]].read(line.body)
        permit(request.model)
    except HeadraceError as error:
        param = "body" if error.param is None else f"body.{error.param}"
        code = error.code or error.kind
        raise _fault(line.number, code, error.message, param) from None
    if isinstance(request, GenerationRequest) and request.stream:
        said = "Invalid 'stream': a line of a batch is answered whole."
        raise _fault(line.number, "invalid_value", said, "body.stream")


def _fault(number: int, code: str, message: str, param: str | None = None) -> LineFault:
    return LineFault(LineProblem(code=code, message=message, line=number, param=param))
