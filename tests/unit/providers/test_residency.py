"""Models that share a budget: who is loaded, who has to go, and who waits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import count

import pytest

from headrace.protocol.errors import Overloaded, TooLarge
from headrace.providers.residency import Residency


class Engine:
    """What a load and an unload do, on the record; a load waits for `gate`, an unload
    for `leaving`."""

    def __init__(self) -> None:
        self.running = self.sleeping = 0
        self.starts = self.wakes = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.leaving = asyncio.Event()
        self.leaving.set()
        self.fault: Exception | None = None

    async def start(self) -> None:
        self.starts += 1
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.running += 1

    async def close(self) -> None:
        await self.leaving.wait()
        self.running = self.sleeping = 0

    async def sleep(self) -> None:
        await self.leaving.wait()
        if self.fault is not None:
            raise self.fault
        self.running, self.sleeping = 0, 1

    async def wake(self) -> None:
        await self.gate.wait()
        self.sleeping = 0
        if self.fault is not None:
            raise self.fault
        self.running, self.wakes = 1, self.wakes + 1


def made(
    sizes: dict[str, int], budget: int = 10, wait: float = 5.0, host_budget: int = 0
) -> tuple[dict[str, Engine], Residency]:
    """Each model's weights are half of it."""
    engines = {name: Engine() for name in sizes}
    ticks = count()
    weights = {name: size // 2 for name, size in sizes.items()}
    return engines, Residency(
        engines,
        sizes,
        budget,
        lambda: float(next(ticks)),
        wait,
        weights=weights,
        host_budget=host_budget,
    )


def loaded(engines: dict[str, Engine]) -> str:
    return "".join(name for name, engine in engines.items() if engine.running)


async def use(residency: Residency, names: Iterable[str]) -> None:
    for name in names:
        async with residency.held(name):
            pass


async def test_the_model_unused_for_longest_makes_room() -> None:
    engines, residency = made({"a": 4, "b": 4, "c": 4})
    await use(residency, "abac")
    assert loaded(engines) == "ac"
    await use(residency, "b")
    assert loaded(engines) == "bc"
    assert residency.used == 8


async def test_many_callers_wait_for_one_load_and_one_that_leaves_stops_none() -> None:
    engines, residency = made({"a": 4})
    engines["a"].gate.clear()
    callers = [asyncio.create_task(use(residency, "a")) for _ in range(20)]
    while not engines["a"].starts:
        await asyncio.sleep(0)
    callers[0].cancel()
    await asyncio.gather(callers[0], return_exceptions=True)
    engines["a"].gate.set()
    await asyncio.gather(*callers[1:])
    assert engines["a"].starts == engines["a"].running == 1
    assert residency.models["a"].users == 0


async def test_a_model_in_use_is_never_unloaded_and_the_next_waits_for_it() -> None:
    engines, residency = made({"a": 6, "b": 6})
    async with residency.held("a"):
        waiting = asyncio.create_task(use(residency, "b"))
        await asyncio.sleep(0.01)
        assert loaded(engines) == "a"
        with pytest.raises(Overloaded):
            await residency.unload("a")
    await waiting
    assert loaded(engines) == "b"


async def test_waiting_for_room_ends_with_an_answer() -> None:
    engines, residency = made({"a": 6, "b": 6}, wait=0.02)
    async with residency.held("a"):
        with pytest.raises(Overloaded):
            await residency.load("b")
    await use(residency, "b")
    assert loaded(engines) == "b"


async def test_a_model_that_never_fits_is_refused_at_once_with_the_numbers() -> None:
    engines, residency = made({"a": 4 * 2**30, "b": 1}, budget=2 * 2**30)
    await use(residency, "b")
    with pytest.raises(TooLarge, match=r"needs 4\.00 GiB, and all models .* 2\.00 GiB"):
        await residency.load("a")
    assert loaded(engines) == "b"


async def test_a_load_that_fails_takes_no_memory_and_may_be_tried_again() -> None:
    engines, residency = made({"a": 6, "b": 6})
    engines["a"].fault = ValueError("no such file")
    for _ in range(2):
        with pytest.raises(ValueError, match="no such file"):
            await residency.load("a")
    assert residency.used == 0
    engines["a"].fault = None
    await use(residency, "ab")
    assert loaded(engines) == "b"


async def test_closing_ends_a_load_under_way() -> None:
    engines, residency = made({"a": 4, "b": 4})
    engines["a"].gate.clear()
    loading = asyncio.create_task(residency.load("a"))
    await use(residency, "b")
    await residency.close()
    assert loaded(engines) == ""
    with pytest.raises(asyncio.CancelledError):
        await loading


async def test_a_call_during_an_unload_waits_for_its_end_and_loads_again() -> None:
    engines, residency = made({"a": 4})
    await use(residency, "a")
    engines["a"].leaving.clear()
    unloading = asyncio.create_task(residency.unload("a"))
    await asyncio.sleep(0)
    calling = asyncio.create_task(use(residency, "a"))
    await asyncio.sleep(0)
    engines["a"].leaving.set()
    await asyncio.gather(unloading, calling)
    assert residency.models["a"].state == "loaded"
    assert engines["a"].running == 1


async def test_a_model_that_sleeps_leaves_the_budget_and_is_woken_by_the_next_call() -> None:
    engines, residency = made({"a": 6, "b": 6}, host_budget=3)
    await use(residency, "a")
    await residency.sleep("a")
    assert (residency.used, residency.host_used) == (0, 3)
    assert residency.models["a"].state == "sleeping"
    await use(residency, "b")
    assert engines["a"].sleeping == 1
    await asyncio.gather(*(use(residency, "a") for _ in range(5)))
    assert loaded(engines) == "a"  # and b had to go
    assert (engines["a"].starts, engines["a"].wakes) == (1, 1)
    assert (residency.used, residency.host_used) == (6, 3)  # its copy is kept for the next time
    await residency.unload("a")
    assert (residency.used, residency.host_used) == (0, 0)


async def test_a_model_in_use_does_not_sleep_nor_one_that_the_host_has_no_room_for() -> None:
    engines, residency = made({"a": 4, "b": 4}, host_budget=3)
    async with residency.held("a"):
        with pytest.raises(Overloaded, match="in use"):
            await residency.sleep("a")
    await use(residency, "b")
    await residency.sleep("a")
    with pytest.raises(Overloaded, match="no room"):
        await residency.sleep("b")
    assert loaded(engines) == "b"
    await residency.unload("a")
    await residency.sleep("b")
    await residency.sleep("b")  # it does already
    assert engines["b"].sleeping == 1


async def test_a_call_while_a_model_falls_asleep_waits_and_wakes_it() -> None:
    engines, residency = made({"a": 4}, host_budget=4)
    await use(residency, "a")
    engines["a"].leaving.clear()
    sleeping = asyncio.create_task(residency.sleep("a"))
    await asyncio.sleep(0)
    calling = asyncio.create_task(use(residency, "a"))
    await asyncio.sleep(0)
    engines["a"].leaving.set()
    await asyncio.gather(sleeping, calling)
    assert (engines["a"].starts, engines["a"].wakes, engines["a"].running) == (1, 1, 1)


async def test_a_model_that_cannot_be_woken_is_loaded_anew() -> None:
    engines, residency = made({"a": 4}, host_budget=4)
    await use(residency, "a")
    await residency.sleep("a")
    engines["a"].fault = ValueError("the device is full")
    with pytest.raises(ValueError, match="full"):
        await residency.load("a")
    assert (residency.used, residency.host_used) == (0, 0)
    engines["a"].fault = None
    await use(residency, "a")
    assert (engines["a"].starts, engines["a"].running) == (2, 1)


async def test_a_model_that_cannot_sleep_stays_as_it_was() -> None:
    engines, residency = made({"a": 4}, host_budget=4)
    await use(residency, "a")
    engines["a"].fault = ValueError("not on a GPU")
    with pytest.raises(ValueError, match="not on a GPU"):
        await residency.sleep("a")
    assert residency.models["a"].state == "loaded"
    assert (residency.used, loaded(engines)) == (4, "a")
