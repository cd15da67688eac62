"""Identical requests at the same time share one execution."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncGenerator, Sequence

import pytest

from headrace.cache.flight import AHEAD, Shared, SingleFlight
from headrace.protocol.errors import HeadraceError, InternalFault, UpstreamError
from headrace.protocol.generation import Event, TextDelta
from tests.unit.cache.answers import answer


class Execution:
    """Something to share: gives an event whenever it is allowed to."""

    def __init__(self, events: Sequence[Event], error: Exception | None = None) -> None:
        self.started = 0
        self.given = 0
        self.closed = asyncio.Event()
        self.cleaning = asyncio.Event()
        self.clean = asyncio.Event()
        self.clean.set()
        self._events = events
        self._error = error
        self._allowed = asyncio.Semaphore(0)

    def allow(self, count: int) -> None:
        for _ in range(count):
            self._allowed.release()

    def allow_all(self) -> None:
        self.allow(len(self._events) + 1)

    async def __call__(self) -> AsyncGenerator[Event, None]:
        self.started += 1
        try:
            for event in self._events:
                await self._allowed.acquire()
                self.given += 1
                yield event
            await self._allowed.acquire()
            if self._error is not None:
                raise self._error
        finally:
            self.cleaning.set()
            await self.clean.wait()
            self.closed.set()


ANSWER = answer("a", "b", "c")


async def everything(shared: Shared) -> list[Event]:
    try:
        return [event async for event in shared]
    finally:
        await shared.aclose()


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_identical_requests_run_once_and_all_get_everything() -> None:
    flights, execution = SingleFlight(), Execution(ANSWER)
    listeners = [flights.join(b"k", execution) for _ in range(50)]
    assert [shared.leader for shared in listeners] == [True] + [False] * 49
    execution.allow_all()
    results = await asyncio.gather(*map(everything, listeners))
    assert all(result == list(ANSWER) for result in results)
    assert execution.started == 1


async def test_different_requests_do_not_share() -> None:
    flights, one, two = SingleFlight(), Execution(ANSWER), Execution(answer("x"))
    first, second = flights.join(b"1", one), flights.join(b"2", two)
    one.allow_all()
    two.allow_all()
    assert await everything(first) == list(ANSWER)
    assert await everything(second) == list(answer("x"))
    assert second.leader


async def test_a_late_listener_gets_all_events_from_the_start() -> None:
    flights, execution = SingleFlight(), Execution(ANSWER)
    first = flights.join(b"k", execution)
    execution.allow(2)
    assert [await anext(first), await anext(first)] == list(ANSWER[:2])
    late = flights.join(b"k", execution)
    assert not late.leader
    assert [await anext(late), await anext(late)] == list(ANSWER[:2])
    execution.allow_all()
    assert await everything(late) == list(ANSWER[2:])
    assert await everything(first) == list(ANSWER[2:])


async def test_a_finished_execution_is_forgotten_at_once() -> None:
    flights, execution = SingleFlight(), Execution(ANSWER)
    first = flights.join(b"k", execution)
    execution.allow_all()
    await execution.closed.wait()
    await settle()
    assert len(flights) == 0
    again = flights.join(b"k", Execution(ANSWER))
    assert again.leader
    await again.aclose()
    assert await everything(first) == list(ANSWER)


async def test_an_error_reaches_every_listener_after_the_events_before_it() -> None:
    flights = SingleFlight()
    execution = Execution(ANSWER[:2], UpstreamError("cut"))
    listeners = [flights.join(b"k", execution) for _ in range(3)]
    execution.allow_all()
    for shared in listeners:
        assert [await anext(shared), await anext(shared)] == list(ANSWER[:2])
        with pytest.raises(UpstreamError, match="cut"):
            await anext(shared)
        await shared.aclose()
    assert len(flights) == 0


async def test_an_execution_that_cannot_even_begin_fails_its_listeners() -> None:
    def broken() -> AsyncGenerator[Event, None]:
        raise UpstreamError("no pool")

    flights = SingleFlight()
    shared = flights.join(b"k", broken)
    with pytest.raises(UpstreamError, match="no pool"):
        await everything(shared)
    assert len(flights) == 0


async def test_the_first_listener_may_leave_and_the_others_go_on() -> None:
    flights, execution = SingleFlight(), Execution(ANSWER)
    first, second = flights.join(b"k", execution), flights.join(b"k", execution)
    execution.allow(1)
    await anext(first)
    await first.aclose()
    execution.allow_all()
    assert await everything(second) == list(ANSWER)


async def test_when_the_last_listener_leaves_the_execution_is_cleaned_up_before_it_returns() -> (
    None
):
    flights, execution = SingleFlight(), Execution(ANSWER)
    first, second = flights.join(b"k", execution), flights.join(b"k", execution)
    execution.allow(1)
    await anext(first)
    execution.clean.clear()
    await first.aclose()
    assert not execution.cleaning.is_set()
    leaving = asyncio.ensure_future(second.aclose())
    await execution.cleaning.wait()
    assert not leaving.done()
    assert len(flights) == 0
    execution.clean.set()
    await leaving
    assert execution.closed.is_set()


async def test_who_joins_while_an_execution_is_cancelled_begins_a_new_one() -> None:
    flights, execution, other = SingleFlight(), Execution(ANSWER), Execution(answer("new"))
    first = flights.join(b"k", execution)
    execution.allow(1)
    await anext(first)
    execution.clean.clear()
    leaving = asyncio.ensure_future(first.aclose())
    await execution.cleaning.wait()
    second = flights.join(b"k", other)
    assert second.leader
    execution.clean.set()
    await leaving
    assert len(flights) == 1
    other.allow_all()
    assert await everything(second) == list(answer("new"))


async def test_a_listener_that_is_cancelled_while_it_waits_leaves() -> None:
    flights, execution = SingleFlight(), Execution(ANSWER)
    task = asyncio.ensure_future(everything(flights.join(b"k", execution)))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert execution.closed.is_set()
    assert len(flights) == 0


async def test_leaving_before_the_execution_began_and_twice_is_fine() -> None:
    flights, execution = SingleFlight(), Execution(ANSWER)
    shared = flights.join(b"k", execution)
    await shared.aclose()
    await shared.aclose()
    assert execution.started == 0
    assert len(flights) == 0
    assert await everything(shared) == []


async def test_a_slow_listener_holds_nobody_up_and_keeps_its_place() -> None:
    events = answer(*map(str, range(3 * AHEAD)))
    flights, execution = SingleFlight(), Execution(events)
    slow, fast = flights.join(b"k", execution), flights.join(b"k", execution)
    execution.allow_all()
    assert await everything(fast) == list(events)
    assert await everything(slow) == list(events)


async def test_when_nobody_reads_the_execution_stops_a_bounded_way_ahead() -> None:
    events = answer(*map(str, range(3 * AHEAD)))
    flights, execution = SingleFlight(), Execution(events)
    shared = flights.join(b"k", execution)
    late = flights.join(b"k", execution)
    execution.allow_all()
    for _ in range(4 * AHEAD):
        await asyncio.sleep(0)
    assert execution.given == AHEAD
    await anext(shared)
    await settle()
    assert execution.given == AHEAD + 1
    await shared.aclose()
    assert await everything(late) == list(events)


async def test_an_execution_cancelled_from_outside_fails_its_listeners() -> None:
    flights, execution = SingleFlight(), Execution(ANSWER)
    before = asyncio.all_tasks()
    shared = flights.join(b"k", execution)
    (running,) = asyncio.all_tasks() - before
    await settle()
    running.cancel()
    with pytest.raises(InternalFault):
        await everything(shared)


async def test_nothing_is_held_after_the_end() -> None:
    flights = SingleFlight()

    class Marked(UpstreamError):
        pass

    async def execution() -> AsyncGenerator[Event, None]:
        yield TextDelta("a")
        raise Marked("cut")

    shared = flights.join(b"k", execution)
    try:
        await everything(shared)
    except HeadraceError as error:
        seen = weakref.ref(error)
    del shared
    await settle()
    gc.collect()
    assert seen() is None


async def test_a_thousand_listeners_that_come_and_go_leave_nothing_behind() -> None:
    flights = SingleFlight()
    executions = [Execution(answer(*"abcdefgh")) for _ in range(10)]

    async def visit(number: int) -> int:
        shared = flights.join(bytes([number % 10]), executions[number % 10])
        count = 0
        try:
            async for _ in shared:
                count += 1
                if count == number % 7:
                    break
        finally:
            await shared.aclose()
        return count

    visits = [asyncio.ensure_future(visit(number)) for number in range(1000)]
    await settle()
    for number in range(0, 1000, 3):
        visits[number].cancel()
    for execution in executions:
        execution.allow_all()
    results = await asyncio.gather(*visits, return_exceptions=True)
    assert sum(isinstance(result, asyncio.CancelledError) for result in results) == 334
    assert [r for n, r in enumerate(results) if n % 3 and n % 7 == 0] == [
        9 for n in range(1000) if n % 3 and n % 7 == 0
    ]
    assert len(flights) == 0
    assert len(asyncio.all_tasks()) == 1
