"""The KV cache on the device: floats, or bytes with a scale for each token and head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from ...models.program import Program
from ..base import KVLayout

Form = Literal["float", "int8", "fp8"]


class Layer(NamedTuple):
    """One layer's keys and values [slots, kv_heads, head_size], and scales [slots, kv_heads]."""

    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None
    value_scales: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Cache:
    """All layers', the layer being the first dimension; see `KVLayout` for the 8-bit forms."""

    form: Form
    keys: torch.Tensor
    values: torch.Tensor
    key_scales: torch.Tensor | None = None
    value_scales: torch.Tensor | None = None

    def layer(self, index: int) -> Layer:
        """Those of one layer."""
        return Layer(*(None if one is None else one[index] for one in self.tensors))  # type: ignore[arg-type]

    @property
    def bytes(self) -> int:
        """What it takes on the device."""
        return sum(one.nbytes for one in self.tensors if one is not None)

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """Keys, values and their scales."""
        return self.keys, self.values, self.key_scales, self.value_scales


NO_CACHE = Cache("float", torch.zeros(0), torch.zeros(0))


def new_cache(program: Program, kv: KVLayout, dtype: torch.dtype, device: torch.device) -> Cache:
    """An empty cache; "f16" has the activations' type."""
    slots = program.layers, kv.blocks * kv.block_size, program.kv_heads
    form: Form = "float" if kv.dtype == "f16" else kv.dtype
    kept = {"float": dtype, "int8": torch.int8, "fp8": torch.uint8}[form]

    def zeros(*shape: int, kind: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=kind, device=device)

    keys, values = (zeros(*slots, program.head_size, kind=kept) for _ in range(2))
    if form == "float":
        return Cache(form, keys, values)
    scales = (zeros(*slots, kind=torch.float32) for _ in range(2))
    return Cache(form, keys, values, *scales)
