"""What each of several processes last said of itself, in memory that they share.

It is made before they are forked. Each writes its own place only, the two halves of it in turn, so
that a process that dies while it writes leaves what it said before.
"""

from __future__ import annotations

import mmap
import struct
import time
import zlib
from collections.abc import Callable

HALF = 512 * 1024  # bytes, of which only those that are written take memory
PLACE = 2 * HALF
HEAD = struct.Struct("<dIII")  # monotonic seconds, its number, length, CRC-32
LATE = 1.0  # seconds that others are waited for
POLL = 0.01


class Snapshots:
    """The snapshots of `count` processes, of which `me` is one. `clock` gives seconds that are the
    same in all processes."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.me = 0
        self._count = count
        self._clock = clock
        self._memory = mmap.mmap(-1, count * PLACE)
        self._number = 0  # of the last that this process wrote

    def join(self, me: int) -> bytes | None:
        """Write at place `me` from here on; what its last owner said."""
        self.me = me
        _, self._number, said = self._read(me)
        return said

    def say(self, content: bytes) -> None:
        """Leave `content`; what is too long for its place is left out."""
        if len(content) > HALF - HEAD.size:
            return
        self._number += 1
        start = self.me * PLACE + (self._number % 2) * HALF
        head = HEAD.pack(self._clock(), self._number, len(content), zlib.crc32(content))
        self._memory[start + HEAD.size : start + HEAD.size + len(content)] = content
        self._memory[start : start + HEAD.size] = head

    def others(self) -> list[bytes]:
        """What every other process said, after now where it does so soon enough; blocks."""
        asked = self._clock()
        others = [place for place in range(self._count) if place != self.me]
        while any(self._read(place)[0] < asked for place in others):
            if self._clock() > asked + LATE:
                break
            time.sleep(POLL)
        said = (self._read(place)[2] for place in others)
        return [content for content in said if content is not None]

    def _read(self, place: int) -> tuple[float, int, bytes | None]:
        """When, the number, and the content of the newest whole half of a place."""
        found: tuple[float, int, bytes | None] = (0.0, 0, None)
        for start in (place * PLACE, place * PLACE + HALF):
            at, number, length, checksum = HEAD.unpack_from(self._memory, start)
            content = self._memory[start + HEAD.size : start + HEAD.size + min(length, HALF)]
            if number > found[1] and zlib.crc32(content) == checksum:
                found = at, number, content
        return found
