"""The configuration's file, watched: a good change is in force for the next call, a bad one is
told in the log, and what was in force stays.

A running call keeps the deployment that it began with, to its end; providers that no call needs
any more are closed then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from headrace.config.load import ConfigurationError, Loaded
from headrace.config.schema import LOCAL, Configuration
from headrace.config.secrets import SecretError
from headrace.gateway.services import Deployment, Services
from headrace.providers.base import Provider

TICK = 0.5  # seconds between two looks at the file

# What a running server cannot change.
FIXED = ("server", "engine", "cache", "batches", "logging", "log.directory")

log = logging.getLogger(__name__)

Mark = tuple[int, int, int] | None
Connect = Callable[[Configuration], Mapping[str, Provider]]  # the remote providers, not started
Keep = Callable[[Loaded], None]


class NeedsRestart(Exception):
    """The new configuration changes what is fixed while the server runs."""


class Reloader:
    """Watches `path`. `read` loads the configuration again; it may raise ConfigurationError."""

    def __init__(
        self,
        services: Services,
        path: Path,
        read: Callable[[], Loaded],
        connect: Connect,
        keep: Keep,
    ) -> None:
        self._services = services
        self._path = path
        self._read = read
        self._connect = connect
        self._keep = keep
        self._mark = self._look()
        self._task: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Watch until `close`."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Watch no more, and close what is left of earlier deployments."""
        tasks = [*self._leaving, *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reload(self) -> None:
        """Read the file and put it in force.

        Raises ConfigurationError, SecretError, OSError or NeedsRestart; then nothing has changed.
        """
        services = self._services
        loaded = await asyncio.to_thread(self._read)
        before = services.now
        if loaded.version == before.version:
            return
        _check(before.configuration, loaded.configuration)
        providers = await self._providers(before, loaded.configuration)
        await asyncio.to_thread(self._keep, loaded)
        # from here to the end nothing waits: a call sees one deployment or the other
        services.keyring.configure(loaded.configuration)
        services.now = Deployment.of(loaded, providers)
        log.info("Configuration %s is in force (before: %s).", loaded.version, before.version)
        gone = [p for p in before.providers.values() if p not in providers.values()]
        leaving = asyncio.create_task(_leave(before, gone))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _providers(
        self, before: Deployment, configuration: Configuration
    ) -> dict[str, Provider]:
        """Those that did not change, and new ones, started."""
        made = self._connect(configuration)
        providers: dict[str, Provider] = {}
        for name, provider in made.items():
            settings = before.configuration.providers.get(name)
            if settings == configuration.providers[name]:
                providers[name] = before.providers[name]
            else:
                await provider.start()
                providers[name] = provider
        if LOCAL in before.providers:
            providers[LOCAL] = before.providers[LOCAL]
        return providers

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            mark = self._look()
            if mark == self._mark or mark is None:  # an editor may take the file away for a moment
                continue
            self._mark = mark
            try:
                await self.reload()
            except (ConfigurationError, SecretError, OSError, NeedsRestart) as error:
                log.error("The configuration has not changed: %s", error)

    def _look(self) -> Mark:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _check(before: Configuration, after: Configuration) -> None:
    """Raise NeedsRestart where what is fixed would change."""
    for name in FIXED:
        old, new = before, after
        for part in name.split("."):
            old, new = getattr(old, part), getattr(new, part)
        if old != new:
            raise NeedsRestart(f"'{name}' is read when the server starts; start it again.")
    here = {model.source for model in before.models.values() if model.provider == LOCAL}
    for name, model in after.models.items():
        if model.provider == LOCAL and model.source not in here:
            raise NeedsRestart(
                f"models.{name}: '{model.source}' is loaded when the server starts; start it again."
            )


async def _leave(deployment: Deployment, providers: list[Provider]) -> None:
    """Close the providers once no call of their deployment runs."""
    try:
        await deployment.calls.idle()
    finally:
        await asyncio.gather(*(one.close() for one in providers), return_exceptions=True)
