"""Which kernel runs what, told for people: of a loaded model, or on a GPU that is not here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

import torch

from ...models.program import Linear, Logits, MixExperts, Program
from ...weights.tensor import BLOCKS, Tensor
from .products import FEW, LEVELS, choice_name, ways
from .weights import APART, DeviceWeight

PROCESSORS = 108  # of a GPU that is not here; how inputs are cut depends on it, and no name told
CAPABILITIES = ((8, 0), (9, 0))  # that say all: E4M3 is multiplied from 8.9 on
FP8_FROM = (8, 9)


def told(
    program: Program,
    weights: Mapping[str, Tensor],
    measured: Mapping[str, str],
    *,
    multiplies_fp8: bool,
    invariant: bool = False,
) -> dict[str, str]:
    """What multiplies by each format, as "linear Q4_1"; `measured` are kept choices by name.

    What was not measured yet is told as it runs until then.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for weight in multiplied(program, weights):
        if invariant:
            tiles = LEVELS[-1], ""
        else:
            tiles = reach(weight, measured)
        found.setdefault(weight.origin, []).append(tiles)
    lines = {}
    for format, shapes in found.items():
        if format == "E4M3" and multiplies_fp8:
            lines[f"linear {format}"] = f"Triton tiles to {FEW} rows, E4M3 x E4M3 above"
        else:
            lines[f"linear {format}"] = by_rows(shapes)
    for op in program.ops:
        if isinstance(op, MixExperts):
            lines |= {f"linear {weights[name].format}": "Triton tiles of pairs" for name in op.gate}
    return lines


def multiplied(program: Program, weights: Mapping[str, Tensor]) -> Iterator[DeviceWeight]:
    """The shapes of the program's products, without their values."""
    for op in program.ops:
        names = op.weights if isinstance(op, Linear) else ()
        if isinstance(op, Logits):
            names = (op.weight,)
        for format, run in groupby(names, key=lambda name: weights[name].format):
            tensors = [weights[name] for name in run]
            kind = "dense"
            if format in APART:
                kind = APART[format](torch.zeros((1, 1, BLOCKS[format][1]), dtype=torch.uint8)).kind
            rows = sum(tensor.rows for tensor in tensors)
            yield DeviceWeight(kind, rows, tensors[0].columns, torch.empty(0), origin=format)  # type: ignore[arg-type]


def reach(weight: DeviceWeight, measured: Mapping[str, str]) -> tuple[int, str]:
    """The most rows that tiles multiply, and what multiplies more; nothing where nothing does."""
    rows = 0
    for level in LEVELS:
        named = dict(ways(weight, level, PROCESSORS, invariant=False))
        taken = measured.get(choice_name(weight, level, invariant=False), next(iter(named)))
        if "cuBLAS" in taken:
            return rows, taken
        rows = level
    return rows, ""


def by_rows(shapes: list[tuple[int, str]]) -> str:
    """How far tiles go, of all shapes of a format together."""
    least, most = min(shapes)[0], max(shapes)[0]
    above = next((name for _, name in shapes if name), "")
    if not above:
        return "Triton tiles"
    to = f"{least}" if least == most else f"{least} or {most}, by the shape,"
    return f"Triton tiles to {to} rows, {above} above" if most else above


def would_run(program: Program, weights: Mapping[str, Tensor]) -> dict[str, dict[str, str]]:
    """What GPUs would run that are not here, by their capability."""
    return {
        f"{major}.{minor}": {
            **told(program, weights, {}, multiplies_fp8=(major, minor) >= FP8_FROM),
            "attention": "Triton tiles",
        }
        for major, minor in CAPABILITIES
    }
