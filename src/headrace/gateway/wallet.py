"""A key's money in this server: leased from its budget, reserved by calls, spent as they end."""

from __future__ import annotations

import asyncio
import logging

from sqlalchemy.exc import SQLAlchemyError

from headrace.gateway.keystore import KeyStore
from headrace.protocol.errors import BudgetSpent, Overloaded

AHEAD = 16  # calls of the size asked for that a lease covers, so that most of them need no store
CENT = 0.01  # dollars, the least that is asked for
RETRY_AFTER = 1.0  # seconds

log = logging.getLogger(__name__)


class Wallet:
    """For one event loop: it takes no lock but while it asks the store for more."""

    def __init__(self, store: KeyStore, key_id: str, holder: str) -> None:
        self._store = store
        self._key_id = key_id
        self._holder = holder
        self._left = 0.0  # leased, and neither reserved nor spent
        self._reserved = 0.0
        self._spent = 0.0  # since the store was told
        self._idle = True  # no call since the store was told
        self._asking = asyncio.Lock()

    async def reserve(self, amount: float) -> None:
        """Hold the most that a call may cost. Raises BudgetSpent, and Overloaded where the store
        cannot say what is left: nothing is spent unseen. Then nothing is held."""
        self._idle = False
        if self._left < amount:
            async with self._asking:
                if self._left < amount:
                    least = amount - self._left
                    wanted = max(AHEAD * amount, CENT)
                    self._left += await self._leased(least, wanted)
        if self._left < amount:
            raise BudgetSpent("The budget of this key does not cover this request.")
        self._left -= amount
        self._reserved += amount

    async def _leased(self, least: float, wanted: float) -> float:
        try:
            return await asyncio.to_thread(
                self._store.lease, self._key_id, self._holder, least, wanted
            )
        except SQLAlchemyError as error:
            log.error("The budgets cannot be read: %s", error)
            raise Overloaded(
                "What is left of this key's budget cannot be read now.", retry_after=RETRY_AFTER
            ) from error

    def settle(self, reserved: float, cost: float) -> None:
        """The call is over: it cost `cost`, and what was reserved beyond it is free again."""
        self._reserved -= reserved
        self._left += reserved - cost
        self._spent += cost

    def told(self) -> tuple[float, float]:
        """What the store has to be told: spent since the last time, and given back where no call
        needed it. Counts as told."""
        spent, self._spent = self._spent, 0.0
        returned = 0.0
        if self._idle and self._reserved == 0.0:
            returned, self._left = self._left, 0.0
        self._idle = True
        return spent, returned

    @property
    def holds(self) -> bool:
        """Whether there is anything to tell."""
        return self._spent != 0.0 or self._left != 0.0 or self._reserved != 0.0

    async def tell(self) -> None:
        """Tell the store."""
        if not self.holds:
            return
        spent, returned = self.told()
        try:
            await asyncio.to_thread(self._store.settle, self._key_id, self._holder, spent, returned)
        except BaseException:
            self._spent += spent
            self._left += returned
            raise
