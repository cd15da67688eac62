"""Matrix products: by which kernel, and how it is cut, for each number of rows.

Our own kernel reads packed weights as they are, the library (cuBLAS) dense ones, for which packed
ones are widened first. Where one overtakes the other depends on the chip, the shape and the
format: `choices` measures it, at the LEVELS of rows. So a row's bits may change where the number
of rows beside it passes a level; an `invariant` model keeps to one tiling of our own kernel
instead, whose sums have one order whatever the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from .choices import Choices
from .kernels.linear import add_splits, embed_rows, project_rows
from .model import Model, chained, power
from .weights import DeviceWeight

Product = Callable[[torch.Tensor, torch.Tensor], None]  # source [rows, inputs], out [rows, outputs]

FEW = 16  # rows up to which reading the weights is what bounds
LEVELS = (4, FEW, 64, 256, 1024)  # each the most rows of a choice; the last is for all above, too
WIDENED = 1024  # from this level on packed weights may be widened: such steps are not captured
INVARIANT = 64  # rows of the one tiling
PIECE = 512  # rows at a time of an invariant product whose inputs are cut, to bound the parts
BLOCK_K = {"dense": 128, "int8": 128, "fp8": 128, "int4": 256, "mxfp4": 256}
LEAST = 512  # inputs of a part
LIBRARY = "cuBLAS"


@dataclass(frozen=True, slots=True)
class Shape:
    """A tiling that is not yet cut for a weight; `waves`: programs wanted for each processor."""

    rows: int
    block_n: int
    block_k: int
    waves: int
    warps: int = 4
    stages: int = 3


FEW_SHAPES = (
    Shape(16, 16, 256, 4, stages=4),
    Shape(16, 32, 256, 4),
    Shape(16, 64, 128, 4, stages=4),
    Shape(16, 32, 128, 2, stages=5),
    Shape(16, 16, 512, 2, warps=8),
    Shape(16, 64, 256, 2, warps=8),
)
MANY_SHAPES = (
    Shape(64, 64, 128, 2),
    Shape(64, 32, 128, 2, stages=4),
    Shape(64, 128, 64, 2, stages=4),
    Shape(128, 128, 64, 1, warps=8),
    Shape(128, 256, 64, 1, warps=8),
)


@dataclass(frozen=True, slots=True)
class Tiling:
    """A program computes `block_n` outputs of `rows` rows, `block_k` inputs at a time, over one of
    `splits` parts of the inputs."""

    rows: int
    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """All that it is, for a file and for people."""
        cut = f" in {self.splits} parts" if self.splits > 1 else ""
        size = f"{self.rows}x{self.block_n}x{self.block_k}"
        return f"{size}{cut}, {self.warps} warps, {self.stages} stages"


Way = Tiling | None  # None: the library


def product(
    weight: DeviceWeight, bias: torch.Tensor | None, model: Model, most: int | None = None
) -> Product:
    """Out = source @ weight.T + bias, of at most `most` rows."""
    taken = [
        (
            level,
            chosen(
                weight,
                level,
                model.processors,
                model.dtype,
                model.choices,
                invariant=model.invariant,
            ),
        )
        for level in levels(model.invariant, most)
    ]

    def launch(source: torch.Tensor, out: torch.Tensor) -> None:
        rows = len(source)
        way = next((way for level, way in taken if rows <= level), taken[-1][1])
        piece = PIECE if model.invariant else rows
        for begin in range(0, rows, piece):
            some = slice(begin, begin + piece)
            multiply(way, source[some], weight, bias, out[some])

    return launch


def levels(invariant: bool, most: int | None = None) -> Sequence[int]:
    """The levels of rows that have a choice of their own."""
    if invariant:
        return LEVELS[-1:]
    return [level for level in LEVELS if most is None or level <= most]


def chosen(
    weight: DeviceWeight,
    level: int,
    processors: int,
    dtype: torch.dtype,
    choices: Choices,
    *,
    invariant: bool = False,
) -> Way:
    """What multiplies by a weight up to so many rows of a type."""
    rows = FEW if invariant else level

    @cache
    def trial() -> tuple[torch.Tensor, torch.Tensor]:
        source = torch.ones((rows, weight.inputs), dtype=dtype, device=weight.values.device)
        return source, source.new_empty((rows, weight.outputs))

    def run(way: Way) -> None:
        source, out = trial()
        multiply(way, source, weight, None, out)

    found = list(ways(weight, level, processors, invariant=invariant))
    return choices.fastest(choice_name(weight, level, invariant=invariant), found, run)


def choice_name(weight: DeviceWeight, level: int, *, invariant: bool) -> str:
    """What a choice is kept under."""
    rows = "any rows" if invariant else f"{level} rows"
    return f"{weight.outputs}x{weight.inputs} {weight.origin}, {rows}"


def ways(
    weight: DeviceWeight, level: int, processors: int, *, invariant: bool
) -> Iterator[tuple[str, Way]]:
    """What a weight may be multiplied by, up to so many rows; the most likely first."""
    if weight.kind == "dense" and level > FEW and not invariant:
        yield LIBRARY, None
    for shape in shapes(weight, level, invariant):
        tiling = cut(shape, weight, FEW if invariant else level, processors)
        yield tiling.name, tiling
    if weight.kind == "dense" and level == FEW and not invariant:
        yield LIBRARY, None
    if weight.kind != "dense" and level >= WIDENED and not invariant:
        yield f"widened, {LIBRARY}", None


def shapes(weight: DeviceWeight, level: int, invariant: bool) -> Iterator[Shape]:
    """The shapes of tiles that are worth a trial; the most likely first."""
    if invariant:
        yield from (shape for shape in MANY_SHAPES if shape.rows == INVARIANT)
    elif level <= FEW:
        yield Shape(FEW, 32, BLOCK_K[weight.kind], 4)
        yield from FEW_SHAPES
    elif weight.kind == "dense" and level >= WIDENED:
        return  # the library's own field
    else:
        yield from (shape for shape in MANY_SHAPES if shape.rows <= level)


def cut(shape: Shape, weight: DeviceWeight, rows: int, processors: int) -> Tiling:
    """The shape with the parts of the inputs that fill a device of so many processors."""
    programs = -(-weight.outputs // shape.block_n) * -(-rows // shape.rows)
    wanted = -(-processors * shape.waves // programs)
    parts = max(1, min(wanted, weight.inputs // LEAST))
    return Tiling(shape.rows, shape.block_n, shape.block_k, parts, shape.warps, shape.stages)


def multiply(
    way: Way,
    source: torch.Tensor,
    weight: DeviceWeight,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Out [rows, outputs] = source [rows, inputs] @ weight.T + bias."""
    if way is None:
        by_library(source, weight, bias, out)
    else:
        by_tiles(way, source, weight, bias, out)


def by_tiles(
    way: Tiling,
    source: torch.Tensor,
    weight: DeviceWeight,
    bias: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """By our own kernel."""
    rows, parts = len(source), way.splits
    part = -(-weight.inputs // (parts * way.block_k)) * way.block_k
    target = out
    if parts > 1:
        target = out.new_empty((parts, rows, weight.outputs), dtype=torch.float32)
    project_rows[(-(-weight.outputs // way.block_n), -(-rows // way.rows), parts)](
        target,
        source,
        *weight.pointers,
        bias,
        rows,
        weight.outputs,
        weight.inputs,
        part,
        target.stride(-2),
        **weight.form,
        BIAS=bias is not None and parts == 1,
        **chained(out.device),
        ROWS=way.rows,
        BLOCK_N=way.block_n,
        BLOCK_K=way.block_k,
        num_warps=way.warps,
        num_stages=way.stages,
    )
    if parts > 1:
        add_splits[(-(-out.numel() // 1024),)](
            out,
            target,
            bias,
            out.numel(),
            weight.outputs,
            out.stride(0),
            BIAS=bias is not None,
            **chained(out.device),
            SPLITS=parts,
            BLOCK=1024,
        )


def by_library(
    source: torch.Tensor, weight: DeviceWeight, bias: torch.Tensor | None, out: torch.Tensor
) -> None:
    """By cuBLAS, whose sums go to `out` without being rounded to the weight's type before."""
    values = weight.values if weight.kind == "dense" else widened(weight, source.dtype)
    if out.dtype == source.dtype:
        torch.mm(source, values.T, out=out)
    else:
        torch.mm(source, values.T, out_dtype=out.dtype, out=out)
    if bias is not None:
        out += bias.to(out.dtype)


def widened(weight: DeviceWeight, dtype: torch.dtype) -> torch.Tensor:
    """A packed weight's values [outputs, inputs]."""
    device = weight.values.device
    out = torch.empty((weight.outputs, weight.inputs), dtype=dtype, device=device)
    block = min(power(weight.inputs), 1024)
    embed_rows[(weight.outputs, -(-weight.inputs // block))](
        out,
        *weight.pointers,
        torch.arange(weight.outputs, dtype=torch.int32, device=device),
        0,
        weight.outputs,
        weight.inputs,
        1.0,
        **weight.form,
        BLOCK=block,
    )
    return out
