"""A gateway in a thread of its own, for clients that block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def threaded(make: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """What `make` gives, entered and left in an event loop that runs beside the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        manager = make()
        given = asyncio.run_coroutine_threadsafe(manager.__aenter__(), loop).result(60)
        try:
            yield given
        finally:
            asyncio.run_coroutine_threadsafe(manager.__aexit__(None, None, None), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
