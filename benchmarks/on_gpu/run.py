"""What every phase has: sizes, ceilings, a clock that says when to stop, and ways to time."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from headrace.runtime.backends.base import Batch
from headrace.runtime.backends.cuda import CUDABackend

from .shapes import Sizes

Line = dict[str, Any]
WARM = 3  # runs that count for nothing: compile, capture, replay


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the chip gave in this run."""

    read: float = 1e12  # bytes a second
    copy: float = 1e12  # bytes a second, read and written together
    products: float = 1e15  # bfloat16 operations a second, a multiply and an add being two
    products_fp8: float = 1e15
    launch: float = 0.0  # seconds of an empty kernel
    replay: float = 0.0  # seconds of a graph of 100 empty kernels


@dataclass(frozen=True, slots=True)
class Run:
    """One phase at work; `share` of `shares` where several processes do it together."""

    sizes: Sizes
    until: float  # on the monotonic clock
    ceilings: Ceilings = field(default_factory=Ceilings)
    share: int = 0
    shares: int = 1
    model: Path | None = None  # a real one
    wheels: Path | None = None  # of a peer

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()

    @property
    def device(self) -> torch.device:
        """Where the kernels run."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def seconds(self, work: Callable[[], object]) -> float:
        """The median time of some work on the device, warm."""
        work()
        if self.device.type != "cuda":
            return median(stopwatch(work) for _ in range(self.sizes.rounds))
        found = []
        for _ in range(self.sizes.rounds):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            before.record()
            work()
            after.record()
            found.append((before, after))
        torch.cuda.synchronize()
        return float(median(before.elapsed_time(after) for before, after in found)) / 1e3

    def step(self, backend: CUDABackend, batch: Batch) -> tuple[float, float]:
        """Seconds of a step from launch to tokens, and of that on the device where a captured
        step could be replayed alone (NaN where not)."""
        for _ in range(WARM if self.device.type == "cuda" else 1):
            backend.run(batch)
        whole = median(stopwatch(lambda: backend.run(batch)) for _ in range(self.sizes.rounds))
        graph = backend.graphs.captured.get(len(batch.tokens))
        return whole, self.seconds(graph.replay) if graph is not None else float("nan")


def stopwatch(work: Callable[[], object]) -> float:
    """Seconds on the host's clock."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def free_memory(device: torch.device) -> int:
    """Bytes that the device has free; of none, a little."""
    gc.collect()
    if device.type != "cuda":
        return 1 << 24
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info()[0])


def error_of(actual: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """|actual - truth| / |truth|; NaN where anything is."""
    difference = np.asarray(actual, np.float64) - np.asarray(truth, np.float64)
    return float(np.linalg.norm(difference)) / max(float(np.linalg.norm(truth)), 1e-30)


def write_lines(path: Path, lines: Iterator[Line]) -> None:
    """Each line as soon as it is there, so that a run that is cut leaves what it has."""
    with path.open("a") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
            file.flush()
            print("  ".join(f"{name} {short(value)}" for name, value in line.items()), flush=True)


def short(value: object) -> str:
    """A value for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
