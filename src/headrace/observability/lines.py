"""Log lines of JSON, one object each, for whoever collects them.

They are written by a thread, since a pipe that nobody empties must stop no call: what does not fit
the queue is dropped, and a line tells how many. Neither content nor keys are in them.
"""

from __future__ import annotations

import logging
import queue
import threading
import traceback
from collections.abc import Callable, Mapping

import msgspec

from headrace.observability.record import CallRecord

QUEUE = 10_000  # lines
_encode = msgspec.json.Encoder().encode


class Lines:
    """Lines for `write`, which may block. `wall` gives Unix seconds; `always` is in every line."""

    def __init__(
        self,
        write: Callable[[str], object],
        wall: Callable[[], float],
        always: Mapping[str, object] | None = None,
    ) -> None:
        self._always = always or {}
        self._write = write
        self._wall = wall
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE)
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="log-lines", daemon=True)
        self._thread.start()

    def say(self, fields: Mapping[str, object]) -> None:
        """One line, with the time before `fields`; never blocks."""
        try:
            self._queue.put_nowait(
                _encode({"time": round(self._wall(), 3), **self._always, **fields})
            )
        except queue.Full:
            self._dropped += 1

    def close(self, timeout: float = 2.0) -> None:
        """Write what waits, within `timeout` seconds."""
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout)

    def _run(self) -> None:
        while (line := self._queue.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            try:
                if dropped:
                    self._write(f'{{"event":"dropped","lines":{dropped}}}\n')
                self._write(line.decode() + "\n")
            except (OSError, ValueError):  # nobody reads any more
                return


class LineHandler(logging.Handler):
    """Puts what the program logs among the lines."""

    def __init__(self, lines: Lines) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """One line for one message."""
        self._lines.say(_message_line(record))


class LineFormatter(logging.Formatter):
    """The same lines, for a process that waits for whoever reads them."""

    def format(self, record: logging.LogRecord) -> str:
        """One message."""
        return _encode({"time": round(record.created, 3), **_message_line(record)}).decode()


def _message_line(record: logging.LogRecord) -> dict[str, object]:
    """A message of the program."""
    fields: dict[str, object] = {
        "event": "log",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": record.getMessage(),
    }
    if record.exc_info is not None and record.exc_info[0] is not None:
        fields["exception"] = "".join(traceback.format_exception(*record.exc_info))
    return fields


def call_line(record: CallRecord) -> dict[str, object]:
    """A call in numbers. Times in seconds, cost in dollars."""
    return {
        "event": "call",
        "request_id": record.id,
        "key": record.tenant,
        "endpoint": record.endpoint,
        "model": record.model,
        "served_model": record.served_model,
        "provider": record.provider,
        "route": record.route,
        "cache": record.cache,
        "stream": record.stream,
        "status": record.http_status,
        "outcome": record.status,
        "error": record.error_code,
        "ttft": None if record.ttft is None else round(record.ttft, 6),
        "duration": round(record.duration, 6),
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "cached_tokens": record.cached_tokens,
        "cost": record.cost,
    }
