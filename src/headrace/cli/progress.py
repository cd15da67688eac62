"""A pull, drawn: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Drawn:
    """`registry.progress.Progress` on a rich progress bar, one row a stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def stage(self, text: str) -> None:
        """Finish the row before and begin one for this stage."""
        self._finish()
        self._task = self._bars.add_task(text, total=None)
        if not self._bars.console.is_terminal:
            print(text, file=sys.stderr, flush=True)

    def total(self, size: int | None, done: int) -> None:
        """Scale the row; a resumed download begins at `done` bytes."""
        if self._task is not None:
            self._bars.update(self._task, total=size, completed=done)

    def advance(self, size: int) -> None:
        """Move the row by `size` bytes."""
        if self._task is not None:
            self._bars.advance(self._task, size)

    def _finish(self) -> None:
        if self._task is not None:
            task = self._bars.tasks[self._bars.task_ids.index(self._task)]
            if task.total is None:
                self._bars.update(self._task, total=1, completed=1, visible=False)


@contextmanager
def shown() -> Iterator[Drawn]:
    """A progress display on stderr while the block runs."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
    )
    if not bars.console.is_terminal:
        bars.disable = True
    with bars:
        yield Drawn(bars)
