"""What a decoder is, as numbers. Readers of weight files fill it in; `program` compiles it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    `frequencies[i]` is the angle per position, in radians, of rotated pair i; any scaling scheme
    (linear, llama3 ...) is already in it. A pair is (i, i + pairs) of a head's values, or
    (2i, 2i + 1) where `interleaved`. Values past the rotated ones stay as they are.
    """

    frequencies: tuple[float, ...]
    interleaved: bool


@dataclass(frozen=True, slots=True)
class Architecture:
    """A decoder-only transformer of the Llama family."""

    name: str
    vocabulary: int
    context: int  # longest sequence it was trained for, in tokens
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    gate_width: int  # rows of the gate (and of the up) projection
    norm_epsilon: float
    rope: Rope
    tied_embeddings: bool
    attention_bias: bool = False
