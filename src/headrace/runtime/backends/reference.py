"""The reference backend: numpy, float32, one obvious function an op. Slow; it defines the truth."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatchmethod

import numpy as np

from ..models.program import (
    Attention,
    Embed,
    GateMultiply,
    Linear,
    Logits,
    Norm,
    Program,
    RotateAndWrite,
)
from ..sampling import sample
from ..weights.tensor import Tensor
from .base import Batch, Float32, KVLayout, Sampled


class ReferenceBackend:
    """Runs a program op by op over float32 copies of the weights."""

    def __init__(self, program: Program, weights: Mapping[str, Tensor], kv: KVLayout) -> None:
        self.program = program
        self.kv = kv
        linears = [op for op in program.ops if isinstance(op, Linear)]
        self.stacked = {
            op.weights: np.concatenate([weights[name].float32() for name in op.weights])
            for op in linears
        }
        elsewhere = weights.keys() - {name for op in linears for name in op.weights}
        self.weights = {name: weights[name].float32() for name in elsewhere}
        slots = kv.blocks * kv.block_size
        shape = (program.layers, slots, program.kv_heads, program.head_size)
        self.keys = np.zeros(shape, np.float32)
        self.values = np.zeros(shape, np.float32)
        self.buffers: dict[str, Float32] = {}
        self.result: Float32 = np.zeros((0, program.vocabulary), np.float32)

    def logits(self, batch: Batch) -> Float32:
        """Run all ops; logits of the sampled rows."""
        for op in self.program.ops:
            self.execute(op, batch)
        return self.result

    def run(self, batch: Batch) -> Sampled:
        """Run all ops and sample."""
        return sample(self.logits(batch), batch.sampling)

    def kernels(self) -> Mapping[str, str]:
        """Every op is numpy's."""
        return {"all": "numpy float32"}

    def close(self) -> None:
        """Drop weights and KV."""
        self.weights, self.stacked, self.buffers = {}, {}, {}
        self.keys = self.values = np.zeros((0,), np.float32)

    @singledispatchmethod
    def execute(self, op: object, batch: Batch) -> None:
        """Run one op."""
        raise NotImplementedError(type(op).__name__)

    @execute.register
    def embed(self, op: Embed, batch: Batch) -> None:
        self.buffers[op.out] = self.weights[op.table][batch.tokens]

    @execute.register
    def norm(self, op: Norm, batch: Batch) -> None:
        residual = self.buffers[op.residual]
        if op.add is not None:
            residual = self.buffers[op.residual] = residual + self.buffers[op.add]
        scale = 1 / np.sqrt(np.mean(residual**2, axis=1, keepdims=True) + np.float32(op.epsilon))
        self.buffers[op.out] = residual * scale * self.weights[op.weight][0]

    @execute.register
    def linear(self, op: Linear, batch: Batch) -> None:
        out = self.buffers[op.source] @ self.stacked[op.weights].T
        if op.biases:
            out += np.concatenate([self.weights[name][0] for name in op.biases])
        self.buffers[op.out] = out

    @execute.register
    def rotate_and_write(self, op: RotateAndWrite, batch: Batch) -> None:
        rotated_heads = op.heads + op.kv_heads
        qkv = self.buffers[op.qkv].reshape(-1, rotated_heads + op.kv_heads, op.head_size)
        angles = batch.positions[:, None] * np.array(op.rope.frequencies)
        cosine = np.cos(angles)[:, None].astype(np.float32)
        sine = np.sin(angles)[:, None].astype(np.float32)
        pairs = len(op.rope.frequencies)
        both = qkv[:, :rotated_heads, : 2 * pairs]
        if op.rope.interleaved:
            first, second = both[..., 0::2], both[..., 1::2]
        else:
            first, second = both[..., :pairs], both[..., pairs:]
        turned = first * cosine - second * sine, first * sine + second * cosine
        first[...], second[...] = turned
        self.keys[op.layer, batch.slots] = qkv[:, op.heads : rotated_heads]
        self.values[op.layer, batch.slots] = qkv[:, rotated_heads:]

    @execute.register
    def attention(self, op: Attention, batch: Batch) -> None:
        rows = self.buffers[op.qkv].reshape(-1, op.heads + 2 * op.kv_heads, op.head_size)
        group = op.heads // op.kv_heads
        out = np.empty((len(rows), op.heads, op.head_size), np.float32)
        offsets = np.arange(self.kv.block_size)
        for index, length in enumerate(batch.context_lengths):
            first, last = batch.row_starts[index : index + 2]
            table = batch.block_tables[index, : -(-length // self.kv.block_size)]
            slots = (table[:, None] * self.kv.block_size + offsets).ravel()[:length]
            keys = np.repeat(self.keys[op.layer, slots], group, axis=1)
            values = np.repeat(self.values[op.layer, slots], group, axis=1)
            scores = np.einsum("qhd,khd->hqk", rows[first:last, : op.heads], keys) * op.scale
            visible = np.arange(length)[None] <= batch.positions[first:last, None]
            scores = np.where(visible, scores, -np.inf)
            scores = np.exp(scores - scores.max(axis=2, keepdims=True))
            scores /= scores.sum(axis=2, keepdims=True)
            out[first:last] = np.einsum("hqk,khd->qhd", scores, values)
        self.buffers[op.out] = out.reshape(len(rows), -1)

    @execute.register
    def gate_multiply(self, op: GateMultiply, batch: Batch) -> None:
        gate, up = np.split(self.buffers[op.source], 2, axis=1)
        # below -88 exp overflows float32; silu is 0 there to the last digit
        self.buffers[op.out] = gate / (1 + np.exp(-np.maximum(gate, -88))) * up

    @execute.register
    def project_to_logits(self, op: Logits, batch: Batch) -> None:
        self.result = self.buffers[op.source][batch.sampled_rows] @ self.weights[op.weight].T


def load(
    program: Program, weights: Mapping[str, Tensor], kv: KVLayout, threads: int
) -> ReferenceBackend:
    """Dequantise all weights to float32. `threads` is numpy's own business."""
    return ReferenceBackend(program, weights, kv)
