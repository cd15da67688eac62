"""An append-only journal of framed entries in segment files; it outlives the process that wrote it.

An entry is `HRJ1`, its length and the CRC-32 of its bytes (both little-endian uint32), then the
bytes. A segment is written by one process, which holds an exclusive `flock` on it: a segment that
can be locked belongs to nobody alive and is adopted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import struct
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

MAGIC = b"HRJ1"
HEADER = struct.Struct("<4sII")
MAX_ENTRY_BYTES = 64 * 1024 * 1024
READ_BYTES = 128 * 1024
SUFFIX = ".journal"

log = logging.getLogger(__name__)


class JournalRefused(OSError):
    """The journal takes no more entries: it is at its maximum size, or closed."""


class Scan(NamedTuple):
    """Whole entries from the start of a buffer, the bytes they took, how many were unreadable."""

    entries: list[bytes]
    consumed: int
    corrupt: int


def header(payload: bytes) -> bytes:
    """The frame that goes before `payload`."""
    return HEADER.pack(MAGIC, len(payload), zlib.crc32(payload))


def scan(buffer: bytes, *, final: bool, limit: int) -> Scan:
    """Read at most `limit` entries from the start of `buffer`.

    `final` says that no byte follows the buffer: an entry that is not whole was torn by the end of
    its writer and is dropped. Otherwise it is left for a longer buffer. A damaged entry is skipped
    by its length if another frame begins there, else up to the next readable frame.
    """
    entries: list[bytes] = []
    corrupt = position = 0
    while len(entries) < limit and position < len(buffer):
        payload, after = _entry(buffer, position)
        if payload is not None:
            entries.append(payload)
            position = after
            continue
        torn = after > len(buffer)
        resumed = None if torn and not final else _resume(buffer, position, after)
        if resumed is not None:
            corrupt += 1
            position = resumed
        elif final:
            corrupt += 0 if torn else 1
            position = len(buffer)
        else:
            break
    return Scan(entries, position, corrupt)


def _entry(buffer: bytes, position: int) -> tuple[bytes | None, int]:
    """The entry at `position` (None if unreadable), and where the next one should begin.

    A next beginning past the buffer says that bytes are missing.
    """
    start = position + HEADER.size
    if start > len(buffer):
        return None, start
    magic, length, checksum = HEADER.unpack_from(buffer, position)
    if magic != MAGIC or length > MAX_ENTRY_BYTES:
        return None, position
    after = start + length
    payload = buffer[start:after]
    if after > len(buffer) or zlib.crc32(payload) != checksum:
        return None, after
    return payload, after


def _resume(buffer: bytes, position: int, after: int) -> int | None:
    if position < after <= len(buffer) and buffer.startswith(MAGIC, after):
        return after
    candidate = buffer.find(MAGIC, position + 1)
    while candidate >= 0:
        if _entry(buffer, candidate)[0] is not None:
            return candidate
        candidate = buffer.find(MAGIC, candidate + 1)
    return None


@dataclass(eq=False)
class Segment:
    """One locked file: bytes before `moved` are stored, bytes before `end` are whole entries."""

    path: Path
    descriptor: int
    end: int = 0
    moved: int = 0
    sealed: bool = False  # nothing will be appended
    synced: int = 0

    def read(self, limit: int) -> Scan:
        """At most `limit` entries after `moved`; the caller sets `moved` once they are stored.

        Raises OSError if the file cannot be read.
        """
        size = READ_BYTES
        while True:
            wanted = min(size, self.end - self.moved)
            buffer = os.pread(self.descriptor, wanted, self.moved)
            final = self.moved + len(buffer) == self.end or len(buffer) < wanted
            found = scan(buffer, final=final, limit=limit)
            if found.consumed or final:
                consumed = self.end - self.moved if not buffer else found.consumed
                return Scan(found.entries, consumed, found.corrupt)
            size *= 2

    @property
    def stored(self) -> bool:
        """Whether all of it has been moved."""
        return self.moved >= self.end

    def sync(self) -> None:
        """Make what is in the file survive a power cut."""
        end = self.end
        if end > self.synced:
            os.fdatasync(self.descriptor)
            self.synced = end

    def close(self) -> None:
        """Delete the file if all of it is stored, and let go of the lock."""
        if self.stored:
            with contextlib.suppress(OSError):  # left there, it is replayed once more
                self.path.unlink()
        os.close(self.descriptor)


class Journal:
    """The segments of one process in one directory; `append` may be called from any thread."""

    def __init__(self, directory: Path, *, segment_bytes: int, max_bytes: int) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._segments: list[Segment] = []
        self._bytes = 0
        self._closed = False
        directory.mkdir(parents=True, exist_ok=True)
        self._current: Segment | None = None

    def append(self, payload: bytes) -> None:
        """Write one entry with one system call; nothing is synced.

        The lock orders writers as the file's own lock would; the write goes to the page cache.
        Raises OSError if it could not be written whole; then nothing of it is left.
        """
        frame = header(payload)
        size = len(frame) + len(payload)
        with self._lock:
            segment = self._writable(size)
            try:
                written = os.writev(segment.descriptor, (frame, payload))
                if written < size:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                self._cut(segment)
                raise
            segment.end += size
            self._bytes += size

    def _writable(self, size: int) -> Segment:
        if self._closed:
            raise JournalRefused("The journal is closed.")
        if self._bytes + size > self._max_bytes:
            raise JournalRefused(f"The journal is at its maximum of {self._max_bytes} bytes.")
        current = self._current
        if current is None or current.sealed or current.end >= self._segment_bytes:
            fresh = self._create()
            if current is not None:
                current.sealed = True
            self._segments.append(fresh)
            self._current = current = fresh
        return current

    def _cut(self, segment: Segment) -> None:
        try:
            os.ftruncate(segment.descriptor, segment.end)
        except OSError:
            segment.sealed = True  # what lies after `end` is never read by this process

    def _create(self) -> Segment:
        while True:
            name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._numbers)}{SUFFIX}"
            path = self._directory / name
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL
            descriptor = os.open(path, flags, 0o600)
            if _locked(descriptor):
                return Segment(path, descriptor)
            os.close(descriptor)  # another process took the new file for an orphan; it deletes it

    def adopt(self) -> None:
        """Take over the segments whose writer is gone. Raises OSError."""
        own = {segment.path for segment in self.segments()}
        for path in sorted(self._directory.glob("*" + SUFFIX)):
            if path in own:
                continue
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue  # its owner stored and deleted it just now
            except OSError as error:
                log.warning("A journal file is left alone: %s", error)
                continue
            if not _locked(descriptor):
                os.close(descriptor)
                continue
            segment = Segment(path, descriptor, os.fstat(descriptor).st_size, sealed=True)
            with self._lock:
                self._segments.append(segment)
                self._bytes += segment.end

    def segments(self) -> list[Segment]:
        """The live segments, a copy of the list."""
        with self._lock:
            return list(self._segments)

    def retire(self, segment: Segment) -> None:
        """Delete a segment that is sealed and stored."""
        with self._lock:
            self._segments.remove(segment)
            self._bytes -= segment.end
            if segment is self._current:
                self._current = None
        segment.close()

    def sync(self) -> None:
        """Make every entry appended so far survive a power cut. Raises OSError."""
        unsynced = [segment for segment in self.segments() if segment.end > segment.synced]
        for segment in unsynced:
            segment.sync()
        if unsynced:
            descriptor = os.open(self._directory, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def close(self) -> None:
        """Refuse further entries, delete what is stored, keep the rest for the next process."""
        with self._lock:
            self._closed = True
        for segment in self.segments():
            with contextlib.suppress(OSError):
                segment.sync()
            self.retire(segment)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        os.close(descriptor)
        raise
    return True
