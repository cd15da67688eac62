"""Captured steps: a decode step of a size that came before is one launch.

A size is captured at its second use, the first having compiled the kernels; so serving starts
before anything is captured, and sizes that do not come cost nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from .inputs import Step
from .model import Launch

log = logging.getLogger(__name__)


def bucket(rows: int) -> int:
    """The size a step of `rows` decodes is padded to: powers of two to 16, then steps of 16."""
    return 1 << (rows - 1).bit_length() if rows <= 16 else -(-rows // 16) * 16


class Graphs:
    """The launches of a program, and the graphs captured of them."""

    def __init__(self, launches: Sequence[Launch], device: torch.device) -> None:
        self.launches = launches
        self.device = device
        self.seen: set[int] = set()
        # None where it could not be captured, for want of memory
        self.captured: dict[int, torch.cuda.CUDAGraph | None] = {}

    def forget(self) -> None:
        """Drop what was captured: the buffers have moved."""
        self.seen.clear()
        self.captured.clear()

    def run(self, step: Step, repeats: bool) -> None:
        """Run the step; `repeats` where steps of this many rows will come again."""
        if not repeats or self.device.type != "cuda":
            self.launch(step)
            return
        if step.rows in self.seen and step.rows not in self.captured:
            self.captured[step.rows] = self.attempt(step)
        self.seen.add(step.rows)
        graph = self.captured.get(step.rows)
        if graph is None:
            self.launch(step)
        else:
            graph.replay()

    def launch(self, step: Step) -> None:
        """Launch by launch."""
        for launch in self.launches:
            launch(step)

    def attempt(self, step: Step) -> torch.cuda.CUDAGraph | None:
        """The step as one graph; None where there is no memory for one."""
        try:
            return self.capture(step)
        except RuntimeError:  # out of memory, or what ending the capture says after it
            log.warning("steps of %d rows are not captured", step.rows, exc_info=True)
            return None

    def capture(self, step: Step) -> torch.cuda.CUDAGraph:
        """The step as one graph. It reads the step's arrays where they lie now."""
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.launch(step)
        return graph
