"""How a pull tells what it is doing. The command line draws it; the default says nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the course of one pull, from the thread that pulls."""

    def stage(self, text: str) -> None:
        """A new stage has begun, such as `resolving` or `downloading X`."""
        ...

    def total(self, size: int | None, done: int) -> None:
        """The stage has `size` bytes (None: unknown), `done` of which are there already."""
        ...

    def advance(self, size: int) -> None:
        """`size` more bytes are done."""
        ...


class Silent:
    """Progress that is not shown."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def total(self, size: int | None, done: int) -> None:
        """Say nothing."""

    def advance(self, size: int) -> None:
        """Say nothing."""
