"""The step program: a model's forward pass as a short list of fused ops over named buffers.

A buffer is a float32 matrix of one row per token of the step, `Program.buffers[name]` wide. Ops
run in order. A backend is an executor of programs: it compiles a program once at load and then
runs it for every `backends.base.Batch`.

Weights are named canonically ("layers.0.attention.query"), whatever file they came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .architecture import Architecture, Rope


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = table[token[t]]"""

    out: str
    table: str


@dataclass(frozen=True, slots=True)
class Norm:
    """RMSNorm (arXiv 1910.07467) with the residual before it.

    Where `add` is given, residual += add first; then
    out = residual / sqrt(mean(residual²) + epsilon) · weight.
    """

    out: str
    residual: str
    weight: str
    epsilon: float
    add: str | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """out = source @ vstack(weights).T (+ concat(biases)); a weight is [rows, source width]."""

    out: str
    source: str
    weights: tuple[str, ...]
    biases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RotateAndWrite:
    """Rotate query and key of `qkv` in place by the row's position; key and value to the KV cache.

    A row of `qkv` is heads query vectors, kv_heads key vectors, kv_heads value vectors, each
    head_size long. They go to layer `layer`, slot `batch.slots[row]`.
    """

    qkv: str
    layer: int
    heads: int
    kv_heads: int
    head_size: int
    rope: Rope


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal paged attention of the query part of `qkv` over the KV cache of `layer`.

    Query head h reads key/value head h // (heads // kv_heads). A row at position p sees the KV
    entries 0..p of its own sequence, found through its block table.
    """

    out: str
    qkv: str
    layer: int
    heads: int
    kv_heads: int
    head_size: int
    scale: float


@dataclass(frozen=True, slots=True)
class GateMultiply:
    """SwiGLU: out = silu(left half of source) · right half (arXiv 2002.05202)."""

    out: str
    source: str


@dataclass(frozen=True, slots=True)
class Logits:
    """logits = source[batch.sampled_rows] @ weight.T, then sampling."""

    source: str
    weight: str


Op = Embed | Norm | Linear | RotateAndWrite | Attention | GateMultiply | Logits


@dataclass(frozen=True, slots=True)
class Program:
    """Ops in order, the width of each buffer, and the shape of one token's KV."""

    ops: tuple[Op, ...]
    buffers: Mapping[str, int]
    vocabulary: int
    layers: int
    kv_heads: int
    head_size: int


def decoder_program(model: Architecture) -> Program:
    """Compile a Llama-family decoder: five matrix products a layer, residual adds in the norms."""
    query_width = model.heads * model.head_size
    key_width = model.kv_heads * model.head_size
    buffers = {
        "hidden": model.width,
        "normed": model.width,
        "qkv": query_width + 2 * key_width,
        "attended": query_width,
        "delta": model.width,
        "gate_up": 2 * model.gate_width,
        "gated": model.gate_width,
    }
    ops: list[Op] = [Embed("hidden", "embedding")]
    for layer in range(model.layers):
        at = f"layers.{layer}"
        attention = tuple(f"{at}.attention.{part}" for part in ("query", "key", "value"))
        biases = tuple(f"{name}.bias" for name in attention) if model.attention_bias else ()
        heads = (layer, model.heads, model.kv_heads, model.head_size)
        ops += [
            Norm(
                "normed",
                "hidden",
                f"{at}.attention.norm",
                model.norm_epsilon,
                add="delta" if layer else None,
            ),
            Linear("qkv", "normed", attention, biases),
            RotateAndWrite("qkv", *heads, model.rope),
            Attention("attended", "qkv", *heads, scale=model.head_size**-0.5),
            Linear("delta", "attended", (f"{at}.attention.output",)),
            Norm("normed", "hidden", f"{at}.mlp.norm", model.norm_epsilon, add="delta"),
            Linear("gate_up", "normed", (f"{at}.mlp.gate", f"{at}.mlp.up")),
            GateMultiply("gated", "gate_up"),
            Linear("delta", "gated", (f"{at}.mlp.down",)),
        ]
    ops += [
        Norm("normed", "hidden", "norm", model.norm_epsilon, add="delta"),
        Logits("normed", "embedding" if model.tied_embeddings else "output"),
    ]
    return Program(
        tuple(ops), buffers, model.vocabulary, model.layers, model.kv_heads, model.head_size
    )
