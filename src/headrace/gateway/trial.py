"""One attempt under way: opened up to its first event, run to its end, noted however it ends."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field

from headrace.config.schema import Configuration
from headrace.gateway.disconnect import close
from headrace.observability.record import AttemptRecord
from headrace.protocol.errors import HeadraceError, UpstreamError, UpstreamTimeout
from headrace.protocol.generation import AnyRequest, Delta, Event, Finished, TextDelta, Usage
from headrace.protocol.media import MediaRequest
from headrace.providers.base import Provider, answer
from headrace.router.cost import cost
from headrace.router.decide import Router
from headrace.router.plan import Attempt


@dataclass(frozen=True, slots=True)
class Ground:
    """What every attempt of one execution stands on. `started` is the execution's own start;
    `records` takes what became of each attempt."""

    configuration: Configuration
    providers: Mapping[str, Provider]
    router: Router
    clock: Callable[[], float]
    started: float
    prompt_tokens: int  # as estimated
    records: list[AttemptRecord] = field(default_factory=list)


class Trial:
    """One attempt. `open` first, then `events`; whoever opened it and will not read it to its end
    closes it by `abandon`."""

    def __init__(self, ground: Ground, attempt: Attempt, request: AnyRequest) -> None:
        self.attempt = attempt
        self.finished: Finished | None = None
        self.text: list[str] = []
        self.lost = False  # to another attempt, which was first
        self.plain = True  # nothing came but text of one choice
        self._ground = ground
        self._request = request
        self._begun = ground.clock()
        self._first: float | None = None
        self._deltas = 0
        self._held: Event | None = None
        self._ended = False
        host = attempt.provider, attempt.upstream_model
        ground.router.health.begun(*host)
        self._met = ground.router.speeds.begun(*host, ground.prompt_tokens)
        provider = ground.providers[attempt.provider]
        self._generation = answer(provider, request, attempt.upstream_model)

    async def open(self) -> None:
        """Wait for the first event. Raises what the provider raises; then it is over."""
        try:
            self._held = await anext(self._generation, None)
            if self._held is None:
                raise _unfinished()
            self._first = self._ground.clock()
        except BaseException as failure:
            await self._end(failure)
            raise

    async def events(self) -> AsyncGenerator[Event, None]:
        """All events but the last, which is left in `finished`; then it is over."""
        failure: BaseException | None = None
        try:
            event = self._held
            while event is not None:
                if isinstance(event, Finished):
                    self.finished = event
                else:
                    self._count(event)
                    yield event
                event = await anext(self._generation, None)
            if self.finished is None:
                raise _unfinished()
        except BaseException as problem:
            failure = problem
            raise
        finally:
            await self._end(failure)

    async def abandon(self) -> None:
        """Close it, as nobody will read it."""
        await self._end(GeneratorExit())

    def _count(self, event: Event) -> None:
        if isinstance(event, Delta):
            self._deltas += 1
        if isinstance(event, TextDelta) and event.choice == 0:
            self.text.append(event.text)
        else:
            self.plain = False

    async def _end(self, failure: BaseException | None) -> None:
        if self._ended:
            return
        self._ended = True
        try:
            if failure is not None:  # else it has come to its end
                await close(self._generation)
        finally:
            self._note(failure)

    def _note(self, failure: BaseException | None) -> None:
        ground, attempt = self._ground, self.attempt
        now = ground.clock()
        message, code = self._told(failure, now)
        usage = self._usage(failure)
        price = ground.configuration.models[attempt.model].rates
        ground.records.append(
            AttemptRecord(
                model=attempt.model,
                provider=attempt.provider,
                reason=attempt.reason,
                started=self._begun - ground.started,
                duration=now - self._begun,
                ttft=self._ttft(),
                predicted_ttft=attempt.ttft,
                predicted_itl=attempt.itl,
                usage=usage,
                cost=0.0 if usage is None else cost(price, usage),
                error=message,
                error_code=code,
            )
        )

    def _told(self, failure: BaseException | None, now: float) -> tuple[str | None, str | None]:
        """Tell the router how it went; what the record says of a failure."""
        router = self._ground.router
        host = self.attempt.provider, self.attempt.upstream_model
        router.speeds.ended(*host)
        late = False
        if (ttft := self._ttft()) is not None:
            late = router.speeds.first(*host, self._met, ttft)
        if failure is None:
            if ttft is not None and self.finished is not None and self._first is not None:
                tokens = self.finished.usage.completion_tokens
                if tokens > 1:
                    router.speeds.between(*host, self._met, (now - self._first) / (tokens - 1))
            (router.health.late if late else router.health.succeeded)(*host)
            return None, None
        if isinstance(failure, HeadraceError):
            router.health.failed(*host, failure)
            return failure.message, failure.code or failure.kind
        router.health.left(*host)
        if isinstance(failure, Exception):
            return type(failure).__name__, "internal"
        if self.lost:
            return "Another attempt was first.", "lost"
        # cancelled, or closed by the one who listened
        return "The call was cancelled.", "cancelled"

    def _ttft(self) -> float | None:
        """Seconds to the first token; None where there was none, or all came at once."""
        if self._first is None or (self.finished is not None and self.finished.whole):
            return None
        return self._first - self._begun

    def _usage(self, failure: BaseException | None) -> Usage | None:
        """What it is taken to have used. An answer that did not end is estimated by what
        came of it, one that passes through by what was asked; one that had not begun has its
        prompt, None where the upstream refused it."""
        if self.finished is not None:
            return self.finished.usage
        refused = isinstance(failure, Exception) and not isinstance(failure, UpstreamTimeout)
        if self._first is None and refused:
            return None
        if isinstance(request := self._request, MediaRequest):
            return Usage(
                0,
                0,
                images=request.images,
                seconds=request.seconds,
                characters=request.characters,
                provenance="estimated",
            )
        return Usage(self._ground.prompt_tokens, self._deltas, provenance="estimated")


def _unfinished() -> UpstreamError:
    return UpstreamError("The upstream's answer ended before it was finished.")
