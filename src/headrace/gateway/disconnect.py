"""Clients that hang up: noticed at every moment, and their generation stopped: streaming or not,
before the first token or after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

from headrace.gateway.connection import Client
from headrace.protocol.generation import Event


class ClientGone(Exception):
    """The client hung up: nobody is there to answer."""


class Events(Protocol):
    """A running generation as one listener sees it."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def aclose(self) -> None:
        """Stop it, or stop listening."""


class client_present:  # noqa: N801 (a context, as those of contextlib)
    """Run the block while the client is there; when it hangs up the block is cancelled and
    ClientGone raised."""

    __slots__ = ("_client", "_gone", "_task")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._gone = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("client_present needs a task to cancel")
        if self._client.lost:
            raise ClientGone
        self._task = task
        self._client.on_loss = self._leave

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._client.on_loss = None
        if self._gone and isinstance(error, asyncio.CancelledError) and not self._task.uncancel():
            raise ClientGone from None

    def _leave(self) -> None:
        self._gone = True
        self._task.cancel()


async def close(events: Events) -> None:
    """Await the clean-up of a generation to its end, also when cancelled meanwhile."""
    closing = asyncio.ensure_future(events.aclose())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait([closing])
        raise
