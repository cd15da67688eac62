"""From the ops of a program to launches over buffers on the device.

Everything that does not depend on the step is decided here, once: kernels, blocks, tables. A launch
then only starts kernels with the step's arrays; it reads nothing back, so it can be captured.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from itertools import groupby

import torch

from ...models.program import (
    Activate,
    AddEmbedding,
    AllReduce,
    Attention,
    Embed,
    GateMultiply,
    Linear,
    Logits,
    MixExperts,
    Norm,
    NormHeads,
    Pool,
    Program,
    Result,
    RotateAndWrite,
)
from .attention import attention, rotation
from .experts import Experts, mix
from .float8 import coded_by_norms, coded_linears, encode, multiply_codes
from .inputs import Step
from .kernels.linear import embed_rows
from .kernels.rows import activate_rows, gate_rows, norm_parts, norm_rows
from .model import Launch, Model, chained, power
from .products import FEW, Product, product

ROW_BLOCK = 1024  # values of a row that one program works on, where a row is cut


@singledispatch
def compile_op(op: object, model: Model) -> Launch:
    """The launch of one op."""
    raise NotImplementedError(type(op).__name__)


@compile_op.register
def embed(op: Embed, model: Model) -> Launch:
    """Rows of the table by token."""
    table = model.weight(op.table)
    block = min(power(table.inputs), ROW_BLOCK)

    def launch(step: Step) -> None:
        embed_rows[(step.rows, -(-table.inputs // block))](
            model.buffers[op.out],
            *table.pointers,
            step.tokens,
            op.first or 0,
            table.outputs,
            table.inputs,
            op.scale,
            **table.form,
            BLOCK=block,
        )

    return launch


@compile_op.register
def add_embedding(op: AddEmbedding, model: Model) -> Launch:
    """Rows of a second table by position or type."""
    table = torch.from_numpy(model.weights[op.table].float32()).to(model.device)

    def launch(step: Step) -> None:
        index = step.positions if op.index == "position" else step.types
        out = model.rows(op.out, step)
        out += table[(index + op.offset).long()].to(out.dtype)

    return launch


@compile_op.register
def norm(op: Norm, model: Model) -> Launch:
    """Residual and norm."""
    width = model.program.buffers[op.residual]
    weight = model.vector(op.weight)
    bias = None if op.bias is None else model.vector(op.bias)
    rounds = model.multiplies_fp8 and op.out in coded_by_norms(model.program, model.weights)

    def launch(step: Step) -> None:
        codes = rounds and step.rows > FEW
        norm_rows[(step.rows,)](
            model.buffers[op.out],
            model.buffers[op.residual],
            None if op.add is None else model.buffers[op.add],
            weight,
            bias,
            *(model.coded[op.out] if codes else (None, None)),
            width,
            op.add_scale,
            op.epsilon,
            ADD=op.add is not None,
            LAYER=op.kind == "layer",
            BIAS=bias is not None,
            ACCUMULATE=op.accumulate,
            CODES=codes,
            **chained(model.device),
            BLOCK=power(width),
        )

    return launch


@compile_op.register
def linear(op: Linear, model: Model) -> Launch:
    """A packed matrix product."""
    coded = model.multiplies_fp8 and op in coded_linears(model.program, model.weights)
    multiply = products(op, model, FEW if coded else None)
    normed = op.source in coded_by_norms(model.program, model.weights)
    bias = model.vector(*op.biases) if op.biases else None

    def launch(step: Step) -> None:
        source, out = model.rows(op.source, step), model.rows(op.out, step)
        if coded and step.rows > FEW:
            if not normed:
                encode(source, model.coded[op.source], power(source.shape[1]))
            multiply_codes(model.coded[op.source], model.weight(*op.weights), bias, out)
        else:
            multiply(source, out)
        if step.adapted:
            model.adapters.add(op, step.adapted, source, out)

    return launch


def products(op: Linear, model: Model, most: int | None) -> Product:
    """The products of a linear with at most so many rows: one, or one for each run of weights of a
    format."""
    runs = [
        tuple(run) for _, run in groupby(op.weights, key=lambda name: model.weights[name].format)
    ]
    bias = model.vector(*op.biases) if op.biases else None
    parts, first = [], 0
    for names in runs:
        weight = model.weight(*names)
        last = first + weight.outputs
        own = None if bias is None else bias[first:last]
        parts.append((product(weight, own, model, most), first, last))
        first = last

    def multiply(source: torch.Tensor, out: torch.Tensor) -> None:
        for one, begin, end in parts:
            one(source, out[:, begin:end])

    return multiply


@compile_op.register
def norm_heads(op: NormHeads, model: Model) -> Launch:
    """Norms of the query and the key part; over one head at a time, or all together."""
    width = model.program.buffers[op.qkv]
    parts = []
    first = 0
    for name, heads in ((op.query, op.heads), (op.key, op.kv_heads)):
        size = op.head_size * (heads if op.whole else 1)
        parts.append((model.vector(name), first, size, 1 if op.whole else heads))
        first += heads * op.head_size

    def launch(step: Step) -> None:
        for weight, begin, size, count in parts:
            for part in range(count):
                norm_parts[(step.rows,)](
                    model.buffers[op.qkv],
                    weight,
                    width,
                    begin + part * size,
                    size,
                    op.epsilon,
                    **chained(model.device),
                    BLOCK=power(size),
                )

    return launch


@dataclass(frozen=True, slots=True)
class NormRotateAndWrite:
    """NormHeads (of single heads) and RotateAndWrite as one kernel."""

    norm: NormHeads
    rotate: RotateAndWrite


def fused(program: Program) -> list[object]:
    """The ops with neighbours that one kernel does as one."""
    found: list[object] = []
    for op in program.ops:
        last = found[-1] if found else None
        if isinstance(op, RotateAndWrite) and isinstance(last, NormHeads) and not last.whole:
            found[-1] = NormRotateAndWrite(last, op)
        else:
            found.append(op)
    return found


@compile_op.register
def norm_rotate_and_write(op: NormRotateAndWrite, model: Model) -> Launch:
    """Norm, rotation and KV write of every head."""
    weights = model.vector(op.norm.query), model.vector(op.norm.key)
    return rotation(op.rotate, model, weights, op.norm.epsilon)


@compile_op.register
def rotate(op: RotateAndWrite, model: Model) -> Launch:
    """Rotation and KV write of every head."""
    return rotation(op, model, None, 0.0)


compile_op.register(Attention, attention)


@compile_op.register
def gate_multiply(op: GateMultiply, model: Model) -> Launch:
    """A gated linear unit."""
    width = model.program.buffers[op.out]
    block = min(power(width), ROW_BLOCK)

    def launch(step: Step) -> None:
        gate_rows[(step.rows, -(-width // block))](
            model.buffers[op.out],
            model.buffers[op.source],
            width,
            KIND=op.activation,
            **chained(model.device),
            BLOCK=block,
        )

    return launch


@compile_op.register
def activate(op: Activate, model: Model) -> Launch:
    """An activation of every value."""
    width = model.program.buffers[op.out]
    block = min(power(width), ROW_BLOCK)

    def launch(step: Step) -> None:
        activate_rows[(step.rows, -(-width // block))](
            model.buffers[op.out],
            model.buffers[op.source],
            width,
            KIND=op.activation,
            **chained(model.device),
            BLOCK=block,
        )

    return launch


@compile_op.register
def mix_experts(op: MixExperts, model: Model) -> Launch:
    """A mixture of experts."""
    gate_up = [name for pair in zip(op.gate, op.up, strict=True) for name in pair]
    biases = [name for pair in zip(op.gate_bias, op.up_bias, strict=True) for name in pair]
    weights = Experts(
        torch.from_numpy(model.weights[op.router].float32()).to(model.device),
        None if op.router_bias is None else model.vector(op.router_bias),
        model.weight(*gate_up),
        model.vector(*biases) if biases else None,
        model.weight(*op.down),
        model.vector(*op.down_bias) if op.down_bias else None,
    )

    def launch(step: Step) -> None:
        model.rows(op.out, step).copy_(mix(op, weights, model.rows(op.source, step)))

    return launch


@compile_op.register
def pool(op: Pool, model: Model) -> Launch:
    """One row a sequence. Sums are of float64, whatever order the device adds in."""

    def launch(step: Step) -> None:
        source, starts = model.rows(op.source, step), step.row_starts.long()
        if op.pooling == "mean":
            running = source.double().cumsum(dim=0)
            sums = torch.diff(running[starts[1:] - 1], dim=0, prepend=running[:1] * 0)
            pooled = sums / torch.diff(starts)[:, None]
        else:
            pooled = source[starts[:-1] if op.pooling == "first" else starts[1:] - 1]
        model.buffers[op.out][: len(pooled)] = pooled.to(source.dtype)

    return launch


@compile_op.register
def logits(op: Logits, model: Model) -> Launch:
    """Float32 logits of the sampled rows; those of all ranks on rank 0."""
    weight = model.weight(op.weight)
    multiply: Product = product(weight, None, model)

    def launch(step: Step) -> None:
        source = model.buffers[op.source].index_select(0, step.sampled_rows)
        whole = model.logits[: step.samples]
        out = whole.new_empty((step.samples, weight.outputs)) if op.parts else whole
        multiply(source, out)
        if op.scale != 1:
            out *= op.scale
        if op.cap:
            torch.tanh(out / op.cap, out=out)
            out *= op.cap
        if op.parts:
            model.ranks.gather(out, op.parts, whole)

    return launch


@compile_op.register
def all_reduce(op: AllReduce, model: Model) -> Launch:
    """The sum of all ranks' rows."""

    def launch(step: Step) -> None:
        model.ranks.sum(model.rows(op.out, step))

    return launch


@compile_op.register
def give(op: Result, model: Model) -> Launch:
    """The source as it is."""

    def launch(step: Step) -> None:
        model.logits = model.rows(op.source, step).float()

    return launch
