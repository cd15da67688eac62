"""What came of a batch's lines: its output and error files, which are also its memory.

A line is done when it is in one of them, whole; so whatever kills the process, a batch goes on
behind the last whole line, and no line is in them twice.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from headrace.protocol.openai_batches import BatchUsage, RequestCounts, added, usage_of

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode
_USAGE = BatchUsage()


class _Lines:
    """One file that is appended to, a whole line at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.size = 0  # of its whole lines

    def recovered(self) -> list[dict[str, Any]]:
        """What whole lines say; a torn one behind them is cut off. Blocks."""
        found: list[dict[str, Any]] = []
        with self.path.open("rb") as lines:
            for raw in lines:
                if not raw.endswith(b"\n"):
                    break
                try:
                    line = _decode(raw)
                except msgspec.DecodeError:
                    break
                found.append({"custom_id": line.get("custom_id"), "usage": _usage(line)})
                self.size += len(raw)
        os.ftruncate(self._file, self.size)
        return found

    def append(self, line: bytes) -> None:
        """Write one line. Raises OSError; then nothing of it stands."""
        at = 0
        try:
            while at < len(line):
                at += os.pwrite(self._file, line[at:], self.size + at)
        except OSError:
            os.ftruncate(self._file, self.size)
            raise
        self.size += len(line)

    def close(self) -> None:
        """Bring it to the disk, and close it; blocks."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)


class Ledger:
    """The output and error files of one batch. The constructor and `close` block."""

    def __init__(self, output: Path, errors: Path) -> None:
        self.usage = _USAGE
        self.completed = self.failed = 0
        self.done: set[str] = set()  # custom ids
        self._output, self._errors = _Lines(output), _Lines(errors)
        for line in self._output.recovered():
            self.completed += 1
            self.done.add(line["custom_id"])
            self.usage = added(self.usage, line["usage"])
        for line in self._errors.recovered():
            self.failed += 1
            self.done.add(line["custom_id"])

    @property
    def output_size(self) -> int:
        """Bytes."""
        return self._output.size

    @property
    def errors_size(self) -> int:
        """Bytes."""
        return self._errors.size

    def counts(self, total: int) -> RequestCounts:
        """As the batch tells them."""
        return RequestCounts(total, self.completed, self.failed)

    def answered(self, custom_id: str, line: dict[str, Any]) -> None:
        """A line was answered, well or not. Raises OSError; then it is not done."""
        well = line["error"] is None and line["response"]["status_code"] < 400
        (self._output if well else self._errors).append(_encode(line) + b"\n")
        self.done.add(custom_id)
        if well:
            self.completed += 1
            self.usage = added(self.usage, _usage(line))
        else:
            self.failed += 1

    def close(self) -> None:
        """Bring both to the disk."""
        try:
            self._output.close()
        finally:
            self._errors.close()


def _usage(line: dict[str, Any]) -> BatchUsage:
    response = line.get("response")
    body = response.get("body") if isinstance(response, dict) else None
    return usage_of(body) if isinstance(body, dict) else _USAGE
