"""Tiny step programs, random weights of every format, ragged batches: to test a backend by op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import quantize
from numpy.typing import NDArray

from headrace.runtime.backends.base import Batch, Float32, KVLayout, SamplingRows
from headrace.runtime.models.architecture import Rope
from headrace.runtime.models.program import (
    Attention,
    Embed,
    Linear,
    Logits,
    Op,
    Program,
    RotateAndWrite,
)
from headrace.runtime.weights.float8 import rounded_fp8
from headrace.runtime.weights.tensor import BLOCKS, Tensor

# Where the float16 scales of a K format's block lie: byte offset, and how large they are.
K_SCALES = {
    "Q4_K": ((0, 2e-3), (2, 2e-3)),
    "Q5_K": ((0, 1e-3), (2, 1e-3)),
    "Q6_K": ((208, 2e-4),),
}


def tensor(values: Float32, format: str = "F32") -> Tensor:
    """`values` [rows, columns] in a format that can be quantised to."""
    rows, columns = values.shape
    if format == "F32":
        data = np.ascontiguousarray(values, np.float32).view(np.uint8)
    elif format == "F16":
        data = values.astype(np.float16).view(np.uint8)
    elif format == "BF16":
        data = values.astype(ml_dtypes.bfloat16).view(np.uint8)
    else:
        data = quantize(np.ascontiguousarray(values), GGMLQuantizationType[format])
    return Tensor(format, rows, columns, data)


def random_tensor(random: np.random.Generator, format: str, rows: int, columns: int) -> Tensor:
    """A random weight; for the K formats random blocks with scales of an ordinary size."""
    if format == "E4M3":
        return rounded_fp8(tensor(random.standard_normal((rows, columns), np.float32)))
    if format not in K_SCALES:
        return tensor(random.standard_normal((rows, columns), np.float32), format)
    values, size = BLOCKS[format]
    blocks = random.integers(0, 256, (rows, columns // values, size), np.uint8)
    for at, scale in K_SCALES[format]:
        scales = (scale * random.uniform(0.5, 1.5, blocks.shape[:2])).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return Tensor(format, rows, columns, blocks.reshape(rows, -1))


def program(
    ops: Sequence[Op], buffers: Mapping[str, int], vocabulary: int, **shape: int
) -> Program:
    """A program of one layer with one KV head of 32, unless `shape` says otherwise."""
    return Program(
        ops=tuple(ops),
        buffers=buffers,
        vocabulary=vocabulary,
        layers=1,
        kv_heads=shape.get("kv_heads", 1),
        head_size=shape.get("head_size", 32),
    )


def linear_program(
    weights: Mapping[str, Tensor], biases: Sequence[str] = ()
) -> tuple[Program, dict[str, Tensor]]:
    """Logits are x @ vstack(weights).T (+ biases), x the row of "table" that the token names."""
    columns = next(iter(weights.values())).columns
    rows = sum(weight.rows for weight in weights.values())
    ops: list[Op] = [
        Embed("x", "table"),
        Linear("y", "x", tuple(weights), tuple(biases)),
        Logits("y", "identity"),
    ]
    identity = tensor(np.eye(rows, dtype=np.float32))
    return program(ops, {"x": columns, "y": rows}, rows), {**weights, "identity": identity}


def attention_program(
    heads: int, kv_heads: int, head_size: int, rope: Rope, **attention: Any
) -> tuple[Program, dict[str, Tensor]]:
    """Logits are the attended values; query, key and value are the token's row of "table".

    `attention`: attributes of the op.
    """
    width = heads * head_size
    shape = (0, heads, kv_heads, head_size)
    ops: list[Op] = [
        Embed("qkv", "table"),
        RotateAndWrite("qkv", *shape, rope),
        Attention("attended", "qkv", *shape, scale=head_size**-0.5, **attention),
        Logits("attended", "identity"),
    ]
    buffers = {"qkv": width + 2 * kv_heads * head_size, "attended": width}
    identity = tensor(np.eye(width, dtype=np.float32))
    made = program(ops, buffers, width, kv_heads=kv_heads, head_size=head_size)
    return made, {"identity": identity}


def greedy(samples: int) -> SamplingRows:
    """Sampling rows that take the most likely token."""
    return SamplingRows(
        temperature=np.zeros(samples, np.float32),
        top_k=np.zeros(samples, np.int32),
        top_p=np.ones(samples, np.float32),
        min_p=np.zeros(samples, np.float32),
        uniform=np.zeros(samples, np.float32),
        target=np.full(samples, -1, np.int32),
    )


def flat_batch(tokens: Sequence[int], sampling: SamplingRows | None = None) -> Batch:
    """Every token a sequence of its own at position 0, slot by slot of block 0; all are sampled."""
    count = len(tokens)
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=np.zeros(count, np.int32),
        slots=np.zeros(count, np.int32),
        row_starts=np.arange(count + 1, dtype=np.int32),
        context_lengths=np.ones(count, np.int32),
        block_tables=np.zeros((count, 1), np.int32),
        sampled_rows=np.arange(count, dtype=np.int32),
        sampling=sampling or greedy(count),
    )


def ragged_batch(
    spans: Sequence[tuple[int, int]], tables: NDArray[np.int32], kv: KVLayout, tokens: Sequence[int]
) -> Batch:
    """Rows (begin, count) of each sequence, whose blocks are a row of `tables`; all are sampled."""
    counts = np.array([count for _, count in spans], np.int32)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    positions = np.concatenate([np.arange(begin, begin + count) for begin, count in spans])
    sequence = np.repeat(np.arange(len(spans)), counts)
    slots = tables[sequence, positions // kv.block_size] * kv.block_size + positions % kv.block_size
    rows = int(starts[-1])
    return Batch(
        tokens=np.array(tokens, np.int32),
        positions=positions.astype(np.int32),
        slots=slots.astype(np.int32),
        row_starts=starts,
        context_lengths=np.array([begin + count for begin, count in spans], np.int32),
        block_tables=tables,
        sampled_rows=np.arange(rows, dtype=np.int32),
        sampling=greedy(rows),
    )
