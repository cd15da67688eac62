"""Which of several ways is fastest on this device: measured once, kept in a file, read back later.

A way is known by what it works on and by the number it has among those to choose from. What was
measured on another device, driver or library is in another file. A start measures for a bounded
time; what it does not come to is taken in its most likely way, and measured at a later start. A
choice that was made does not change while the process lives, so equal work gives equal bits.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from triton.errors import TritonError

from ..measured import keep, read

Work = Callable[[], object]
Timer = Callable[[Work], float]  # seconds that work takes on the device; inf where it cannot run
Way = TypeVar("Way")

SECONDS = 2.0  # that a start measures for, compiling included; work under way is finished
ROUNDS = 5
GAIN = 0.98  # of the most likely way's time: what is hardly faster is noise
COLD = 3  # times the cache of the device: what is written between two rounds

log = logging.getLogger(__name__)


class Choices:
    """The ways of one device. Without a timer everything is done in its most likely way."""

    def __init__(
        self,
        path: Path | None,
        timer: Timer | None,
        seconds: float = SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.timer = timer
        self.left = seconds
        self.clock = clock
        self.kept = {} if path is None else read(path)
        self.made: dict[str, object] = {}
        self.changed = False

    def fastest(
        self, name: str, ways: Sequence[tuple[str, Way]], run: Callable[[Way], object]
    ) -> Way:
        """One of `ways`, the most likely first, each with a name of its own; `run` works by one.

        A way that is kept under `name` and no longer among them is measured anew.
        """
        named = dict(ways)
        if name not in self.made:
            chosen = self.kept.get(name)
            if chosen not in named:
                chosen = self.measure(name, ways, run)
            self.made[name] = named.get(chosen, ways[0][1])
        found: Way = self.made[name]  # type: ignore[assignment]
        return found

    def measure(
        self, name: str, ways: Sequence[tuple[str, Way]], run: Callable[[Way], object]
    ) -> str:
        """The name of the fastest, which is kept; of the most likely, where time runs out."""
        best, fewest = ways[0][0], float("inf")
        if self.timer is None or len(ways) == 1:
            return best
        for label, way in ways:
            if self.left <= 0:
                return ways[0][0]
            began = self.clock()
            spent = attempt(self.timer, lambda way=way: run(way))  # type: ignore[misc]
            self.left -= self.clock() - began
            if spent < fewest * (GAIN if best == ways[0][0] else 1):
                best, fewest = label, spent
        log.info("%s: %s, %.1f us", name, best, fewest * 1e6)
        self.kept[name] = best
        self.changed = True
        return best

    def close(self) -> None:
        """Measure no more; keep what was measured, beside what others have kept meanwhile."""
        self.timer = None  # and the memory that it holds
        if not self.changed or self.path is None:
            return
        try:
            keep(self.path, self.kept)
        except OSError as error:
            log.warning("what was measured is not kept: %s", error)
        self.changed = False


def attempt(timer: Timer, work: Work) -> float:
    """Seconds; inf where the device cannot do it so, as for lack of shared memory."""
    try:
        return timer(work)
    except (RuntimeError, TritonError) as error:
        log.info("cannot be done so: %s", str(error).partition("\n")[0])
        return float("inf")


def driver(at: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of the kernel's driver."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", at.read_text())
    except OSError:
        found = None
    return "driver unknown" if found is None else f"driver {found[0]}"


class EventTimer:
    """Time of a captured and replayed graph, by the device's own events, its cache cold."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cold: torch.Tensor | None = None
        # one for all: the library keeps working memory for every stream that it captured on
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, work: Work) -> float:
        """The median of some rounds, after one that compiles. Raises what the work raises."""
        if self.cold is None:
            size = COLD * torch.cuda.get_device_properties(self.device).L2_cache_size
            self.cold = torch.empty(size, dtype=torch.uint8, device=self.device)
        work()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            graph.capture_begin()
            try:
                work()
            finally:
                graph.capture_end()
            rounds = []
            for _ in range(ROUNDS):
                self.cold.zero_()
                before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                before.record()
                graph.replay()
                after.record()
                rounds.append((before, after))
        self.stream.synchronize()
        return float(median(before.elapsed_time(after) for before, after in rounds)) / 1e3
