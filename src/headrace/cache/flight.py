"""Single flight: identical requests that run at the same time share one execution.

The execution runs in a task of its own, so any listener may leave, also the first. All read one
list of events, each by its own index: a late listener starts at the beginning, a slow one holds
nobody up and costs no second buffer. The execution runs at most `AHEAD` events in front of the
fastest listener, so a set of listeners that all stopped reading stops the upstream too. When the
last listener leaves, the execution is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import TracebackType

from headrace.protocol.errors import InternalFault
from headrace.protocol.generation import Event

AHEAD = 1024  # events

Start = Callable[[], AsyncGenerator[Event, None]]


class _Flight:
    """One execution and those who listen to it."""

    def __init__(self, start: Start, landed: Callable[[], None]) -> None:
        self.events: list[Event] = []
        self.done = False
        self.error: BaseException | None = None
        self.traceback: TracebackType | None = None  # the error's own, before listeners add theirs
        self.listeners = 0
        self.foremost = 0  # index of the fastest listener so far
        self._landed = landed
        self._news: list[asyncio.Future[None]] = []  # who waits for the next event
        self._room: asyncio.Future[None] | None = None  # what the execution waits for
        self.task = asyncio.get_running_loop().create_task(self._run(start))

    async def _run(self, start: Start) -> None:
        try:
            generator = start()
            try:
                async for event in generator:
                    self.events.append(event)
                    self._tell()
                    if len(self.events) - self.foremost >= AHEAD:
                        self._room = asyncio.get_running_loop().create_future()
                        await self._room
            finally:
                await generator.aclose()
        except asyncio.CancelledError:
            # Cancelled by the last listener, or from outside while some still listen.
            self.error = InternalFault()
            raise
        except BaseException as error:
            self.error, self.traceback = error, error.__traceback__
            if not isinstance(error, Exception):
                raise
        finally:
            self.done = True
            self._landed()
            self._tell()

    def _tell(self) -> None:
        waiting, self._news = self._news, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    async def news(self) -> None:
        """Wait until there is one more event, or the end."""
        future = asyncio.get_running_loop().create_future()
        self._news.append(future)
        await future

    def reached(self, index: int) -> None:
        """A listener has read up to `index`."""
        if index > self.foremost:
            self.foremost = index
            if self._room is not None and len(self.events) - index < AHEAD:
                if not self._room.done():
                    self._room.set_result(None)
                self._room = None


class Shared:
    """One listener's view of an execution: an async iterator over all of its events.

    Raises what the execution raised, after the events that came before. Close it (`aclose`)
    when done with it, early or not: the execution goes on while one listener has not.
    """

    def __init__(self, flight: _Flight, leave: Callable[[], None], leader: bool) -> None:
        self.leader = leader
        self._flight = flight
        self._leave = leave
        self._index = 0
        self._closed = False
        flight.listeners += 1

    def __aiter__(self) -> Shared:
        return self

    async def __anext__(self) -> Event:
        flight = self._flight
        while not self._closed:
            if self._index < len(flight.events):
                event = flight.events[self._index]
                self._index += 1
                flight.reached(self._index)
                return event
            if flight.done:
                if flight.error is not None:
                    raise flight.error.with_traceback(flight.traceback)
                break
            await flight.news()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop listening; the last one to leave ends the execution and waits for its clean-up."""
        if self._closed:
            return
        self._closed = True
        flight = self._flight
        flight.listeners -= 1
        if flight.listeners == 0 and not flight.done:
            self._leave()
            flight.task.cancel()
            await asyncio.wait([flight.task])


class SingleFlight:
    """The executions now running, by key. For one event loop."""

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def join(self, key: bytes, start: Start) -> Shared:
        """Listen to the execution of `key`, which `start` begins if none runs.

        The one whose call began it is told so (`leader`).
        """
        flight = self._flights.get(key)
        leader = flight is None
        if flight is None:
            flight = self._flights[key] = _Flight(start, lambda: self._forget(key, flight))
        joined = flight
        return Shared(joined, lambda: self._forget(key, joined), leader)

    def _forget(self, key: bytes, flight: _Flight | None) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
