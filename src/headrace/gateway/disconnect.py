"""Clients that hang up: noticed at every moment, and their generation stopped: streaming or not,
before the first token or after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
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


@contextmanager
def client_present(client: Client) -> Iterator[None]:
    """Run the block while the client is there; when it hangs up the block is cancelled and
    ClientGone raised."""
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("client_present needs a task to cancel")
    if client.lost:
        raise ClientGone
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    client.on_loss = leave
    try:
        yield
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        client.on_loss = None


async def close(events: Events) -> None:
    """Await the clean-up of a generation to its end, also when cancelled meanwhile."""
    closing = asyncio.ensure_future(events.aclose())
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait([closing])
        raise
