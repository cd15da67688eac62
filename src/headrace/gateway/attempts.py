"""The attempts of a plan, until one answers.

An attempt may fail over to the next one until its first event: what a client has seen is not
taken back. Of the caller's own errors only those fail over that speak of one model alone (its
context is too short, it does not know a field, the upstream does not have it): the next model may
be able. A refusal for any other reason (a content policy, say) stands. An upstream's 429 fails
over.

What the rule allows besides: to hedge (a second attempt beside one that has not begun to answer
in time; the first event wins, the other is closed), to try again in rounds, each later than the
one before, and to go on from the text so far where an answer broke.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, nullcontext

from msgspec import structs

from headrace.config.schema import Configuration
from headrace.gateway.continuation import able, continued, joined
from headrace.gateway.trial import Ground, Trial
from headrace.observability.record import AttemptRecord
from headrace.protocol.errors import (
    ContextTooLong,
    HeadraceError,
    InternalFault,
    InvalidField,
    ModelNotFound,
    NotFound,
    RateLimited,
    RefusedByUpstream,
    ServiceError,
    UpstreamError,
    UpstreamTimeout,
)
from headrace.protocol.generation import AnyRequest, Event, GenerationRequest
from headrace.providers.base import Provider
from headrace.router.decide import Decision, Router
from headrace.router.plan import Attempt

BACKOFF, LONGEST_BACKOFF = 0.25, 8.0  # seconds before the second round, and before any round

# Codes by which an upstream's refusal speaks of one model alone.
ABOUT_ONE_MODEL = frozenset(
    {
        "context_length_exceeded",
        "model_not_found",
        "unsupported_parameter",
        "unsupported_value",
        "unknown_parameter",
    }
)

Jitter = Callable[[], float]  # in [0, 1)


def fails_over(error: HeadraceError) -> bool:
    """Whether the next attempt may be able where this one failed before its first event."""
    if isinstance(error, RefusedByUpstream):
        return error.status == NotFound.status or error.code in ABOUT_ONE_MODEL
    return isinstance(
        error, ServiceError | RateLimited | ContextTooLong | InvalidField | ModelNotFound
    )


def passes(error: HeadraceError) -> bool:
    """Whether the same attempt may be able a little later."""
    return isinstance(error, ServiceError | RateLimited) and not isinstance(error, InternalFault)


class Execution:
    """One run of a decision. `attempts` and `served` grow as it goes and are complete when it has
    `ended`, which is before its last event comes out. `orphaned` says that the call which began
    it left while others listen, `continued` that more than one attempt wrote the answer."""

    def __init__(
        self,
        request: AnyRequest,
        decision: Decision,
        configuration: Configuration,
        providers: Mapping[str, Provider],
        router: Router,
        clock: Callable[[], float],
        jitter: Jitter = random.random,
    ) -> None:
        self.served: Attempt | None = None
        self.ended = False
        self.orphaned = False
        self.continued = False
        if decision.plan.conduct.timed and isinstance(request, GenerationRequest):
            request = structs.replace(request, stream=True)
        self._request = request
        self._plan = decision.plan
        self._jitter = jitter
        self._deadline: float | None = None
        tokens = decision.facts.prompt_tokens
        self._ground = Ground(configuration, providers, router, clock, clock(), tokens)

    @property
    def attempts(self) -> list[AttemptRecord]:
        """What became of each attempt, in the order they ended."""
        return self._ground.records

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events of the first attempt that yields one.

        Raises what that attempt raised after it, or the last attempt's error if none did.
        """
        conduct, request = self._plan.conduct, self._request
        if conduct.deadline is not None:
            self._deadline = asyncio.get_running_loop().time() + conduct.deadline
        candidates = self._plan.attempts
        before: list[str] = []  # what came of attempts that broke
        try:
            while True:
                trial = await self._open(candidates, request)
                self.served = trial.attempt
                try:
                    async with aclosing(trial.events()) as events:
                        async for event in events:
                            yield event
                except HeadraceError as error:
                    before += trial.text
                    rest = self._rest(trial, before) if fails_over(error) else None
                    if rest is None:
                        raise
                    candidates, request = rest
                    self.continued = True
                    continue
                if trial.finished is None:
                    raise UpstreamError("The upstream's answer ended before it was finished.")
                self.ended = True
                yield joined(trial.finished, len(before)) if before else trial.finished
                return
        finally:
            self.ended = True

    def _rest(
        self, broken: Trial, before: list[str]
    ) -> tuple[tuple[Attempt, ...], AnyRequest] | None:
        """Who can go on from the text of `before`, and with which request; None if nobody."""
        if not (self._plan.conduct.continues and broken.plain) or self._spent():
            return None
        request = continued(self._request, "".join(before), len(before))
        if request is None:
            return None
        others = tuple(a for a in self._plan.attempts if a is not broken.attempt)
        candidates = able((*others, broken.attempt), request, self._ground.configuration)
        return (candidates, request) if candidates else None

    async def _open(self, candidates: tuple[Attempt, ...], request: AnyRequest) -> Trial:
        """The first attempt that yields an event; rounds of them, where the rule allows it."""
        error: HeadraceError = UpstreamError("No provider of this model can be tried now.")
        failed: list[tuple[Attempt, HeadraceError]] = []
        for turn in range(self._plan.conduct.retries + 1):
            if turn:
                await self._wait(turn, failed, error)
                candidates = tuple(attempt for attempt, why in failed if passes(why))
                failed = []
            waiting = deque(candidates)
            while waiting:
                if self._ground.records and (self._spent() or self._is_late()):
                    raise error
                try:
                    return await self._try(waiting, request, failed)
                except HeadraceError as problem:
                    error = problem
                    if not fails_over(error):
                        raise
            if not any(passes(why) for _, why in failed):
                break
        raise error

    async def _try(
        self,
        waiting: deque[Attempt],
        request: AnyRequest,
        failed: list[tuple[Attempt, HeadraceError]],
    ) -> Trial:
        """The next of `waiting`, opened, or the one after it that hedged it."""
        trial = Trial(self._ground, waiting.popleft(), request)
        patience = self._plan.conduct.hedge_after
        bound = nullcontext() if self._deadline is None else asyncio.timeout_at(self._deadline)
        try:
            async with bound:
                if patience is None or not waiting:
                    await self._opened(trial, failed)
                    return trial
                return await self._race(trial, patience, waiting, request, failed)
        except TimeoutError:
            raise UpstreamTimeout(
                f"No answer began within {self._plan.conduct.deadline:g} s (the route's deadline)."
            ) from None

    async def _opened(self, trial: Trial, failed: list[tuple[Attempt, HeadraceError]]) -> None:
        try:
            await trial.open()
        except HeadraceError as error:
            failed.append((trial.attempt, error))
            raise

    async def _race(
        self,
        first: Trial,
        patience: float,
        waiting: deque[Attempt],
        request: AnyRequest,
        failed: list[tuple[Attempt, HeadraceError]],
    ) -> Trial:
        """`first`, or a second attempt that begins after `patience` seconds: whose event is first.
        The loser is closed, and its cost is on the record."""
        loop = asyncio.get_running_loop()
        running = {loop.create_task(self._opened(first, failed)): first}
        winner: Trial | None = None
        try:
            await asyncio.wait(running, timeout=patience)
            hedged = not next(iter(running)).done()
            if hedged and waiting and not self._spent(first.attempt, waiting[0]):
                second = Trial(self._ground, waiting.popleft(), request)
                running[loop.create_task(self._opened(second, failed))] = second
            while True:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in running if task in done]:  # the first one first
                    trial = running.pop(task)
                    if task.exception() is None:
                        winner = trial
                        return winner
                    if not running or not _is_over(task.exception()):
                        task.result()
        finally:
            try:
                await _close_all(running)
            except BaseException:
                if winner is not None:
                    await winner.abandon()
                raise

    async def _wait(
        self, turn: int, failed: list[tuple[Attempt, HeadraceError]], error: HeadraceError
    ) -> None:
        """Wait before the next round, at least as long as an upstream asked. Raises `error` where
        that would be too long."""
        seconds = min(BACKOFF * 2.0 ** (turn - 1), LONGEST_BACKOFF) * (0.5 + self._jitter() / 2)
        seconds = max(seconds, min(why.retry_after or 0.0 for _, why in failed if passes(why)))
        end = asyncio.get_running_loop().time() + seconds
        if seconds > LONGEST_BACKOFF or (self._deadline is not None and end >= self._deadline):
            raise error
        await asyncio.sleep(seconds)

    def _is_late(self) -> bool:
        return self._deadline is not None and asyncio.get_running_loop().time() >= self._deadline

    def _spent(self, *hedging: Attempt) -> bool:
        """Whether attempts that do not serve have cost as much as the rule allows. Of two that
        would run at once one will not serve: the dearer prompt counts."""
        most = self._plan.conduct.max_extra_cost
        if most is None:
            return False
        lost = sum(record.cost or 0.0 for record in self._ground.records)
        if hedging:
            return lost + max(attempt.prompt_cost or 0.0 for attempt in hedging) > most
        return lost > most


def _is_over(error: BaseException | None) -> bool:
    """Whether the other one may still win after this failure."""
    return isinstance(error, HeadraceError) and fails_over(error)


async def _close_all(running: Mapping[asyncio.Task[None], Trial]) -> None:
    """Stop the attempts that lost, to their end; also one that has just begun to answer."""
    for task, trial in running.items():
        trial.lost = True
        task.cancel()
    if running:
        await asyncio.wait(running)
    for task, trial in running.items():
        if not task.cancelled():
            task.exception()
        await trial.abandon()
