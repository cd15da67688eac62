"""Products of E4M3 weights with rows rounded to E4M3, where the chip multiplies such values.

A step of few rows is bound by reading the weights: it widens them (`products`) and rounds no row.
Rows that a norm writes are rounded by the norm itself, while it has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

from ...models.program import Linear, Norm, Op, Program
from ...weights.tensor import Tensor
from .kernels.float8 import encode_rows, project_codes
from .weights import DeviceWeight

ROWS, BLOCK_N = 64, 64


class Coded(NamedTuple):
    """Rows of a buffer as E4M3: uint8 codes [rows, width], float32 scales [rows]."""

    codes: torch.Tensor
    scales: torch.Tensor


def coded_linears(program: Program, weights: Mapping[str, Tensor]) -> list[Linear]:
    """The linears all of whose weights are E4M3."""
    return [
        op
        for op in program.ops
        if isinstance(op, Linear) and all(weights[name].format == "E4M3" for name in op.weights)
    ]


def coded_by_norms(program: Program, weights: Mapping[str, Tensor]) -> frozenset[str]:
    """The buffers that such linears read and that norms alone write."""
    read = {op.source for op in coded_linears(program, weights)}
    others = {written(op) for op in program.ops if not isinstance(op, Norm)}
    return frozenset(read - others)


def written(op: Op) -> str | None:
    """The buffer that an op writes, where it writes one."""
    return getattr(op, "out", getattr(op, "qkv", None))


def encode(source: torch.Tensor, coded: Coded, block: int) -> None:
    """Round rows; `block` is a power of two that holds one."""
    encode_rows[(len(source),)](*coded, source, source.shape[1], BLOCK=block)


def multiply_codes(
    coded: Coded, weight: DeviceWeight, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """Out [rows, outputs] = the rows @ weight.T + bias."""
    project_codes[(-(-weight.outputs // BLOCK_N), -(-len(out) // ROWS))](
        out,
        *coded,
        weight.values,
        weight.scales,
        bias,
        len(out),
        weight.outputs,
        weight.inputs,
        out.stride(0),
        BIAS=bias is not None,
        ROWS=ROWS,
        BLOCK_N=BLOCK_N,
        BLOCK_K=weight.group,
    )
