"""A step on the stream: the host waits for one event, and finds a small copy of what was chosen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..base import Sampled, SamplingRows
from .sampling import Chosen, sample, unpacked


@contextmanager
def memory_errors() -> Iterator[None]:
    """What torch says where there is no memory, as everybody says it: MemoryError."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(str(error)) from error


class Clock:
    """Time on the stream; of the interpreter, that of the host, which does all itself."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.began = self.mark()
        self.ended: torch.cuda.Event | float | None = None

    def mark(self) -> torch.cuda.Event | float:
        """This place of the stream."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def stop(self) -> None:
        """All that was put on the stream belongs to it."""
        self.ended = self.mark()

    def seconds(self) -> float:
        """What it took, once it is over; waits for that."""
        if isinstance(self.began, torch.cuda.Event) and isinstance(self.ended, torch.cuda.Event):
            self.ended.synchronize()
            return float(self.began.elapsed_time(self.ended)) / 1e3
        if isinstance(self.began, float) and isinstance(self.ended, float):
            return self.ended - self.began
        raise ValueError("the clock was not stopped")


@dataclass(slots=True)
class Running:
    """Logits on the device, then what is chosen by them, and a copy of that on the host."""

    logits: torch.Tensor
    clock: Clock
    chosen: Chosen | None = None
    copy: torch.Tensor | None = None  # of `Chosen.packed`

    def choose(self, rows: SamplingRows) -> None:
        """Put the sampling on the stream. Raises MemoryError: the step is lost."""
        with memory_errors():
            self.chosen = sample(self.logits, rows)
            self.copy = on_host(self.chosen.packed())
        self.clock.stop()

    def wait(self) -> Sampled:
        """What was chosen. Raises ValueError where that was never said, MemoryError."""
        if self.copy is None:
            raise ValueError("the step was never told how its tokens are chosen")
        with memory_errors():
            seconds = self.clock.seconds()
        return Sampled(*unpacked(self.copy.numpy()), seconds)


def on_host(part: torch.Tensor) -> torch.Tensor:
    """A copy in pinned memory, complete when the stream has come so far."""
    if part.device.type != "cuda":
        return part
    copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
    return copy.copy_(part, non_blocking=True)
