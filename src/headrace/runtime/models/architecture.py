"""What a transformer is, as data. Readers of model files fill it in; `assembly` compiles it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# gelu_tanh is gelu's tanh approximation; clamped_silu is gpt-oss's gate (see program.GateMultiply).
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "tanh", "clamped_silu"]
# Where a sublayer (attention, MLP) is normalised: its input ("before"), its output before it is
# added to the residual ("after"), both, or the residual once it is added ("residual").
Placement = Literal["before", "after", "both", "residual"]
Pooling = Literal["first", "mean", "last"]


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    `frequencies[i]` is the angle per position, in radians, of rotated pair i; any scaling scheme
    (`models.rope`) is already in it. A pair is (i, i + pairs) of a head's values, or (2i, 2i + 1)
    where `interleaved`. Values past the rotated ones stay as they are. Rotated values are
    multiplied by `scale` (YaRN's attention factor).
    """

    frequencies: tuple[float, ...]
    interleaved: bool
    scale: float = 1.0


NO_ROPE = Rope((), interleaved=False)


@dataclass(frozen=True, slots=True)
class Layer:
    """What may differ from layer to layer.

    `window` 0: attention reaches everything; else only positions nearer than `window`.
    """

    rope: Rope
    window: int = 0
    experts: bool = False  # a mixture of experts in place of the MLP
    normed: bool = True  # False: the attention reads the residual as it is (ModernBERT's first)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: the `chosen` of `count` that a softmax router prefers, per token.

    Their outputs are weighted by the router's probabilities, which sum to 1 over the chosen where
    `normalized`, over all otherwise.
    """

    count: int
    chosen: int
    width: int  # rows of an expert's gate (and of its up) projection
    normalized: bool = True


@dataclass(frozen=True, slots=True)
class Inputs:
    """What an encoder adds to a token's embedding before the first layer.

    The row of position p is `position_offset` + p. A LayerNorm follows.
    """

    positions: int = 0  # rows of the table of positions; 0: none
    position_offset: int = 0
    types: int = 0  # rows of the table of token types; 0: none


@dataclass(frozen=True, slots=True)
class Head:
    """What reads a pooled sequence: labels, through a dense layer and a norm where there are any.

    `dense`: the pooled vector goes through a square matrix and `activation` first, then, where
    `norm`, through a LayerNorm.
    """

    labels: tuple[str, ...]
    pooling: Pooling
    activation: Activation = "tanh"
    dense: bool = True
    norm: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """A transformer, decoder or encoder. The defaults are those of the Llama family."""

    name: str
    vocabulary: int
    context: int  # longest sequence it was trained for, in tokens
    width: int
    heads: int
    kv_heads: int
    head_size: int
    gate_width: int  # rows of the gate (and of the up) projection
    norm_epsilon: float
    layers: tuple[Layer, ...]
    attention_scale: float  # of query · key
    tied_embeddings: bool = False
    biases: frozenset[str] = frozenset()  # the linear weights that have one: "attention.query" ...
    query_key_norm: Literal["none", "head", "width"] = "none"  # over each head, or all of them
    attention_cap: float = 0.0  # scores become cap · tanh(score / cap); 0: no cap
    sinks: bool = False  # a learnt score a head that takes part in the softmax and has no value
    causal: bool = True
    activation: Activation = "silu"
    gated: bool = True  # False: down(activation(up(x)))
    experts: Experts | None = None
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    placement: Placement = "before"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0  # of what a sublayer adds to the residual
    logit_scale: float = 1.0
    logit_cap: float = 0.0
    inputs: Inputs | None = None  # encoders
    head: Head | None = None  # classifiers
