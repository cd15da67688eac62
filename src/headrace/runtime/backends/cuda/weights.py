"""Weights as the kernels read them: dense, or codes with a scale (and a minimum) a group.

Blocks go to the device as they lie in their file and are taken apart there, once at load, their
codes and scales unchanged. `DeviceWeight.origin` says
what a weight was, also where formats that lie on top of each other had to become dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ...weights.tensor import BLOCKS, Tensor
from .staging import Staging

Kind = Literal["dense", "int8", "int4", "fp8", "mxfp4"]
GROUP = 32  # values that share a scale, where a format does not say otherwise
DENSE = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class DeviceWeight:
    """A matrix [outputs, inputs] on the device.

    Dense: `values` [outputs, inputs] float. int8, fp8: `values` [outputs, inputs] int8 codes or
    E4M3 as uint8. int4, mxfp4: `values` uint8 [outputs, inputs / 2], byte i of a block of 32
    holding values i and i + 16; codes of 5 and 6 bits are int4 with their `high` 1 or 2 bits in
    `highs` uint8 [outputs, inputs · high / 8], the lowest first. Codes have `scales` and perhaps
    `minima` [outputs, inputs / group].
    """

    kind: Kind
    outputs: int
    inputs: int
    values: torch.Tensor
    highs: torch.Tensor | None = None
    scales: torch.Tensor | None = None
    minima: torch.Tensor | None = None
    group: int = GROUP
    high: int = 0
    origin: str = ""

    @property
    def pointers(self) -> tuple[torch.Tensor | None, ...]:
        """What a kernel's `weight, highs, scales, minima` are."""
        return self.values, self.highs, self.scales, self.minima

    @property
    def form(self) -> Mapping[str, Any]:
        """What a kernel must know of the format when it is compiled."""
        return {
            "KIND": self.kind,
            "GROUP": self.group,
            "HIGH": self.high,
            "MINIMA": self.minima is not None,
        }

    @property
    def bytes(self) -> int:
        """What it takes on the device."""
        return sum(one.nbytes for one in self.pointers if one is not None)


@dataclass(frozen=True, slots=True)
class Codes:
    """One tensor taken apart: the fields of `DeviceWeight`, a row a row."""

    kind: Kind
    values: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor | None = None
    highs: torch.Tensor | None = None
    group: int = GROUP
    high: int = 0


def numbers(blocks: torch.Tensor, begin: int, kind: torch.dtype) -> torch.Tensor:
    """The float of a type at byte `begin` of each block [rows, blocks, bytes]."""
    return blocks[..., begin : begin + kind.itemsize].contiguous().view(kind)[..., 0]


def halves(blocks: torch.Tensor, begin: int) -> torch.Tensor:
    """The binary16 there."""
    return numbers(blocks, begin, torch.float16)


def counted(blocks: torch.Tensor, count: int, step: int = 1) -> torch.Tensor:
    """0, step, 2 · step ... uint8, to shift by."""
    return torch.arange(0, count * step, step, dtype=torch.uint8, device=blocks.device)


def q4_0(blocks: torch.Tensor) -> Codes:
    """(code - 8) · scale: the minimum is -8 · scale, exactly."""
    scales = halves(blocks, 0)
    return Codes("int4", blocks[..., 2:], scales, scales * -8)


def q4_1(blocks: torch.Tensor) -> Codes:
    """Code · scale + minimum."""
    return Codes("int4", blocks[..., 4:], halves(blocks, 0), halves(blocks, 2))


def q5_0(blocks: torch.Tensor) -> Codes:
    """(code - 16) · scale; the fifth bits are a word of 32."""
    scales = halves(blocks, 0).float()
    return Codes("int4", blocks[..., 6:], scales, scales * -16, blocks[..., 2:6], high=1)


def q5_1(blocks: torch.Tensor) -> Codes:
    """Code · scale + minimum; the fifth bits are a word of 32."""
    scales, minima = halves(blocks, 0), halves(blocks, 2)
    return Codes("int4", blocks[..., 8:], scales, minima, blocks[..., 4:8], high=1)


def q8_0(blocks: torch.Tensor) -> Codes:
    """Code · scale."""
    return Codes("int8", blocks[..., 2:].view(torch.int8), halves(blocks, 0))


def mxfp4(blocks: torch.Tensor) -> Codes:
    """E2M1 · 2^(exponent - 127): the exponent is a float32's own, but for 0 below the normal."""
    exponents = blocks[..., 0].int()
    bits = torch.where(exponents == 0, 1 << 22, exponents << 23)
    return Codes("mxfp4", blocks[..., 1:], bits.int().view(torch.float32))


def e4m3(blocks: torch.Tensor) -> Codes:
    """E4M3 · scale of 128 values."""
    return Codes("fp8", blocks[..., 4:], numbers(blocks, 0, torch.float32), group=128)


def sixes(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight minima of 6 bits in 12 bytes, as the K formats keep them."""
    low, high, last = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = torch.cat([low & 63, (last & 15) | (low >> 6 << 4)], dim=-1)
    minima = torch.cat([high & 63, (last >> 4) | (high >> 6 << 4)], dim=-1)
    return scales, minima


def q4_k(blocks: torch.Tensor) -> Codes:
    """Eight groups of 32 a block of 256: code · (scale · s) - minimum · m, s and m of 6 bits.

    The products are kept as float32: they would underflow binary16.
    """
    scales, minima = sixes(blocks[..., 4:16])
    return Codes(
        "int4",
        nibble_groups(blocks[..., 16:]),
        scales * halves(blocks, 0).float()[..., None],
        minima * -halves(blocks, 2).float()[..., None],
    )


def nibble_groups(chunks: torch.Tensor) -> torch.Tensor:
    """Chunks of 32 bytes, whose low halves are a group and whose high halves the next, as pairs."""
    codes = chunks.reshape(*chunks.shape[:2], 4, 32)
    return paired(torch.stack([codes & 15, codes >> 4], dim=3).flatten(2, 3))


def paired(groups: torch.Tensor) -> torch.Tensor:
    """Codes of 4 bits [.., 32] as bytes [.., 16] of values i and i + 16."""
    return groups[..., :16] | groups[..., 16:] << 4


def q5_k(blocks: torch.Tensor) -> Codes:
    """As Q4_K, with a fifth bit: bit g of byte i is that of value i of group g."""
    four = q4_k(torch.cat([blocks[..., :16], blocks[..., 48:]], dim=2))
    eight = counted(blocks, 8)
    bits = blocks[..., None, 16:48] >> eight[:, None] & 1
    highs = (bits.reshape(*bits.shape[:-1], 4, 8) << eight).sum(dim=-1, dtype=torch.uint8)
    return Codes("int4", four.values, four.scales, four.minima, highs, high=1)


def q6_k(blocks: torch.Tensor) -> Codes:
    """Sixteen groups of 16: (code - 32) · (scale · s), s an int8."""
    shape = blocks.shape[:2]
    low = blocks[..., :128].reshape(*shape, 2, 2, 32)  # half of the block, part, value
    fours = torch.stack([low & 15, low >> 4], dim=3).reshape(*shape, 8, 32)
    high = blocks[..., 128:192].reshape(*shape, 2, 1, 32)
    twos = counted(blocks, 4, step=2)
    highs = (high >> twos[:, None] & 3).reshape(*shape, 64, 4) << twos
    scales = blocks[..., 192:208].view(torch.int8) * halves(blocks, 208).float()[..., None]
    packed = highs.sum(dim=-1, dtype=torch.uint8)
    return Codes("int4", paired(fours), scales, scales * -32, packed, group=16, high=2)


APART: Mapping[str, Callable[[torch.Tensor], Codes]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "MXFP4": mxfp4,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "E4M3": e4m3,
}


def upload(tensors: Sequence[Tensor], dtype: torch.dtype, staging: Staging) -> DeviceWeight:
    """The tensors on top of each other, as one weight on the device."""
    formats = {tensor.format for tensor in tensors}
    outputs, inputs = sum(tensor.rows for tensor in tensors), tensors[0].columns
    origin = "+".join(sorted(formats))
    if len(formats) > 1 or origin not in APART:
        values = torch.empty((outputs, inputs), dtype=dtype, device=staging.device)
        first = 0
        for tensor in tensors:
            dense(tensor, staging, values[first : first + tensor.rows])
            first += tensor.rows
        origin = origin if formats <= DENSE.keys() else f"{origin} widened"
        return DeviceWeight("dense", outputs, inputs, values, origin=origin)
    taken = [APART[origin](blocks_of(tensor, staging)) for tensor in tensors]

    def stacked(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
        rows = [part.flatten(1) for part in parts if part is not None]
        return torch.cat(rows) if rows else None

    values_of = stacked([codes.values for codes in taken])
    assert values_of is not None
    return DeviceWeight(
        taken[0].kind,
        outputs,
        inputs,
        values_of,
        stacked([codes.highs for codes in taken]),
        stacked([codes.scales for codes in taken]),
        stacked([codes.minima for codes in taken]),
        taken[0].group,
        taken[0].high,
        origin,
    )


def dense(tensor: Tensor, staging: Staging, out: torch.Tensor) -> None:
    """The values to rows of a weight; those that have its type already go as they are."""
    kind = DENSE.get(tensor.format)
    if kind is None:
        out.copy_(torch.from_numpy(tensor.float32()))
    elif kind == out.dtype:
        staging.copy(tensor.data, out.view(torch.uint8).view(-1))
    else:
        there = torch.empty((tensor.rows, tensor.columns), dtype=kind, device=staging.device)
        staging.copy(tensor.data, there.view(torch.uint8).view(-1))
        out.copy_(there)


def blocks_of(tensor: Tensor, staging: Staging) -> torch.Tensor:
    """[rows, blocks, bytes a block], on the device."""
    there = torch.empty(tensor.data.size, dtype=torch.uint8, device=staging.device)
    staging.copy(tensor.data, there)
    return there.view(tensor.rows, -1, BLOCKS[tensor.format][1])
