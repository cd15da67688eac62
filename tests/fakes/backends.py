"""A backend in front of a real one: its steps take a set time, and some of them fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from headrace.runtime.backends.base import Backend, Batch, Pending, Sampled, SamplingRows
from headrace.runtime.engine import Engine


@dataclass
class Clock:
    """Seconds; they pass when a step is waited for."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Fronted:
    """`inner` with steps of `seconds(rows)`; `fault(batch)` may raise for a step.

    It is raised when the step is launched, or where `later` only when it is waited for. `queues`:
    as of a backend whose steps follow one another by themselves.
    """

    def __init__(
        self,
        inner: Backend,
        clock: Clock | None = None,
        seconds: Callable[[int], float] = lambda rows: 0.0,
        fault: Callable[[Batch], None] = lambda batch: None,
        *,
        later: bool = False,
        queues: bool = False,
    ) -> None:
        self.inner = inner
        self.clock = clock or Clock()
        self.seconds = seconds
        self.fault = fault
        self.later = later
        self.queues = queues

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def launch(self, batch: Batch, after: Pending | None = None) -> Pending:
        if after is not None:
            batch.fill(after.wait())
        if not self.later:
            self.fault(batch)
        before = after.inner if isinstance(after, Step) else after
        return Step(self, self.inner.launch(batch, before), batch)

    def run(self, batch: Batch) -> Sampled:
        return self.launch(batch).wait()


@dataclass(slots=True)
class Step:
    """A step of a fronted backend."""

    front: Fronted
    inner: Pending
    batch: Batch
    over: bool = False

    def choose(self, rows: SamplingRows) -> None:
        self.inner.choose(rows)

    def wait(self) -> Sampled:
        if self.front.later:
            self.front.fault(self.batch)
        seconds = self.front.seconds(len(self.batch.tokens))
        if not self.over:
            self.front.clock.now += seconds
        self.over = True
        return replace(self.inner.wait(), seconds=seconds)


def front(engine: Engine, **options: Any) -> None:
    """Put a `Fronted` in front of an engine's backend."""
    engine.loop.backend = Fronted(engine.loop.backend, **options)
