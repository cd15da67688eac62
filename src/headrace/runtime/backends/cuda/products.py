"""Matrix products: which kernel, and how it is cut."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .kernels.linear import add_splits, project_rows
from .weights import DeviceWeight

Product = Callable[[torch.Tensor, torch.Tensor], None]  # source [rows, inputs], out [rows, outputs]

FEW = 16  # rows up to which reading the weights is what bounds
BLOCK_N = {16: 32, 64: 64}  # outputs of a program, by its rows
BLOCK_K = {"dense": 128, "int8": 128, "fp8": 128, "int4": 256, "mxfp4": 256}
WAVES = 4  # programs wanted for each processor
LEAST = 512  # inputs of a part


def product(weight: DeviceWeight, bias: torch.Tensor | None, processors: int) -> Product:
    """Out = source @ weight.T + bias."""
    parts = splits(weight, processors)
    part = -(-weight.inputs // (parts * BLOCK_K[weight.kind])) * BLOCK_K[weight.kind]

    def multiply(source: torch.Tensor, out: torch.Tensor) -> None:
        rows = len(source)
        if weight.kind == "dense" and rows > FEW:
            many(source, weight.values, bias, out)
            return
        cut = parts if rows <= FEW else 1
        size = 16 if rows <= FEW else 64
        target = (
            out if cut == 1 else out.new_empty((cut, rows, weight.outputs), dtype=torch.float32)
        )
        grid = (-(-weight.outputs // BLOCK_N[size]), -(-rows // size), cut)
        project_rows[grid](
            target,
            source,
            *weight.pointers,
            bias,
            rows,
            weight.outputs,
            weight.inputs,
            part if cut > 1 else weight.inputs,
            target.stride(-2),
            **weight.form,
            BIAS=bias is not None and cut == 1,
            ROWS=size,
            BLOCK_N=BLOCK_N[size],
            BLOCK_K=BLOCK_K[weight.kind],
        )
        if cut > 1:
            add_splits[(-(-out.numel() // 1024),)](
                out,
                target,
                bias,
                out.numel(),
                weight.outputs,
                out.stride(0),
                BIAS=bias is not None,
                SPLITS=cut,
                BLOCK=1024,
            )

    return multiply


def splits(weight: DeviceWeight, processors: int) -> int:
    """Parts that the inputs are cut into, from the weight's shape alone."""
    programs = -(-weight.outputs // BLOCK_N[16])
    wanted = -(-processors * WAVES // programs)
    return max(1, min(wanted, weight.inputs // LEAST))


def many(
    source: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """The library's product, of many rows."""
    if out.dtype == source.dtype:
        torch.mm(source, values.T, out=out)
    else:
        out.copy_(source @ values.T)
    if bias is not None:
        out += bias.to(out.dtype)
