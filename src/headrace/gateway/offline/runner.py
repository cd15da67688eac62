"""Batches, carried out one beside the other, by one process of a data directory at a time.

A file in it is locked by whoever runs them; a process that dies lets go of it, however it dies, and
another one goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Mapping

from headrace.gateway.offline.asking import Turns
from headrace.gateway.offline.execution import Execution
from headrace.gateway.offline.store import OfflineStore
from headrace.gateway.pipeline import Generations
from headrace.gateway.services import Services
from headrace.protocol.generation import Endpoint

TICK = 1.0  # seconds between two looks for new batches
AT_ONCE = 8  # batches
REST = 10.0  # seconds before a batch that could not be run is begun again
SWEEP = 3600.0  # seconds between two looks for files that have expired
STOP = 5.0  # seconds that what runs is given to hang up
LOCK = ".runner"

log = logging.getLogger(__name__)


class Runner:
    """Runs what is in `store` from `start` to `close`."""

    def __init__(
        self,
        services: Services,
        endpoints: Mapping[Endpoint, Generations],
        store: OfflineStore,
    ) -> None:
        self._services = services
        self._endpoints = endpoints
        self._store = store
        self._turns = Turns(services.configuration.batches.concurrency, services.locally)
        self._running: dict[str, Execution] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, or go on where another process stopped."""
        self._main = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop, within a step of what runs; it is gone on with at the next start."""
        if self._main is not None:
            self._main.cancel()
            await asyncio.wait([self._main])

    def poke(self, batch_id: str) -> None:
        """A batch was made, or is to be cancelled."""
        if batch_id in self._running:
            self._running[batch_id].poke()
        self._news.set()

    async def _run(self) -> None:
        lock = os.open(self._store.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            while not _locked(lock):  # noqa: ASYNC110 (another process has it)
                await asyncio.sleep(TICK)
            swept = -SWEEP
            while True:
                try:
                    if self._services.clock() - swept >= SWEEP:
                        swept = self._services.clock()
                        await asyncio.to_thread(self._store.sweep)
                    await self._begin()
                except Exception:
                    log.exception("The batches cannot be read.")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), TICK)
                self._news.clear()
        finally:
            for execution in self._running.values():
                execution.stop()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=STOP)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            os.close(lock)

    async def _begin(self) -> None:
        """Begin batches that wait, while there is room."""
        for tenant, batch_id in await asyncio.to_thread(self._store.live):
            if len(self._running) >= AT_ONCE:
                return
            if batch_id in self._running:
                continue
            batch = await asyncio.to_thread(self._store.batch, batch_id, tenant)
            if batch is None:
                continue
            execution = Execution(
                self._services, self._endpoints, self._store, self._turns, tenant, batch
            )
            self._running[batch_id] = execution
            task = asyncio.create_task(self._carry_out(execution))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, execution: Execution) -> None:
        try:
            await execution.run()
        except Exception:
            log.exception("Batch %s is begun again later.", execution.batch.id)
            await asyncio.sleep(REST)
        finally:
            del self._running[execution.batch.id]
            self._news.set()


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
