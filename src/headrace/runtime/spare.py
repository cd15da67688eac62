"""Engine processes at their start; one may be kept that has all its libraries and no model yet.

To start Python and its libraries takes as long as to load a small model. Where models take turns in
a memory that does not hold them all, the next one finds a process that has this behind it. It waits
on its channel, takes no processor time, and ends when the channel closes, as every engine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

LINE_LIMIT = 256 * 1024 * 1024  # bytes; a step's news of all requests is far below
AFTER = 0.5  # seconds: not beside the first tokens of the model that was just loaded


@dataclass(frozen=True, slots=True)
class Worker:
    """A process that waits for its model, and our end of the channel."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def end(self) -> None:
        """Close the channel, on which the process ends."""
        self.writer.close()
        await self.process.wait()


async def start_worker(hidden: Collection[str] = ()) -> Worker:
    """Start a process without the `hidden` variables of the environment; its channel takes
    messages at once. Raises OSError."""
    ours, theirs = socket.socketpair()
    with theirs:
        # first, so that a process that is there is never without its channel
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_LIMIT)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "headrace.runtime.worker",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name not in hidden},
            )
        except BaseException:
            writer.close()
            raise
    return Worker(process, reader, writer)


class Spare:
    """At most one process without a model. `wanted` says whether to keep one, `hidden` which
    variables of the environment none gets: secrets that are not for it."""

    def __init__(
        self, wanted: Callable[[], bool] = lambda: False, hidden: Collection[str] = ()
    ) -> None:
        self.wanted = wanted
        self.hidden = hidden
        self.timer: asyncio.TimerHandle | None = None
        self.coming: asyncio.Task[Worker] | None = None

    async def take(self) -> Worker:
        """The spare process, or a new one where there is none or it has died. Raises OSError."""
        coming = self.part_with()
        if coming is not None:
            with contextlib.suppress(OSError):
                try:
                    worker = await asyncio.shield(coming)
                except asyncio.CancelledError:
                    self.coming = coming  # for whoever comes next
                    raise
                if worker.process.returncode is None:
                    return worker
                await worker.end()
        return await start_worker(self.hidden)

    def renew(self) -> None:
        """Start one soon, if one is wanted then and there is none."""
        if self.timer is None and self.coming is None:
            self.timer = asyncio.get_running_loop().call_later(AFTER, self.begin)

    def begin(self) -> None:
        """Start one, if one is wanted."""
        self.timer = None
        if self.wanted():
            self.coming = asyncio.create_task(start_worker(self.hidden))

    async def close(self) -> None:
        """End the one that is there."""
        coming = self.part_with()
        if coming is not None:
            with contextlib.suppress(OSError):
                await (await coming).end()

    def part_with(self) -> asyncio.Task[Worker] | None:
        """The one that is there or comes, which is nobody's then."""
        if self.timer is not None:
            self.timer.cancel()
        coming, self.timer, self.coming = self.coming, None, None
        return coming
