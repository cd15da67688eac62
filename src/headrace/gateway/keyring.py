"""Who calls: the keys as this server knows them, their limits and their money.

A key that is revoked elsewhere is known to be within `TICK` seconds. A call is charged in two
steps: `enter` when its head is read (a place, and one request of the minute), `reserve` when its
plan is made (the most tokens and dollars it may need); `end` settles both by what it used.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from headrace.config.schema import Configuration, Limits
from headrace.gateway.board import Board, BoardFull
from headrace.gateway.keystore import FILE, Key, KeyStore, digest_of
from headrace.gateway.limits import Allowance, Scope
from headrace.gateway.wallet import Wallet
from headrace.protocol.errors import AuthenticationRequired, PermissionDenied

TICK = 0.25  # seconds between two looks at the store
TELL = 1.0  # seconds between two reports of what was spent
OPEN_TENANT = "default"  # of all calls where there are no keys

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Holder:
    """A key in use."""

    key: Key
    scope: Scope
    wallet: Wallet | None


@dataclass(slots=True)
class Charge:
    """What one call has taken, to be settled when it ends."""

    scopes: list[Scope] = field(default_factory=list)
    holder: Holder | None = None
    tokens: list[tuple[Scope, int]] = field(default_factory=list)  # and the second
    taken: int = 0  # tokens
    reserved: float = 0.0  # dollars
    later: bool = False  # work that waits for its turn: no limit holds for it but the budget
    over: bool = False

    @property
    def tenant(self) -> str:
        """Whose call it is."""
        return OPEN_TENANT if self.holder is None else self.holder.key.name

    @property
    def budgeted(self) -> bool:
        """Whether a key with a budget pays for it."""
        return self.holder is not None and self.holder.wallet is not None

    def permit(self, model: str) -> None:
        """Raise PermissionDenied unless the key may ask for `model`."""
        may = () if self.holder is None else self.holder.key.models
        if may and model not in may:
            raise PermissionDenied(
                f"This key may use {', '.join(may)}, not '{model[:80]}'.", param="model"
            )

    def allowances(self) -> dict[str, Allowance]:
        """The tightest that is left of requests and tokens."""
        found: dict[str, Allowance] = {}
        for scope in self.scopes:
            for name, one in scope.allowances().items():
                if name not in found or one.remaining < found[name].remaining:
                    found[name] = one
        return found


class Keyring:
    """The keys stored in `directory`, and the limits of `configuration`. For one event loop.

    `clock` gives monotonic seconds, `wall` Unix time; `board` counts what is taken of limits.
    """

    def __init__(
        self,
        directory: Path,
        configuration: Configuration,
        clock: Callable[[], float],
        wall: Callable[[], float],
        board: Board | None = None,
    ) -> None:
        self._board = board or Board()
        self._directory = directory
        self._store: KeyStore | None = None  # until there is one
        self._clock = clock
        self._wall = wall
        self._me = secrets.token_hex(8)
        self._holders: dict[str, Holder] = {}  # by digest
        self._seen: dict[bytes, Holder] = {}
        self._whole = self._scope("The server", configuration.limits)
        self._models: dict[str, Scope] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._mark: object = None
        self._told = self._board.keys_changed
        self._opening = threading.Lock()
        self.configure(configuration)
        self.refresh()

    @property
    def open(self) -> bool:
        """Whether no key is needed, as there never was one."""
        return not self._holders

    def configure(self, configuration: Configuration) -> None:
        """Take the limits of a new configuration; those that did not change go on counting."""
        if self._whole.limits != configuration.limits:
            self._whole = self._scope("The server", configuration.limits)
        models: dict[str, Scope] = {}
        for name, model in configuration.models.items():
            if model.limits != Limits():
                known = self._models.get(name)
                models[name] = (
                    known
                    if known is not None and known.limits == model.limits
                    else self._scope(f"Model '{name}'", model.limits)
                )
        self._models = models

    def opened(self) -> KeyStore:
        """The store, made where there is none; blocks."""
        with self._opening:
            if self._store is None:
                self._store = KeyStore.within(self._directory)
            return self._store

    def refresh(self) -> None:
        """Read the keys again where one was made or revoked; blocks."""
        if self._store is None and not (self._directory / FILE).exists():
            return
        store = self.opened()
        mark = store.changed()
        if mark == self._mark:
            return
        known = {holder.key.id: holder for holder in self._holders.values()}
        holders: dict[str, Holder] = {}
        for key in store.every():
            holder = known.get(key.id)
            if holder is None:
                limits = Limits(rpm=key.rpm, tpm=key.tpm, concurrent=key.concurrent)
                scope = self._scope(f"This key ('{key.name}')", limits)
                wallet = None
                if key.budget is not None:
                    wallet = Wallet(store, key.id, self._me)
                holder = Holder(key, scope, wallet)
            holder.key = key
            holders[key.digest] = holder
        self._holders, self._mark = holders, mark
        self._seen = {}

    def changed(self) -> None:
        """Take note that this process made or revoked a key; blocks. From here on every process
        knows it, before it lets a call in."""
        self.refresh()
        self._board.say_keys_changed()

    def identify(self, headers: Mapping[str, str]) -> Holder | None:
        """Whose key the headers hold; None where no key is needed.

        Raises AuthenticationRequired.
        """
        if self._told != self._board.keys_changed:
            self._told = self._board.keys_changed
            self._try_refresh()
        if not self._holders:
            return None
        kind, _, secret = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret:
            secret = headers.get("x-api-key", "")
        if not secret:
            raise AuthenticationRequired(
                "A key is required: 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
            )
        # A digest that is quick to make finds those that came before; it is kept nowhere else.
        quick = blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        holder = self._seen.get(quick)
        if holder is None:
            holder = self._holders.get(digest_of(secret.strip()))
            if holder is not None:
                self._seen[quick] = holder
        return self._good(holder)

    def holder(self, tenant: str) -> Holder | None:
        """Who pays for what `tenant` left to be done later; None where that was nobody's.

        Raises AuthenticationRequired where its key is good no more.
        """
        if tenant == OPEN_TENANT:
            return None
        return self._good(next((h for h in self._holders.values() if h.key.name == tenant), None))

    def _good(self, holder: Holder | None) -> Holder:
        if holder is None:
            raise AuthenticationRequired("This key is not known.")
        if holder.key.revoked is not None:
            raise AuthenticationRequired("This key was revoked.")
        if holder.key.expires is not None and self._wall() >= holder.key.expires:
            raise AuthenticationRequired("This key has expired.")
        return holder

    def _scope(self, name: str, limits: Limits) -> Scope:
        return Scope(name, limits, self._clock, self._board)

    def enter(self, charge: Charge) -> None:
        """Let one more call of the charge's holder in. Raises RateLimited; `end` the charge then
        too."""
        holder = charge.holder
        for scope in (self._whole, *(() if holder is None else (holder.scope,))):
            scope.enter()
            charge.scopes.append(scope)

    @contextmanager
    def held(self, charge: Charge) -> Iterator[None]:
        """Let a call in that needs no tokens and no money, for as long as the block runs."""
        try:
            self.enter(charge)
            yield
        finally:
            self.end(charge, 0, 0.0)

    async def reserve(
        self, charge: Charge, asked: str, model: str, tokens: int, dollars: float
    ) -> None:
        """Reserve the most that a call may need, to the model `asked`, which `model` is planned to
        serve.

        Raises PermissionDenied, RateLimited and BudgetSpent; `end` the charge then too.
        """
        holder = charge.holder
        charge.permit(asked)
        scope = None if charge.later else self._models.get(model)
        if scope is not None:
            scope.enter()
            charge.scopes.append(scope)
        charge.taken = tokens
        for scope in charge.scopes:
            if scope.tokens is not None:
                charge.tokens.append((scope, scope.take_tokens(tokens)))
        if holder is not None and holder.wallet is not None and dollars > 0:
            await holder.wallet.reserve(dollars)
            charge.reserved = dollars

    @staticmethod
    def end(charge: Charge, tokens: int, dollars: float) -> None:
        """Settle by what was used, and give the places back."""
        if charge.over:
            return
        charge.over = True
        for scope, second in charge.tokens:
            scope.correct_tokens(second, tokens - charge.taken)
        for scope in charge.scopes:
            scope.leave()
        holder = charge.holder
        if holder is not None and holder.wallet is not None and (charge.reserved or dollars):
            holder.wallet.settle(charge.reserved, dollars)

    def start(self) -> None:
        """Look at the store and tell it what is spent, until `close`."""
        self._tasks = [asyncio.create_task(self._look()), asyncio.create_task(self._report())]

    async def close(self) -> None:
        """Tell the store the last, and let it go."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._tell()  # what was spent
        await self._tell()  # what is left goes back: nobody needs it now
        if self._store is not None:
            self._store.close()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            if self._store is None and not (self._directory / FILE).exists():
                continue
            await asyncio.to_thread(self._try_refresh)

    def _try_refresh(self) -> None:
        try:
            self.refresh()
        except (SQLAlchemyError, BoardFull) as error:
            log.error("The keys cannot be read; those known stay: %s", error)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(TELL)
            await self._tell()

    async def _tell(self) -> None:
        for holder in list(self._holders.values()):
            if holder.wallet is not None:
                try:
                    await holder.wallet.tell()
                except SQLAlchemyError as error:
                    log.error("What key '%s' spent is not stored yet: %s", holder.key.name, error)
