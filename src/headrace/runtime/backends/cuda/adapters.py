"""LoRA adapters on the device: what each row's adapter adds to a packed linear.

Rows of one adapter go together through two small products. Steps with adapters are launched op by
op; a step without any does nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

from ...models.program import Linear, Program
from ...weights.lowrank import LowRank
from ...weights.tensor import Tensor
from ..base import Batch


class Factors(NamedTuple):
    """One change, its scale in `up`."""

    down: torch.Tensor  # [inputs, rank]
    up: torch.Tensor  # [rank, outputs]


class Adapters:
    """Adapters by number."""

    def __init__(self, program: Program, weights: Mapping[str, Tensor]) -> None:
        self.shapes = {
            name: (weights[name].rows, weights[name].columns)
            for op in program.ops
            if isinstance(op, Linear)
            for name in op.weights
        }
        self.loaded: dict[int, dict[str, Factors]] = {}

    def load(
        self,
        number: int,
        deltas: Mapping[str, LowRank],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Take an adapter in. Raises ValueError where a change does not fit."""
        for name, delta in deltas.items():
            if name not in self.shapes:
                raise ValueError(f"the program has no weight '{name}'")
            rank = len(delta.down)
            fitting = (rank, self.shapes[name][1]), (self.shapes[name][0], rank)
            if (delta.down.shape, delta.up.shape) != fitting:
                raise ValueError(
                    f"the adapter's factors of '{name}' are {delta.down.shape} and "
                    f"{delta.up.shape}, expected {fitting[0]} and {fitting[1]}"
                )
        self.loaded[number] = {
            name: Factors(
                torch.from_numpy(np.array(delta.down.T)).to(device, dtype),
                torch.from_numpy(delta.up.T * np.float32(delta.scale)).to(device, dtype),
            )
            for name, delta in deltas.items()
        }

    def drop(self, number: int) -> None:
        """Release one. Raises ValueError where there is none of this number."""
        if self.loaded.pop(number, None) is None:
            raise ValueError(f"there is no adapter {number}")

    def move(self, device: torch.device) -> None:
        """Keep all of them on a device."""
        self.loaded = {
            number: {
                name: Factors(down.to(device), up.to(device)) for name, (down, up) in these.items()
            }
            for number, these in self.loaded.items()
        }

    def rows(self, batch: Batch) -> dict[int, torch.Tensor]:
        """The rows of each adapter of the batch. Raises ValueError (a number that is not there)."""
        if batch.adapters is None:
            return {}
        for index, number in enumerate(batch.adapters.tolist()):
            if number != -1 and number not in self.loaded:
                raise ValueError(
                    f"adapters[{index}] is {number}, expected -1 or the number of an adapter"
                )
        chosen = np.repeat(batch.adapters, np.diff(batch.row_starts))
        return {
            number: torch.from_numpy(np.flatnonzero(chosen == number))
            for number in np.unique(chosen).tolist()
            if number != -1
        }

    def changes(self, number: int, op: Linear) -> Iterator[tuple[int, int, Factors]]:
        """What an adapter changes of a linear: the outputs from, to, and the factors."""
        first = 0
        for name in op.weights:
            last = first + self.shapes[name][0]
            if name in self.loaded[number]:
                yield first, last, self.loaded[number][name]
            first = last

    def add(
        self,
        op: Linear,
        adapted: Mapping[int, torch.Tensor],
        source: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Add what the rows' adapters change of one linear."""
        for number, rows in adapted.items():
            for first, last, factors in self.changes(number, op):
                change = source[rows].to(factors.down.dtype) @ factors.down @ factors.up
                out[:, first:last].index_add_(0, rows.to(out.device), change.to(out.dtype))
