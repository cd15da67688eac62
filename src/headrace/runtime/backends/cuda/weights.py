"""Weights as the kernels read them: dense, or codes with a scale (and a minimum) a group.

Blocks are taken apart once at load, their codes and scales unchanged. `DeviceWeight.origin` says
what a weight was, also where formats that lie on top of each other had to become dense.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ...weights.tensor import BLOCKS, Tensor

Kind = Literal["dense", "int8", "int4", "fp8", "mxfp4"]
GROUP = 32  # values that share a scale, where a format does not say otherwise
DENSE = ("F32", "F16", "BF16")


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
    """One tensor taken apart, on the host: the fields of `DeviceWeight`."""

    kind: Kind
    values: NDArray[Any]
    scales: NDArray[np.float16] | NDArray[np.float32]
    minima: NDArray[np.float16] | NDArray[np.float32] | None = None
    highs: NDArray[np.uint8] | None = None
    group: int = GROUP
    high: int = 0


def halves(blocks: NDArray[np.uint8], begin: int) -> NDArray[np.float16]:
    """The binary16 at byte `begin` of each block [rows, blocks, bytes]."""
    found: NDArray[np.float16] = np.ascontiguousarray(blocks[..., begin : begin + 2]).view(
        np.float16
    )[..., 0]
    return found


def q4_0(blocks: NDArray[np.uint8]) -> Codes:
    """(code - 8) · scale: the minimum is -8 · scale, exactly."""
    scales = halves(blocks, 0)
    return Codes("int4", blocks[..., 2:], scales, scales * np.float16(-8))


def q4_1(blocks: NDArray[np.uint8]) -> Codes:
    """Code · scale + minimum."""
    return Codes("int4", blocks[..., 4:], halves(blocks, 0), halves(blocks, 2))


def q5_0(blocks: NDArray[np.uint8]) -> Codes:
    """(code - 16) · scale; the fifth bits are a word of 32."""
    scales = halves(blocks, 0).astype(np.float32)
    return Codes("int4", blocks[..., 6:], scales, scales * -16, blocks[..., 2:6], high=1)


def q5_1(blocks: NDArray[np.uint8]) -> Codes:
    """Code · scale + minimum; the fifth bits are a word of 32."""
    scales, minima = halves(blocks, 0), halves(blocks, 2)
    return Codes("int4", blocks[..., 8:], scales, minima, blocks[..., 4:8], high=1)


def q8_0(blocks: NDArray[np.uint8]) -> Codes:
    """Code · scale."""
    return Codes("int8", blocks[..., 2:].view(np.int8), halves(blocks, 0))


def mxfp4(blocks: NDArray[np.uint8]) -> Codes:
    """E2M1 · 2^(exponent - 127)."""
    scales = np.ldexp(np.float32(1), blocks[..., 0].astype(np.int32) - 127)
    return Codes("mxfp4", blocks[..., 1:], scales)


def e4m3(blocks: NDArray[np.uint8]) -> Codes:
    """E4M3 · scale of 128 values."""
    scales = np.ascontiguousarray(blocks[..., :4]).view(np.float32)[..., 0]
    return Codes("fp8", blocks[..., 4:], scales, group=128)


def sixes(packed: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Eight scales and eight minima of 6 bits in 12 bytes, as the K formats keep them."""
    low, high, last = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([low & 63, (last & 15) | (low >> 6 << 4)], axis=-1)
    minima = np.concatenate([high & 63, (last >> 4) | (high >> 6 << 4)], axis=-1)
    return scales, minima


def q4_k(blocks: NDArray[np.uint8]) -> Codes:
    """Eight groups of 32 a block of 256: code · (scale · s) - minimum · m, s and m of 6 bits.

    The products are kept as float32: they would underflow binary16.
    """
    scales, minima = sixes(blocks[..., 4:16])
    return Codes(
        "int4",
        nibble_groups(blocks[..., 16:]),
        scales * halves(blocks, 0).astype(np.float32)[..., None],
        minima * -halves(blocks, 2).astype(np.float32)[..., None],
    )


def nibble_groups(chunks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Chunks of 32 bytes, whose low halves are a group and whose high halves the next, as pairs."""
    codes = chunks.reshape(*chunks.shape[:2], 4, 32)
    groups = np.stack([codes & 15, codes >> 4], axis=3).reshape(*chunks.shape[:2], 8, 32)
    return paired(groups)


def paired(groups: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes of 4 bits [.., 32] as bytes [.., 16] of values i and i + 16."""
    found: NDArray[np.uint8] = np.bitwise_or(
        groups[..., :16], np.left_shift(groups[..., 16:], np.uint8(4))
    )
    return found


def q5_k(blocks: NDArray[np.uint8]) -> Codes:
    """As Q4_K, with a fifth bit: bit g of byte i is that of value i of group g."""
    four = q4_k(np.delete(blocks, np.s_[16:48], axis=2))
    bits = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    highs = np.packbits(bits, axis=-1, bitorder="little")
    return Codes("int4", four.values, four.scales, four.minima, highs, high=1)


def q6_k(blocks: NDArray[np.uint8]) -> Codes:
    """Sixteen groups of 16: (code - 32) · (scale · s), s an int8."""
    shape = blocks.shape[:2]
    low = blocks[..., :128].reshape(*shape, 2, 2, 32)  # half of the block, part, value
    fours = np.stack([low & 15, low >> 4], axis=3).reshape(*shape, 8, 32)
    high = blocks[..., 128:192].reshape(*shape, 2, 1, 32)
    twos = high >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    highs = twos.reshape(*shape, 64, 4) << np.arange(0, 8, 2, dtype=np.uint8)
    scales = blocks[..., 192:208].view(np.int8) * halves(blocks, 208).astype(np.float32)[..., None]
    packed = np.bitwise_or.reduce(highs, axis=-1)
    return Codes("int4", paired(fours), scales, scales * -32, packed, group=16, high=2)


APART: Mapping[str, Callable[[NDArray[np.uint8]], Codes]] = {
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


def upload(tensors: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> DeviceWeight:
    """The tensors on top of each other, as one weight on the device."""
    formats = {tensor.format for tensor in tensors}
    outputs, inputs = sum(tensor.rows for tensor in tensors), tensors[0].columns
    origin = "+".join(sorted(formats))
    if len(formats) > 1 or origin not in APART:
        parts = [dense(tensor).to(device).to(dtype) for tensor in tensors]
        origin = origin if formats <= set(DENSE) else f"{origin} widened"
        return DeviceWeight("dense", outputs, inputs, torch.cat(parts), origin=origin)
    taken = [APART[origin](blocks_of(tensor)) for tensor in tensors]

    def stacked(parts: list[NDArray[Any] | None]) -> torch.Tensor | None:
        rows = [part.reshape(len(part), -1) for part in parts if part is not None]
        return torch.from_numpy(np.concatenate(rows)).to(device) if rows else None

    values = stacked([codes.values for codes in taken])
    assert values is not None
    return DeviceWeight(
        taken[0].kind,
        outputs,
        inputs,
        values,
        stacked([codes.highs for codes in taken]),
        stacked([codes.scales for codes in taken]),
        stacked([codes.minima for codes in taken]),
        taken[0].group,
        taken[0].high,
        origin,
    )


def dense(tensor: Tensor) -> torch.Tensor:
    """The values; those of bfloat16 go as they are, in half the bytes of float32."""
    if tensor.format == "BF16":
        return torch.from_numpy(np.array(tensor.data).view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(tensor.float32())


def blocks_of(tensor: Tensor) -> NDArray[np.uint8]:
    """[rows, blocks, bytes a block]; a copy, for torch takes no array that cannot be written."""
    return np.array(tensor.data).reshape(tensor.rows, -1, BLOCKS[tensor.format][1])
