"""The reference backend: numpy, float32, one obvious function an op. Slow; it defines the truth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from importlib import import_module
from itertools import pairwise

import ml_dtypes
import numpy as np

from ..models.architecture import Activation, Rope
from ..models.program import (
    EVERYTHING,
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
from ..sampling import sample
from ..weights.lowrank import LowRank
from ..weights.tensor import Tensor
from .base import (
    Batch,
    Float32,
    Group,
    Int32,
    KVLayout,
    KVType,
    Pending,
    Place,
    Sampled,
    SamplingRows,
)

SUPPORTS = EVERYTHING


@dataclass(slots=True)
class Step:
    """Logits, then what was chosen by them."""

    logits: Float32
    began: float  # seconds
    sampled: Sampled | None = None

    def choose(self, rows: SamplingRows) -> None:
        """Sample."""
        sampled = sample(self.logits, rows)
        self.sampled = replace(sampled, seconds=time.perf_counter() - self.began)

    def wait(self) -> Sampled:
        """What was chosen. Raises ValueError before that."""
        if self.sampled is None:
            raise ValueError("the step was never told how its tokens are chosen")
        return self.sampled


class ReferenceBackend:
    """Runs a program op by op over float32 copies of the weights."""

    queues = False

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Tensor],
        kv: KVLayout,
        group: Group | None = None,
    ) -> None:
        self.program = program
        self.kv = kv
        self.group = group
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
        self.adapters: dict[int, Mapping[str, LowRank]] = {}
        self.rows_of = {name: weights[name].rows for op in linears for name in op.weights}
        self.buffers: dict[str, Float32] = {}
        self.result: Float32 = np.zeros((0, program.vocabulary), np.float32)

    def logits(self, batch: Batch) -> Float32:
        """Run all ops; logits of the sampled rows."""
        for op in self.program.ops:
            self.execute(op, batch)
        return self.result

    def launch(self, batch: Batch, after: Pending | None = None) -> Step:
        """Run all ops, at once; sample when it is known how."""
        began = time.perf_counter()
        if after is not None:
            batch.fill(after.wait())
        step = Step(self.logits(batch), began)
        if batch.sampling is not None:
            step.choose(batch.sampling)
        return step

    def run(self, batch: Batch) -> Sampled:
        """Run all ops and sample."""
        return self.launch(batch).wait()

    def kernels(self) -> Mapping[str, str]:
        """Every op is numpy's."""
        return {"all": "numpy float32"}

    def load_adapter(self, number: int, deltas: Mapping[str, LowRank]) -> None:
        """Keep the changes."""
        self.adapters[number] = deltas

    def drop_adapter(self, number: int) -> None:
        """Forget them."""
        del self.adapters[number]

    def close(self) -> None:
        """Drop weights and KV."""
        if self.group is not None:
            self.group.leave()
        self.weights, self.stacked, self.buffers = {}, {}, {}
        self.keys = self.values = np.zeros((0,), np.float32)

    @singledispatchmethod
    def execute(self, op: object, batch: Batch) -> None:
        """Run one op."""
        raise NotImplementedError(type(op).__name__)

    @execute.register
    def embed(self, op: Embed, batch: Batch) -> None:
        table, rows = self.weights[op.table], batch.tokens - (op.first or 0)
        out = table[rows if op.first is None else rows % len(table)] * np.float32(op.scale)
        if op.first is not None:
            out[(rows < 0) | (rows >= len(table))] = 0
        self.buffers[op.out] = out

    @execute.register
    def add_embedding(self, op: AddEmbedding, batch: Batch) -> None:
        index = batch.positions if op.index == "position" else batch.types
        if index is None:
            index = np.zeros_like(batch.tokens)
        self.buffers[op.out] = self.buffers[op.out] + self.weights[op.table][index + op.offset]

    @execute.register
    def norm(self, op: Norm, batch: Batch) -> None:
        residual = self.buffers[op.residual]
        if op.add is not None:
            added = self.buffers[op.add] * np.float32(op.add_scale)
            residual = self.buffers[op.residual] = residual + added
        if op.kind == "layer":
            residual = residual - residual.mean(axis=1, keepdims=True)
        out = rms_norm(residual, op.epsilon) * self.weights[op.weight][0]
        if op.bias is not None:
            out += self.weights[op.bias][0]
        self.buffers[op.out] = self.buffers[op.out] + out if op.accumulate else out

    @execute.register
    def linear(self, op: Linear, batch: Batch) -> None:
        out = self.buffers[op.source] @ self.stacked[op.weights].T
        if op.biases:
            out += np.concatenate([self.weights[name][0] for name in op.biases])
        self.buffers[op.out] = out
        if batch.adapters is not None:
            self.adapt(op, np.repeat(batch.adapters, np.diff(batch.row_starts)))

    def adapt(self, op: Linear, chosen: Int32) -> None:
        """Add what each row's adapter changes of a linear."""
        for number in np.unique(chosen[chosen >= 0]).tolist():
            rows, first = chosen == number, 0
            source = self.buffers[op.source][rows]
            for name in op.weights:
                last = first + self.rows_of[name]
                delta = self.adapters[number].get(name)
                if delta is not None:
                    change = source @ delta.down.T @ delta.up.T * np.float32(delta.scale)
                    self.buffers[op.out][rows, first:last] += change
                first = last

    @execute.register
    def norm_heads(self, op: NormHeads, batch: Batch) -> None:
        qkv = self.buffers[op.qkv]
        first = 0
        for weight, heads in ((op.query, op.heads), (op.key, op.kv_heads)):
            last = first + heads * op.head_size
            part = qkv[:, first:last].reshape(len(qkv), 1 if op.whole else heads, -1)
            normed = rms_norm(part, op.epsilon) * self.weights[weight][0]
            qkv[:, first:last] = normed.reshape(len(qkv), -1)
            first = last

    @execute.register
    def rotate_and_write(self, op: RotateAndWrite, batch: Batch) -> None:
        rotated_heads = op.heads + op.kv_heads
        qkv = self.buffers[op.qkv].reshape(-1, rotated_heads + op.kv_heads, op.head_size)
        rotate(qkv[:, :rotated_heads], batch.positions, op.rope)
        written = qkv[:, op.heads :]
        if self.kv.dtype != "f16":
            written = round_to_bytes(written, self.kv.dtype)
        self.keys[op.layer, batch.slots] = written[:, : op.kv_heads]
        self.values[op.layer, batch.slots] = written[:, op.kv_heads :]

    @execute.register
    def attention(self, op: Attention, batch: Batch) -> None:
        rows = self.buffers[op.qkv].reshape(-1, op.heads + 2 * op.kv_heads, op.head_size)
        group = op.heads // op.kv_heads
        out = np.empty((len(rows), op.heads, op.head_size), np.float32)
        offsets = np.arange(self.kv.block_size)
        sinks = None if op.sinks is None else self.weights[op.sinks].reshape(-1, 1, 1)
        for index, length in enumerate(batch.context_lengths):
            first, last = batch.row_starts[index : index + 2]
            table = batch.block_tables[index, : -(-length // self.kv.block_size)]
            slots = (table[:, None] * self.kv.block_size + offsets).ravel()[:length]
            keys = np.repeat(self.keys[op.layer, slots], group, axis=1)
            values = np.repeat(self.values[op.layer, slots], group, axis=1)
            scores = np.einsum("qhd,khd->hqk", rows[first:last, : op.heads], keys) * op.scale
            if op.cap:
                scores = op.cap * np.tanh(scores / op.cap)
            distance = batch.positions[first:last, None] - np.arange(length)[None]
            visible = distance >= 0 if op.causal else np.ones_like(distance, np.bool_)
            if op.window:
                visible &= np.abs(distance) < op.window
            out[first:last] = attend(np.where(visible, scores, -np.inf), values, sinks)
        self.buffers[op.out] = out.reshape(len(rows), -1)

    @execute.register
    def gate_multiply(self, op: GateMultiply, batch: Batch) -> None:
        self.buffers[op.out] = gate(self.buffers[op.source], op.activation)

    @execute.register
    def activate(self, op: Activate, batch: Batch) -> None:
        self.buffers[op.out] = ACTIVATIONS[op.activation](self.buffers[op.source])

    @execute.register
    def mix_experts(self, op: MixExperts, batch: Batch) -> None:
        source = self.buffers[op.source]
        scores = source @ self.weights[op.router].T
        if op.router_bias is not None:
            scores += self.weights[op.router_bias][0]
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        chosen = np.argsort(-scores, axis=1, kind="stable")[:, : op.chosen]
        shares = np.take_along_axis(scores, chosen, axis=1)
        if op.normalized:
            shares /= shares.sum(axis=1, keepdims=True)
        out = np.zeros((len(source), len(self.weights[op.down[0]])), np.float32)
        for expert in np.unique(chosen):
            rows, place = np.nonzero(chosen == expert)
            parts = [
                self.project(source[rows], expert, names, biases)
                for names, biases in ((op.gate, op.gate_bias), (op.up, op.up_bias))
            ]
            gated = gate(np.concatenate(parts, axis=1), op.activation)
            down = self.project(gated, expert, op.down, op.down_bias)
            out[rows] += down * shares[rows, place, None]
        self.buffers[op.out] = out

    def project(
        self, rows: Float32, expert: int, weights: tuple[str, ...], biases: tuple[str, ...]
    ) -> Float32:
        """One expert's linear."""
        out: Float32 = rows @ self.weights[weights[expert]].T
        return out + self.weights[biases[expert]][0] if biases else out

    @execute.register
    def pool(self, op: Pool, batch: Batch) -> None:
        source, starts = self.buffers[op.source], batch.row_starts
        if op.pooling == "mean":
            parts = [source[first:last].mean(axis=0) for first, last in pairwise(starts)]
            self.buffers[op.out] = np.stack(parts)
        else:
            self.buffers[op.out] = source[starts[:-1] if op.pooling == "first" else starts[1:] - 1]

    @execute.register
    def project_to_logits(self, op: Logits, batch: Batch) -> None:
        logits = self.buffers[op.source][batch.sampled_rows] @ self.weights[op.weight].T
        logits *= np.float32(op.scale)
        if op.cap:
            logits = op.cap * np.tanh(logits / op.cap)
        self.result = self.ranks().gather(logits, op.parts) if op.parts else logits

    @execute.register
    def all_reduce(self, op: AllReduce, batch: Batch) -> None:
        self.ranks().sum(self.buffers[op.out])

    def ranks(self) -> Group:
        """The ranks, for a program that was cut. Raises ValueError without them."""
        if self.group is None:
            raise ValueError("a part of a program was loaded without a place among ranks")
        return self.group

    @execute.register
    def give(self, op: Result, batch: Batch) -> None:
        self.result = self.buffers[op.source]


def rms_norm(values: Float32, epsilon: float) -> Float32:
    """Values over the root of the mean of their squares, along the last axis."""
    scaled: Float32 = values / np.sqrt(
        np.mean(values**2, axis=-1, keepdims=True) + np.float32(epsilon)
    )
    return scaled


def rotate(heads: Float32, positions: Int32, rope: Rope) -> None:
    """Turn [rows, heads, head_size] in place by each row's position."""
    angles = positions[:, None] * np.array(rope.frequencies)
    cosine = (np.cos(angles) * rope.scale)[:, None].astype(np.float32)
    sine = (np.sin(angles) * rope.scale)[:, None].astype(np.float32)
    pairs = len(rope.frequencies)
    both = heads[..., : 2 * pairs]
    if rope.interleaved:
        first, second = both[..., 0::2], both[..., 1::2]
    else:
        first, second = both[..., :pairs], both[..., pairs:]
    turned = first * cosine - second * sine, first * sine + second * cosine
    first[...], second[...] = turned


def round_to_bytes(heads: Float32, to: KVType) -> Float32:
    """What is left of [rows, heads, head_size] in 8 bits: see `base.KVLayout`."""
    largest = np.float32(127 if to == "int8" else 448)
    top = np.abs(heads).max(axis=2, keepdims=True)
    scaled = heads * (largest / np.where(top > 1e-30, top, np.inf).astype(np.float32))
    if to == "int8":
        codes = np.rint(scaled)
    else:
        codes = np.clip(scaled, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    rounded: Float32 = codes * (top / largest)
    return rounded


def attend(scores: Float32, values: Float32, sinks: Float32 | None) -> Float32:
    """Softmax of scores [heads, queries, keys] over values [keys, heads, size], with sinks."""
    highest = scores.max(axis=2, keepdims=True)
    if sinks is not None:
        highest = np.maximum(highest, sinks)
    scores = np.exp(scores - highest)
    total = scores.sum(axis=2, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - highest)
    attended: Float32 = np.einsum("hqk,khd->qhd", scores / total, values)
    return attended


def gate(source: Float32, activation: Activation) -> Float32:
    """activation(left half) · right half."""
    left, right = np.split(source, 2, axis=1)
    if activation == "clamped_silu":
        left, right = np.minimum(left, 7), np.clip(right, -7, 7) + 1
        return left * sigmoid(np.float32(1.702) * left) * right
    return ACTIVATIONS[activation](left) * right


def sigmoid(values: Float32) -> Float32:
    """1 / (1 + exp(-x)); below -88 exp overflows float32, and the result is 0 to the last digit."""
    found: Float32 = (1 / (1 + np.exp(-np.maximum(values, -88)))).astype(np.float32)
    return found


def gelu(values: Float32) -> Float32:
    """X · P(X < x) of a standard normal X, exactly (arXiv 1606.08415)."""
    found: Float32 = values * (0.5 + 0.5 * erf(values * np.float32(math.sqrt(0.5))))
    return found


def erf(values: Float32) -> Float32:
    """The error function, within 1e-7: numpy has none, so straight lines over a fine grid.

    Past 4 it is 1 to the last digit of a float32.
    """
    at = np.fmin(np.abs(values), 4) * ERF_STEPS  # fmin: a NaN is 4 here, and a NaN again after
    below = at.astype(np.int32)
    low = ERF[below]
    return np.copysign(low + (at - below) * (ERF[below + 1] - low), values).astype(np.float32)


def gelu_tanh(values: Float32) -> Float32:
    """The approximation of gelu by tanh, of the same paper."""
    inner = math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)
    found: Float32 = 0.5 * values * (1 + np.tanh(inner))
    return found


ERF_STEPS = 4096  # a unit
ERF = np.array([math.erf(step / ERF_STEPS) for step in range(4 * ERF_STEPS + 2)], np.float32)
ACTIVATIONS: Mapping[str, Callable[[Float32], Float32]] = {
    "silu": lambda values: values * sigmoid(values),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": lambda values: np.maximum(values, 0),
    "tanh": np.tanh,
}


def load(
    program: Program,
    weights: Mapping[str, Tensor],
    kv: KVLayout,
    threads: int,
    place: Place | None = None,
) -> ReferenceBackend:
    """Dequantise all weights to float32. `threads` is numpy's own business.

    Ranks exchange arrays by torch. Raises ValueError where it is not installed.
    """
    return ReferenceBackend(program, weights, kv, None if place is None else meet(place))


def meet(place: Place) -> Group:
    """The group of ranks. Raises ValueError."""
    try:
        group: Group = import_module("headrace.runtime.backends.cuda.group").join_on_host(place)
    except ImportError as error:
        raise ValueError(f"several ranks need torch, the extra 'gpu': {error}") from error
    return group
