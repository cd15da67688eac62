"""A link between a device and host memory that takes its time: copies are over when a test says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.runtime.backends.base import Move
from headrace.runtime.backends.reference import ReferenceBackend


class Link:
    """Copies in order, each put off until somebody waits for it or `advance` lets it go.

    `read` and `write` are a block's content on the device. As on a GPU, what goes out is read at
    once; when it is on the host, and when what comes in is on the device, is another matter.
    """

    def __init__(self, read: Callable[[int], Any], write: Callable[[int, Any], None]) -> None:
        self.read = read
        self.write = write
        self.host: dict[int, Any] = {}
        self.waiting: deque[Callable[[], None]] = deque()
        self.begun = self.over = 0
        self.fault: Exception | None = None

    def copy(self, moves: Sequence[Move]) -> Sent:
        """Begin moves."""
        if self.fault is not None:
            raise self.fault
        for block, slot, out in moves:
            content = self.read(block) if out else None
            self.waiting.append(lambda at=(block, slot, out, content): self.carry(*at))  # type: ignore[misc]
            self.begun += 1
        return Sent(self, self.begun)

    def carry(self, block: int, slot: int, out: bool, content: Any) -> None:
        """Make one move."""
        if out:
            self.host[slot] = content
        else:
            self.write(block, self.host[slot])

    def advance(self, count: int = 1) -> None:
        """Let so many moves be over."""
        while count and self.waiting:
            self.waiting.popleft()()
            self.over += 1
            count -= 1


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """Moves of a link, up to its `last`."""

    link: Link
    last: int

    def done(self) -> bool:
        return self.link.over >= self.last

    def join(self) -> None:
        self.link.advance(max(0, self.last - self.link.over))


class Offloading:
    """The reference with blocks in host memory, over a slow link."""

    def __init__(self, inner: ReferenceBackend, host_blocks: int) -> None:
        self.inner = inner
        self.host_blocks = host_blocks
        self.link = Link(self.read, self.write)
        self.rows = 0  # that were computed

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def read(self, block: int) -> Any:
        return tuple(part[:, self.slots(block)].copy() for part in self.parts)

    def write(self, block: int, content: Any) -> None:
        for part, values in zip(self.parts, content, strict=True):
            part[:, self.slots(block)] = values

    @property
    def parts(self) -> tuple[Any, Any]:
        return self.inner.keys, self.inner.values

    def slots(self, block: int) -> slice:
        size = self.inner.kv.block_size
        return slice(block * size, block * size + size)

    def copy_blocks(self, moves: Sequence[Move]) -> Sent:
        return self.link.copy(moves)

    def launch(self, batch: Any, after: Any = None) -> Any:
        self.rows += len(batch.tokens)
        return self.inner.launch(batch, after)
