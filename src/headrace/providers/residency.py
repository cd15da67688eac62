"""Which local models are loaded: several share one budget of memory.

Each engine is a process of its own, so that a fault or a leak of one ends with it and its memory
surely comes back; the budget is kept here. A model that is asked for is loaded where it fits; where
it does not, idle ones are unloaded, the longest unused first. Whoever asks for a model that is
being loaded waits for the same load, and a caller that leaves stops none.

The budget is of the memory that models work in. One that sleeps has left it and waits in host
memory, which has a budget for that; it is woken as another is loaded, and in a moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

from headrace.protocol.errors import Overloaded, TooLarge

LONGEST_WAIT = 60.0  # seconds that a call waits for its model
RETRY_AFTER = 5.0  # seconds

State = Literal["unloaded", "loading", "loaded", "unloading", "sleeping"]
IDLE: tuple[State, ...] = ("unloaded", "sleeping")  # states that take nothing of the budget


class Loadable(Protocol):
    """An engine, as far as its memory goes."""

    async def start(self) -> object:
        """Load. Raises what says why it cannot."""
        ...

    async def sleep(self) -> None:
        """Leave the memory that models work in. Raises what says why it cannot."""
        ...

    async def wake(self) -> None:
        """Come back from sleep. Raises what says why it cannot."""
        ...

    async def close(self) -> None:
        """Release everything; `start` may follow."""
        ...


@dataclass(slots=True)
class Resident:
    """One model: its engine, the bytes that it takes while it works, and those of its weights,
    which wait in host memory from its first sleep until it is unloaded."""

    engine: Loadable
    bytes: int
    weights: int = 0
    state: State = "unloaded"
    users: int = 0
    used_at: float = 0.0  # when the last user left
    loads: int = 0
    slept: bool = False  # since it was loaded

    @property
    def host_bytes(self) -> int:
        """Bytes of the host that its sleep takes."""
        return self.weights if self.slept else 0


class Residency:
    """The models of one budget, by their references. `budget` is in bytes."""

    def __init__(
        self,
        engines: Mapping[str, Loadable],
        sizes: Mapping[str, int],
        budget: int,
        clock: Callable[[], float] = time.monotonic,
        longest_wait: float = LONGEST_WAIT,
        *,
        weights: Mapping[str, int] = MappingProxyType({}),
        host_budget: int = 0,
    ) -> None:
        """`weights` are the bytes that a model takes of `host_budget` for its sleep."""
        self.models = {
            name: Resident(engine, sizes[name], weights.get(name, 0))
            for name, engine in engines.items()
        }
        self.budget = budget
        self.host_budget = host_budget
        self._clock = clock
        self._longest_wait = longest_wait
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()  # one load at a time finds its room
        self._changed = asyncio.Event()

    @property
    def used(self) -> int:
        """Bytes of what is loaded, or on its way in or out."""
        return sum(one.bytes for one in self.models.values() if one.state not in IDLE)

    @property
    def host_used(self) -> int:
        """Bytes of the host for models that sleep or have slept."""
        return sum(one.host_bytes for one in self.models.values())

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[None]:
        """Keep a model loaded in this block, loading it first. Raises as `load`."""
        resident = self.models[name]
        resident.users += 1
        try:
            await self.load(name)
            yield
        finally:
            resident.users -= 1
            resident.used_at = self._clock()
            self._wake()

    async def load(self, name: str) -> None:
        """Load a model, at the expense of idle ones.

        Raises TooLarge where it never can fit, Overloaded where others stay busy for too long or
        loading takes too long, and what the engine's start raises.
        """
        resident = self.models[name]
        if resident.state == "loaded":
            return
        if resident.bytes > self.budget:
            raise TooLarge(name, resident.bytes, self.budget)
        try:
            async with asyncio.timeout(self._longest_wait):
                while True:
                    mine = name not in self._loads or self._loads[name].done()
                    try:
                        await asyncio.shield(self._begin(name) if mine else self._loads[name])
                        return
                    except Overloaded:  # of one who began to wait for room before
                        if mine:
                            raise
        except TimeoutError:
            message = f"The model '{name}' could not be loaded in time."
            raise Overloaded(message, retry_after=RETRY_AFTER) from None

    async def unload(self, name: str) -> None:
        """Unload a model that nobody uses. Raises Overloaded where somebody does."""
        resident = self.models[name]
        self._check_idle(name)
        if resident.state != "unloaded":
            await self._release(resident)

    async def sleep(self, name: str) -> None:
        """Let a model that nobody uses leave the budget until it is asked for again.

        Raises Overloaded where somebody uses it, or the host has no room; what the engine raises.
        """
        resident = self.models[name]
        self._check_idle(name)
        if resident.state != "loaded":
            return
        if self.host_used - resident.host_bytes + resident.weights > self.host_budget:
            message = f"The host has no room for the weights of '{name}' beside those that sleep."
            raise Overloaded(message, retry_after=RETRY_AFTER)
        resident.state, resident.slept = "unloading", True
        try:
            await resident.engine.sleep()
            resident.state = "sleeping"
        except BaseException:
            resident.state = "loaded"
            raise
        finally:
            self._wake()

    def _check_idle(self, name: str) -> None:
        resident = self.models[name]
        if resident.users or resident.state in ("loading", "unloading"):
            raise Overloaded(f"The model '{name}' is in use.", retry_after=RETRY_AFTER)

    async def close(self) -> None:
        """Unload everything."""
        for task in list(self._loads.values()):
            task.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        await asyncio.gather(*(one.engine.close() for one in self.models.values()))
        for resident in self.models.values():
            resident.state, resident.slept = "unloaded", False

    async def _bring(self, resident: Resident) -> None:
        async with self._turn:
            await self._make_room(resident)
            sleeps = resident.state == "sleeping"
            resident.state = "loading"
        try:
            await (resident.engine.wake() if sleeps else resident.engine.start())
            resident.state = "loaded"
            resident.loads += not sleeps
        except BaseException:
            await resident.engine.close()
            resident.state, resident.slept = "unloaded", False
            raise
        finally:
            resident.used_at = self._clock()
            self._wake()

    async def _make_room(self, resident: Resident) -> None:
        """Unload what is idle until a model fits; wait, not for ever, where nothing is idle, or
        where the model itself is on its way out."""
        try:
            async with asyncio.timeout(self._longest_wait):
                while resident.state == "unloading" or self.used + resident.bytes > self.budget:
                    victim = None if resident.state == "unloading" else self._victim()
                    if victim is None:
                        self._changed.clear()
                        await self._changed.wait()
                    else:
                        await self._release(victim)
        except TimeoutError:
            message = "Other models are in use, and there is no memory left beside them."
            raise Overloaded(message, retry_after=RETRY_AFTER) from None

    def _victim(self) -> Resident | None:
        """The idle model that was used the longest ago."""
        idle = [one for one in self.models.values() if one.state == "loaded" and not one.users]
        return min(idle, key=lambda one: one.used_at, default=None)

    async def _release(self, resident: Resident) -> None:
        resident.state = "unloading"
        try:
            await resident.engine.close()
        finally:
            resident.state, resident.slept = "unloaded", False
            self._wake()

    def _begin(self, name: str) -> asyncio.Task[None]:
        self._loads[name] = task = asyncio.create_task(self._bring(self.models[name]))
        task.add_done_callback(lambda done: self._forget(name, done))
        return task

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        if self._loads.get(name) is task:
            del self._loads[name]
        if not task.cancelled():
            task.exception()  # whoever waited has it; one who left does not want it

    def _wake(self) -> None:
        self._changed.set()
