"""What the launches of a program work on: weights, KV and buffers on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch

from ...models.architecture import Rope
from ...models.program import Program
from ...weights.tensor import Tensor
from ..base import KVLayout
from .adapters import Adapters
from .cache import Cache
from .choices import Choices
from .float8 import Coded
from .group import Ranks
from .inputs import Step
from .staging import Staging
from .weights import DeviceWeight, upload

Launch = Callable[[Step], None]


@dataclass(slots=True)
class Model:
    """What launches work on. Buffers hold `capacity` rows."""

    program: Program
    weights: Mapping[str, Tensor]
    kv: KVLayout
    device: torch.device
    dtype: torch.dtype
    processors: int
    adapters: Adapters
    cache: Cache
    choices: Choices
    staging: Staging
    group: Ranks | None = None  # of a program's part: those who have the others
    multiplies_fp8: bool = False  # whether the chip's tensor cores do
    invariant: bool = False  # a row's bits do not depend on how many rows there are
    buffers: dict[str, torch.Tensor] = field(default_factory=dict)
    coded: dict[str, Coded] = field(default_factory=dict)  # buffers that are read as E4M3 too
    logits: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    partial_sums: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    partial_stats: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    uploaded: dict[tuple[str, ...], DeviceWeight] = field(default_factory=dict)
    tables: dict[Rope, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    prefills: bool = False  # whether the step at hand has rows that are not decodes

    @property
    def positions(self) -> int:
        """As many as a sequence may have, or more."""
        filling = self.kv.filling
        return self.kv.blocks * self.kv.block_size if filling is None else filling.context

    @property
    def ranks(self) -> Ranks:
        """The group of a program's part. Raises ValueError where the program is whole."""
        if self.group is None:
            raise ValueError("a part of a program was loaded without a place among ranks")
        return self.group

    def weight(self, *names: str) -> DeviceWeight:
        """These weights as one on the device; each set is uploaded once."""
        if names not in self.uploaded:
            self.uploaded[names] = upload(
                [self.weights[name] for name in names], self.dtype, self.staging
            )
        return self.uploaded[names]

    def vector(self, *names: str) -> torch.Tensor:
        """Vectors one after the other, float32."""
        parts = [self.weights[name].float32().ravel() for name in names]
        return torch.from_numpy(np.concatenate(parts)).to(self.device)

    def rows(self, name: str, step: Step) -> torch.Tensor:
        """The step's rows of a buffer."""
        return self.buffers[name][: step.rows]


@cache
def chained(device: torch.device) -> Mapping[str, bool]:
    """How kernels that may start early (`kernels.chain`) are launched."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0):
        return {"CHAINED": True, "launch_pdl": True}
    return {"CHAINED": False}


def power(width: int) -> int:
    """The least power of two that holds `width`, at least 16."""
    return max(16, 1 << (width - 1).bit_length())
