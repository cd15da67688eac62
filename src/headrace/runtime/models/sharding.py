"""A program cut into the parts of several ranks: tensor parallelism (arXiv 1909.08053), as data.

Every rank runs the same ops over its part. Linears that read whole rows keep some of their outputs:
attention by KV heads with their query heads, the MLP and each expert by hidden units, the logits
by tokens of the vocabulary. Linears that read such a part keep the columns for it, and an
`AllReduce` adds up what the ranks have; their biases are rank 0's alone. The table of embeddings
is cut by tokens, and a rank gives zeros for the tokens of others.

Cuts lie on blocks of the weights' formats, and a cut weight is a view of the whole one: a rank
reads from a mapped file what it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import singledispatch
from typing import Literal

from ..weights.lowrank import LowRank
from ..weights.tensor import BLOCKS, Tensor
from .program import (
    Activate,
    AddEmbedding,
    AllReduce,
    Attention,
    Embed,
    GateMultiply,
    Linear,
    Logits,
    MixExperts,
    NormHeads,
    Op,
    Pool,
    Program,
    Result,
    RotateAndWrite,
    UnsupportedProgram,
)

Span = tuple[int, int]  # from, to


@dataclass(frozen=True, slots=True)
class Cut:
    """What a rank keeps of a weight: some of its rows, or of its columns."""

    along: Literal["rows", "columns"]
    begin: int
    end: int

    def of(self, weight: Tensor) -> Tensor:
        """The part, a view."""
        begin, end = self.begin, self.end
        if self.along == "rows":
            return replace(weight, rows=end - begin, data=weight.data[begin:end])
        values, size = BLOCKS[weight.format]
        data = weight.data[:, begin // values * size : end // values * size]
        return replace(weight, columns=end - begin, data=data)

    def of_change(self, change: LowRank) -> LowRank:
        """The part of an adapter's change of the weight."""
        if self.along == "rows":
            return change._replace(up=change.up[self.begin : self.end])
        return change._replace(down=change.down[:, self.begin : self.end])


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part: its program and its weights, of which `cuts` were cut."""

    program: Program
    weights: Mapping[str, Tensor]
    cuts: Mapping[str, Cut]

    def changes(self, deltas: Mapping[str, LowRank]) -> dict[str, LowRank]:
        """The part of an adapter, by weight."""
        return {
            name: self.cuts[name].of_change(delta) if name in self.cuts else delta
            for name, delta in deltas.items()
        }


@dataclass(slots=True)
class Cutting:
    """A program while it is being cut. `parts` of a buffer: the spans of the whole row that a
    rank's row has; a buffer that is not there is whole on every rank."""

    rank: int
    size: int
    weights: Mapping[str, Tensor]
    heads: Span = (0, 0)
    kv_heads: Span = (0, 0)
    parts: dict[str, tuple[Span, ...]] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)

    def span(self, width: int, step: int, what: str) -> Span:
        """This rank's span. Raises UnsupportedProgram."""
        return edges(width, self.size, step, what)[self.rank]

    def cut(self, along: Literal["rows", "columns"], span: Span, *names: str) -> None:
        """Note what is kept of these weights. Raises UnsupportedProgram off a block."""
        for name in names:
            values = BLOCKS[self.weights[name].format][0] if along == "columns" else 1
            if any(edge % values for edge in span):
                raise UnsupportedProgram(
                    f"{name} has blocks of {values} values ({self.weights[name].format}), and "
                    f"{self.size} parts would be cut at columns {span[0]} and {span[1]}"
                )
            self.cuts[name] = Cut(along, *span)


def shard(program: Program, weights: Mapping[str, Tensor], rank: int, size: int) -> Shard:
    """The part of `rank` of `size`. Raises UnsupportedProgram, which says what cannot be cut."""
    cutting = Cutting(rank, size, weights)
    plan(cutting, program)
    ops = [part for op in program.ops for part in cut_op(op, cutting)]
    widths = {
        name: sum(end - begin for begin, end in cutting.parts[name])
        for name in program.buffers.keys() & cutting.parts.keys()
    }
    kept = {name: cut.of(weights[name]) for name, cut in cutting.cuts.items()}
    first, last = cutting.kv_heads
    return Shard(
        replace(
            program,
            ops=tuple(ops),
            buffers={**program.buffers, **widths},
            kv_heads=last - first,
        ),
        {**weights, **kept},
        cutting.cuts,
    )


def edges(width: int, size: int, step: int, what: str) -> list[Span]:
    """`width` in `size` spans, as equal as multiples of `step` can be; the last may end off one.

    Raises UnsupportedProgram where there is not a step for each.
    """
    steps = -(-width // step)
    if steps < size:
        blocks = f" in blocks of {step}" if step > 1 else ""
        raise UnsupportedProgram(f"{width} {what}{blocks} cannot be cut into {size} parts")
    ends = [min(width, steps * (index + 1) // size * step) for index in range(size)]
    return list(zip([0, *ends], ends, strict=False))


def sizes(heads: int, kv_heads: int) -> list[int]:
    """The numbers of parts that attention can be cut into: KV heads are shared out or repeated."""
    return [
        size
        for size in range(1, heads + 1)
        if heads % size == 0 and (kv_heads % size == 0 or size % kv_heads == 0)
    ]


def fitting(program: Program, weights: Mapping[str, Tensor]) -> list[int]:
    """The numbers of parts that a program can be cut into."""
    found = []
    for op in program.ops:
        if isinstance(op, Attention):
            found = sizes(op.heads, op.kv_heads)
            break
    return [size for size in found if can_be_cut(program, weights, size)]


def can_be_cut(program: Program, weights: Mapping[str, Tensor], size: int) -> bool:
    """Whether a program can be cut into so many parts: if one rank's can, all can."""
    try:
        shard(program, weights, 0, size)
    except UnsupportedProgram:
        return False
    return True


def plan(cutting: Cutting, program: Program) -> None:
    """Decide the parts of all buffers. Raises UnsupportedProgram."""
    for op in program.ops:
        match op:
            case Pool() | Result() | AddEmbedding():
                raise UnsupportedProgram("a model that reads whole texts is not cut into parts")
            case NormHeads(whole=True):
                raise UnsupportedProgram("a norm over all heads together is not cut into parts")
            case Attention():
                plan_attention(cutting, op)
            case GateMultiply() | Activate():
                width = program.buffers[op.out]
                span = cutting.span(width, block(cutting, program, op.out), "hidden units")
                cutting.parts[op.out] = (span,)
                cutting.parts[op.source] = (span,) * (program.buffers[op.source] // width)


def plan_attention(cutting: Cutting, op: Attention) -> None:
    """The heads of this rank: a group of query heads for each KV head, or a part of one group."""
    rank, size = cutting.rank, cutting.size
    fitting = sizes(op.heads, op.kv_heads)
    if size not in fitting:
        raise UnsupportedProgram(
            f"{op.heads} heads over {op.kv_heads} KV heads cannot be cut into {size} parts, but "
            f"into {', '.join(map(str, fitting))}"
        )
    own = max(op.kv_heads // size, 1)
    first = rank * op.kv_heads // size
    cutting.kv_heads = (first, first + own)
    cutting.heads = (rank * op.heads // size, (rank + 1) * op.heads // size)
    query, key = (
        (begin * op.head_size, end * op.head_size)
        for begin, end in (cutting.heads, cutting.kv_heads)
    )
    cutting.parts[op.qkv] = (query, key, key)
    cutting.parts[op.out] = (query,)


def block(cutting: Cutting, program: Program, buffer: str) -> int:
    """The values between places where all linears that read a buffer may be cut."""
    readers = [op for op in program.ops if isinstance(op, Linear) and op.source == buffer]
    return common_block(cutting, (name for op in readers for name in op.weights))


def common_block(cutting: Cutting, names: Iterable[str]) -> int:
    """The values between columns where all these weights may be cut."""
    return math.lcm(*(BLOCKS[cutting.weights[name].format][0] for name in names))


@singledispatch
def cut_op(op: Op, cutting: Cutting) -> list[Op]:
    """A rank's ops for one of the whole program; one that is not cut stays as it is."""
    return [op]


@cut_op.register
def embed(op: Embed, cutting: Cutting) -> list[Op]:
    """Rows of the tokens that the rank has, zeros for others; then the sum."""
    span = cutting.span(cutting.weights[op.table].rows, 1, "tokens")
    cutting.cut("rows", span, op.table)
    return [replace(op, first=span[0]), AllReduce(op.out)]


@cut_op.register
def linear(op: Linear, cutting: Cutting) -> list[Op]:
    """Some outputs of a row, or the columns for a part of one and the sum over the ranks."""
    if op.source in cutting.parts:
        (span,) = cutting.parts[op.source]
        cutting.cut("columns", span, *op.weights)
        return [replace(op, biases=() if cutting.rank else op.biases), AllReduce(op.out)]
    if op.out in cutting.parts:
        spans = cutting.parts[op.out]
        for name, span in zip(op.weights, spans, strict=True):
            cutting.cut("rows", span, name)
        for name, span in zip(op.biases, spans, strict=bool(op.biases)):
            cutting.cut("columns", span, name)
    return [op]


@cut_op.register(NormHeads)
@cut_op.register(RotateAndWrite)
def count_heads(op: NormHeads | RotateAndWrite, cutting: Cutting) -> list[Op]:
    """The same, of fewer heads."""
    return [replace(op, heads=counted(cutting.heads), kv_heads=counted(cutting.kv_heads))]


@cut_op.register
def attention(op: Attention, cutting: Cutting) -> list[Op]:
    """The same, of fewer heads, each with its sink."""
    if op.sinks is not None:
        cutting.cut("columns", cutting.heads, op.sinks)
    return [replace(op, heads=counted(cutting.heads), kv_heads=counted(cutting.kv_heads))]


@cut_op.register
def mix_experts(op: MixExperts, cutting: Cutting) -> list[Op]:
    """Every expert cut like an MLP: each rank chooses alike, and has its part of all experts."""
    width = cutting.weights[op.gate[0]].rows
    span = cutting.span(width, common_block(cutting, op.down), "hidden units of an expert")
    cutting.cut("rows", span, *op.gate, *op.up)
    cutting.cut("columns", span, *op.gate_bias, *op.up_bias, *op.down)
    own = replace(op, down_bias=() if cutting.rank else op.down_bias)
    return [own, AllReduce(op.out)]


@cut_op.register
def logits(op: Logits, cutting: Cutting) -> list[Op]:
    """Those of the rank's tokens; all come together on rank 0."""
    spans = edges(cutting.weights[op.weight].rows, cutting.size, 1, "tokens")
    cutting.cut("rows", spans[cutting.rank], op.weight)
    return [replace(op, parts=tuple(map(counted, spans)))]


def counted(span: Span) -> int:
    """How many."""
    return span[1] - span[0]
