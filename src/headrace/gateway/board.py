"""Where limits are counted: in this process, or in memory that several processes share.

Shared counts are made before the processes are forked. Whoever changes several of them together
holds the row's lock meanwhile; it is the kernel's, which takes it back from a process that dies.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
import weakref
from hashlib import blake2b
from types import TracebackType

MOST_WORKERS = 64
MOST_ROWS = 16_384
MINUTE = 60  # seconds
LIVE = MINUTE + 1  # seconds that a second of a window counts: it may have begun at its end
WINDOW = 2 + LIVE  # the newest second, the sum, the amount of each second
ROW = 1 + MOST_WORKERS + 2 * WINDOW  # whose it is, what runs in each process, two windows
WORD = 8  # bytes


class BoardFull(OSError):
    """There are more limits than can be counted over several processes."""


class Places:
    """What runs now, in this process and in all."""

    def __init__(self, cells: memoryview[int], me: int) -> None:
        self._cells = cells
        self._me = me
        self._alone = len(cells) == 1

    def take(self) -> None:
        """One more runs here."""
        self._cells[self._me] += 1

    def leave(self) -> None:
        """One less runs here."""
        self._cells[self._me] -= 1

    @property
    def mine(self) -> int:
        """What runs here."""
        return self._cells[self._me]

    @property
    def taken(self) -> int:
        """What runs in all processes."""
        return self._cells[0] if self._alone else sum(self._cells)


class Row:
    """The counts of one limit; a context in which nobody else changes them."""

    def __init__(
        self, cells: memoryview[int], workers: int, me: int, lock: int | None, place: int
    ) -> None:
        self.places = Places(cells[1 : 1 + workers], me)
        self.requests = cells[-2 * WINDOW : -WINDOW]
        self.tokens = cells[-WINDOW:]
        self._lock = lock
        self._place = place

    def __enter__(self) -> None:
        if self._lock is not None:
            fcntl.lockf(self._lock, fcntl.LOCK_EX, 1, self._place)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, self._place)


class Board:
    """The counts of `workers` processes, of which `me` is one; for one event loop in each."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.me = 0
        self._places: dict[int, int] = {}  # the rows in use, by whose they are
        self._shared: memoryview[int] | None = None
        if workers > 1:
            # The first row is the board's own: how many are in use, and how often keys changed.
            size = WORD * ROW * (1 + MOST_ROWS)
            self._shared = memoryview(mmap.mmap(-1, size)).cast("q")
            self._file, path = tempfile.mkstemp()  # nothing is in it: it is what is locked
            os.unlink(path)
            weakref.finalize(self, os.close, self._file)

    def join(self, me: int) -> None:
        """Count as process `me` from here on; what another of its number left running is over."""
        self.me = me
        if self._shared is not None:
            for row in range(1, 1 + self._shared[0]):
                self._shared[row * ROW + 1 + me] = 0

    def row(self, name: str) -> Row:
        """The counts of `name`, equal in all processes. Raises BoardFull."""
        if self._shared is None:
            cells = memoryview(bytearray(WORD * (2 + 2 * WINDOW))).cast("q")
            return Row(cells, 1, 0, None, 0)
        place = self._place(self._shared, name)
        cells = self._shared[place * ROW : (place + 1) * ROW]
        return Row(cells, self.workers, self.me, self._file, place)

    @property
    def keys_changed(self) -> int:
        """How often a process has said that it changed keys."""
        return 0 if self._shared is None else self._shared[1]

    def say_keys_changed(self) -> None:
        """Let every process read the keys again before it answers the next call."""
        if self._shared is not None:
            fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 0)
            self._shared[1] += 1
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)

    def _place(self, cells: memoryview[int], name: str) -> int:
        digest = blake2b(name.encode(), digest_size=WORD).digest()
        whose = int.from_bytes(digest, "big", signed=True)
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, 0)
        try:
            used = cells[0]
            for row in range(1 + len(self._places), 1 + used):
                self._places[cells[row * ROW]] = row
            if whose not in self._places:
                if used == MOST_ROWS:
                    raise BoardFull(f"Over {MOST_ROWS} limits are not counted by several workers.")
                cells[(used + 1) * ROW] = whose
                cells[0] = used + 1
                self._places[whose] = used + 1
            return self._places[whose]
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, 0)
