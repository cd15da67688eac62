"""The step program: a model's forward pass as a short list of fused ops over named buffers.

A buffer is a float32 matrix of one row per token of the step (per sequence after `Pool`),
`Program.buffers[name]` wide. Ops run in order. A backend is an executor of programs: it compiles
a program once at load and then runs it for every `backends.base.Batch`.

Weights are named canonically ("layers.0.attention.query"), whatever file they came from.

An attribute with a default asks for nothing beyond the basic op while it has that default:
`demands` lists what a program asks beyond, and a backend that does not know one of them must not
run the program.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args

from .architecture import Activation, Pooling, Rope


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = scale · table[token[t]]

    Where there is a `first`, the table is a part of a larger one that begins with this token, and
    a token outside of it gives zeros.
    """

    out: str
    table: str
    scale: float = 1.0
    first: int | None = None


@dataclass(frozen=True, slots=True)
class AddEmbedding:
    """out[t] += table[index[t] + offset], the index being the token's position or its type."""

    out: str
    table: str
    index: Literal["position", "type"]
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm with the residual before it.

    Where `add` is given, residual += add_scale · add first; then, in kind "rms" (RMSNorm, arXiv
    1910.07467), out = residual / sqrt(mean(residual²) + epsilon) · weight. Kind "layer"
    (LayerNorm, arXiv 1607.06450) takes the mean away first. `bias` is added. Where `accumulate`,
    out += the result, instead of out = the result.
    """

    out: str
    residual: str
    weight: str
    epsilon: float
    add: str | None = None
    add_scale: float = 1.0
    kind: Literal["rms", "layer"] = "rms"
    bias: str | None = None
    accumulate: bool = False


@dataclass(frozen=True, slots=True)
class Linear:
    """out = source @ vstack(weights).T (+ concat(biases)); a weight is [rows, source width]."""

    out: str
    source: str
    weights: tuple[str, ...]
    biases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NormHeads:
    """RMSNorm of the query and of the key part of `qkv`, in place, each with its weight.

    Over each head, the weight being [head_size]; where `whole`, over all heads of the part
    together, the weight being as wide as the part.
    """

    qkv: str
    heads: int
    kv_heads: int
    head_size: int
    query: str
    key: str
    epsilon: float
    whole: bool = False


@dataclass(frozen=True, slots=True)
class RotateAndWrite:
    """Rotate query and key of `qkv` in place by the row's position; key and value to the KV cache.

    A row of `qkv` is heads query vectors, kv_heads key vectors, kv_heads value vectors, each
    head_size long. They go to layer `layer`, slot `batch.slots[row]`. No frequencies, no rotation.
    """

    qkv: str
    layer: int
    heads: int
    kv_heads: int
    head_size: int
    rope: Rope


@dataclass(frozen=True, slots=True)
class Attention:
    """Paged attention of the query part of `qkv` over the KV cache of `layer`.

    Query head h reads key/value head h // (heads // kv_heads). A row at position p sees the KV
    entries 0..p of its own sequence, found through its block table; all of the sequence's entries
    where not `causal`. Of these, a `window` other than 0 leaves the positions nearer than it.

    Scores are query · key · scale; a `cap` other than 0 makes them cap · tanh(score / cap).
    `sinks` [1, heads] adds to each head's softmax one more score, whose value is zero.
    """

    out: str
    qkv: str
    layer: int
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    window: int = 0
    cap: float = 0.0
    sinks: str | None = None
    causal: bool = True


@dataclass(frozen=True, slots=True)
class GateMultiply:
    """A gated linear unit (arXiv 2002.05202): activation(left half of source) · right half.

    "silu" is SwiGLU. "clamped_silu" (gpt-oss): with gate cut to at most 7 and up to -7..7,
    gate · sigmoid(1.702 · gate) · (up + 1).
    """

    out: str
    source: str
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True)
class Activate:
    """out = activation(source)"""

    out: str
    source: str
    activation: Activation


@dataclass(frozen=True, slots=True)
class MixExperts:
    """Each row through its `chosen` best experts, summed by the router's weights.

    probabilities = softmax(source @ router.T (+ router_bias)); the `chosen` largest (the lowest
    index among equals) weigh their experts' outputs, divided by their sum where `normalized`.
    Expert e is Linear(gate[e], up[e]), GateMultiply(activation), Linear(down[e]); the biases, one
    name an expert where there are any, are added as in Linear.
    """

    out: str
    source: str
    router: str
    gate: tuple[str, ...]
    up: tuple[str, ...]
    down: tuple[str, ...]
    chosen: int
    normalized: bool = True
    activation: Activation = "silu"
    router_bias: str | None = None
    gate_bias: tuple[str, ...] = ()
    up_bias: tuple[str, ...] = ()
    down_bias: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """One row a sequence: its first row, its last, or the mean of its rows of the step."""

    out: str
    source: str
    pooling: Pooling


@dataclass(frozen=True, slots=True)
class Logits:
    """logits = source[batch.sampled_rows] @ weight.T · scale, then sampling.

    A `cap` other than 0 makes them cap · tanh(logit / cap). `parts`: the weight is that of this
    rank's tokens, `parts[rank]` of them, and rank 0 gets the logits of all ranks side by side.
    """

    source: str
    weight: str
    scale: float = 1.0
    cap: float = 0.0
    parts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AllReduce:
    """out = the sum of all ranks' out; every rank gets the same bits."""

    out: str


@dataclass(frozen=True, slots=True)
class Result:
    """What `Backend.logits` gives is `source` as it is; nothing is sampled."""

    source: str


Op = (
    Embed
    | AddEmbedding
    | Norm
    | Linear
    | NormHeads
    | RotateAndWrite
    | Attention
    | GateMultiply
    | Activate
    | MixExperts
    | Pool
    | Logits
    | AllReduce
    | Result
)


KINDS: tuple[type, ...] = (*get_args(Op), Rope)
# What every backend knows: the Llama family.
BASIC = frozenset(
    {"Embed", "Norm", "Norm.add", "Linear", "Linear.biases", "RotateAndWrite", "Rope"}
    | {"Attention", "GateMultiply", "Logits"}
)
EVERYTHING = frozenset(kind.__name__ for kind in KINDS) | {
    f"{kind.__name__}.{field.name}"
    for kind in KINDS
    for field in fields(kind)
    if field.default is not MISSING
}


@dataclass(frozen=True, slots=True)
class Program:
    """Ops in order, the width of each buffer, and the shape of one token's KV.

    `vocabulary` is the width of what comes out.
    """

    ops: tuple[Op, ...]
    buffers: Mapping[str, int]
    vocabulary: int
    layers: int
    kv_heads: int
    head_size: int


class UnsupportedProgram(ValueError):
    """The backend does not know an op of the program, or what an op asks."""


def demands(program: Program) -> frozenset[str]:
    """What the program asks of a backend: its kinds of op, as "Norm", and beyond them every
    attribute that is not at its default, as "Norm.bias" or "Rope.scale"."""
    return frozenset(demand for op in program.ops for demand in asked(op))


def asked(record: Any) -> Iterator[str]:
    """The demands of one op, or of a record in it."""
    kind = type(record).__name__
    yield kind
    for field in fields(record):
        value = getattr(record, field.name)
        if is_dataclass(value):
            yield from asked(value)
        elif field.default is not MISSING and value != field.default:
            yield f"{kind}.{field.name}"
