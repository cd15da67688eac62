"""Server-sent events: framing out, and an incremental decoder for what comes in.

Source: the WHATWG HTML standard, section 9.2 (server-sent events).
"""

from __future__ import annotations

from msgspec import Struct

from headrace.protocol.errors import UpstreamError

CONTENT_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"  # how an OpenAI stream says that it is complete
HEARTBEAT = b": keep-alive\n\n"  # a comment: keeps proxies from closing a silent connection

MAX_EVENT_BYTES = 8 * 1024 * 1024

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ServerSentEvent(Struct, frozen=True):
    """One event. `data` joins its data lines with a line feed."""

    data: str
    event: str = "message"
    id: str | None = None


def data_frame(payload: bytes) -> bytes:
    """One event with one data line. `payload` is UTF-8 without a line break, such as JSON."""
    return b"data: " + payload + b"\n\n"


class SSEDecoder:
    """Turns a byte stream, cut anywhere, into events.

    Lines end with CR, LF or CRLF. Bytes that are not UTF-8 become U+FFFD, as the standard says.
    A line, or the lines of one event, of over `max_event_bytes` raise `UpstreamError`: nothing
    an upstream sends makes the buffer grow without end.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._partial: list[bytes] = []  # pieces of a line whose end has not come
        self._partial_bytes = 0
        self._after_cr = False  # a line feed that comes next belongs to the line before
        self._first_line = True
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._event = b""
        self._id: bytes | None = None

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that `chunk` completes."""
        if self._after_cr and chunk:
            self._after_cr = False
            if chunk[:1] == b"\n":
                chunk = chunk[1:]
        self._after_cr = self._after_cr or chunk[-1:] == b"\r"
        events: list[ServerSentEvent] = []
        for line in chunk.splitlines(keepends=True):
            end = line[-1:]
            if end != b"\n" and end != b"\r":
                self._keep(line)
                break
            if self._partial:
                self._keep(line)
                line = b"".join(self._partial)
                self._partial.clear()
                self._partial_bytes = 0
            self._line(line.rstrip(b"\r\n"), events)
        return events

    def finish(self) -> list[ServerSentEvent]:
        """The event that the end of the stream completes, where its blank line never came."""
        events: list[ServerSentEvent] = []
        if self._partial:
            line = b"".join(self._partial)
            self._partial.clear()
            self._partial_bytes = 0
            self._line(line, events)
        self._dispatch(events)
        return events

    def _keep(self, piece: bytes) -> None:
        self._partial.append(piece)
        self._partial_bytes += len(piece)
        self._check(self._partial_bytes)

    def _line(self, line: bytes, events: list[ServerSentEvent]) -> None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            self._dispatch(events)
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
            self._check(self._data_bytes)
        elif name == b"event":
            self._event = value
        elif name == b"id" and b"\0" not in value:
            self._id = value

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        if self._data:
            events.append(
                ServerSentEvent(
                    data=b"\n".join(self._data).decode("utf-8", "replace"),
                    event=self._event.decode("utf-8", "replace") or "message",
                    id=None if self._id is None else self._id.decode("utf-8", "replace"),
                )
            )
            self._data.clear()
            self._data_bytes = 0
        self._event = b""

    def _check(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise UpstreamError(
                f"The upstream sent an event of over {self._max_event_bytes} bytes."
            )
