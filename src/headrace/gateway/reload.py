"""The configuration's file, watched: a good change is in force for the next call, a bad one is
told in the log, and what was in force stays.

A running call keeps the deployment that it began with, to its end; providers that no call needs
any more are closed then. What was added over the admin API is carried into the new deployment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from headrace.config.history import keep, keep_version
from headrace.config.load import ConfigurationError, Loaded, version_of
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
Carry = Callable[[Configuration], Configuration]  # with what was added beside the file


class NeedsRestart(Exception):
    """The new configuration changes what is fixed while the server runs."""


class Reloader:
    """Watches `path`. `read` loads the configuration again; it may raise ConfigurationError.
    Versions are kept in `directory`."""

    def __init__(
        self,
        services: Services,
        path: Path,
        read: Callable[[], Loaded],
        connect: Connect,
        carry: Carry,
        directory: Path,
    ) -> None:
        self._services = services
        self._path = path
        self._read = read
        self._connect = connect
        self._carry = carry
        self._directory = directory
        self._filed = services.version  # of the file that is in force
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
        if loaded.version == self._filed:
            return
        _check(services.configuration, loaded.configuration)
        providers = await self._providers(services.now, loaded.configuration)
        await asyncio.to_thread(keep, self._directory, loaded, services.wall())
        # from here on nothing waits: a call sees one deployment or the other
        before, configuration = services.now, self._carry(loaded.configuration)
        services.keyring.configure(configuration)
        services.now = now = Deployment.of(
            Loaded(configuration, version_of(configuration)), providers
        )
        self._filed = loaded.version
        log.info("Configuration %s is in force (before: %s).", now.version, before.version)
        gone = [p for p in before.providers.values() if p not in providers.values()]
        leaving = asyncio.create_task(_leave(before, gone, tuple(self._leaving)))
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)
        await remember(self._directory, now)

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
    ours = [model for model in before.models.values() if model.provider == LOCAL]
    here = {model.source for model in ours} | {model.upstream for model in ours}
    for name, model in after.models.items():
        if model.provider == LOCAL and model.upstream not in here:
            missing = model.source if model.source not in here else model.adapter
            raise NeedsRestart(
                f"models.{name}: '{missing}' is loaded when the server starts; start it again."
            )


async def remember(directory: Path, deployment: Deployment) -> None:
    """Keep the version of a deployment that no file has."""
    loaded = Loaded(deployment.configuration, deployment.version)
    try:
        await asyncio.to_thread(keep_version, directory, loaded)
    except OSError as error:
        log.error("Configuration %s is not kept for replays: %s", deployment.version, error)


async def _leave(
    deployment: Deployment, providers: list[Provider], earlier: Collection[asyncio.Task[None]]
) -> None:
    """Close the providers once no call of their deployment runs, nor one of those that left
    before it: they may have them too."""
    try:
        if earlier:
            await asyncio.wait(earlier)
        await deployment.calls.idle()
    finally:
        await asyncio.gather(*(one.close() for one in providers), return_exceptions=True)
