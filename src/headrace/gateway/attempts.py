"""The attempts of a plan, in order, until one answers.

An attempt may fail over to the next one until its first event, never after: what a client has
seen is not taken back. Of the caller's own errors only those fail over that speak of one model
alone (its context is too short, it does not know a field, the upstream does not have it): the
next model may be able. A refusal for any other reason (a content policy, say) stands. An
upstream's 429 fails over.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping

from headrace.gateway.disconnect import close
from headrace.observability.record import AttemptRecord
from headrace.protocol.errors import (
    ContextTooLong,
    HeadraceError,
    InvalidField,
    ModelNotFound,
    NotFound,
    RateLimited,
    RefusedByUpstream,
    ServiceError,
    UpstreamError,
)
from headrace.protocol.generation import AnyRequest, Event, Finished
from headrace.providers.base import Provider, answer
from headrace.router.health import Health
from headrace.router.plan import Attempt, Plan

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


def fails_over(error: HeadraceError) -> bool:
    """Whether the next attempt may be able where this one failed before its first event."""
    if isinstance(error, RefusedByUpstream):
        return error.status == NotFound.status or error.code in ABOUT_ONE_MODEL
    return isinstance(
        error, ServiceError | RateLimited | ContextTooLong | InvalidField | ModelNotFound
    )


class Execution:
    """One run of a plan. `attempts` and `served` grow as it goes and are complete when it has
    `ended`, which is before its last event comes out. `orphaned` says that the call which began
    it left while others listen."""

    def __init__(
        self,
        request: AnyRequest,
        plan: Plan,
        providers: Mapping[str, Provider],
        health: Health,
        clock: Callable[[], float],
    ) -> None:
        self.attempts: list[AttemptRecord] = []
        self.served: Attempt | None = None
        self.ended = False
        self.orphaned = False
        self._request = request
        self._plan = plan
        self._providers = providers
        self._health = health
        self._clock = clock
        self._started = clock()

    async def events(self) -> AsyncGenerator[Event, None]:
        """The events of the first attempt that yields one.

        Raises what that attempt raised after it, or the last attempt's error if none did.
        """
        error: HeadraceError = UpstreamError("No provider of this model can be tried now.")
        try:
            for attempt in self._plan.attempts:
                begun, first = self._clock(), None
                finished: Finished | None = None
                failure: BaseException | None = None
                provider = self._providers[attempt.provider]
                generation = answer(provider, self._request, attempt.upstream_model)
                try:
                    async for event in generation:
                        if first is None:
                            first = self._clock()
                            self.served = attempt
                        if isinstance(event, Finished):
                            finished = event
                        else:
                            yield event
                    if finished is None:
                        raise UpstreamError("The upstream's answer ended before it was finished.")
                except HeadraceError as problem:
                    failure = error = problem
                except BaseException as problem:
                    failure = problem
                    raise
                finally:
                    await close(generation)
                    self._note(attempt, begun, first, failure)
                if finished is not None and failure is None:
                    self.ended = True
                    yield finished
                    return
                if self.served is not None or not fails_over(error):
                    raise error
            raise error
        finally:
            self.ended = True

    def _note(
        self, attempt: Attempt, begun: float, first: float | None, failure: BaseException | None
    ) -> None:
        if failure is None:
            self._health.succeeded(attempt.host)
            message = code = None
        elif isinstance(failure, HeadraceError):
            self._health.failed(attempt.host, failure)
            message, code = failure.message, failure.code or failure.kind
        elif isinstance(failure, Exception):
            message, code = type(failure).__name__, "internal"
        else:  # cancelled, or closed by the one who listened
            message, code = "The call was cancelled.", "cancelled"
        self.attempts.append(
            AttemptRecord(
                model=attempt.model,
                provider=attempt.provider,
                reason=attempt.reason,
                started=begun - self._started,
                duration=self._clock() - begun,
                ttft=None if first is None else first - begun,
                error=message,
                error_code=code,
            )
        )
