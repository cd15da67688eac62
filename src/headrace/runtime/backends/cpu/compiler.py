"""From a step program to the native one: names become indices, once, at load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from ...models.program import (
    Activate,
    AddEmbedding,
    Attention,
    Embed,
    GateMultiply,
    Linear,
    Logits,
    Norm,
    NormHeads,
    Op,
    Pool,
    Program,
    Result,
    RotateAndWrite,
    UnsupportedProgram,
)
from ...weights.float8 import widened
from ...weights.tensor import Tensor
from ._native import Model

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "tanh")


def compile_program(
    model: Model, program: Program, weights: Mapping[str, Tensor]
) -> Mapping[str, int]:
    """Add the program's buffers, weights and ops to `model`; the weights' indices by name.

    Raises ValueError where an op names what is not there or shapes do not fit.
    """
    buffers = {name: model.buffer(width) for name, width in program.buffers.items()}
    buffer = partial(find, buffers, "buffer")
    added: dict[str, int] = {}

    def weight(name: str) -> int:
        if name not in added:
            tensor = weights.get(name)
            if tensor is None:
                raise ValueError(f"the program reads weight '{name}', which the model lacks")
            tensor = widened(tensor)
            data = np.ascontiguousarray(tensor.data)
            added[name] = model.weight(tensor.format, tensor.rows, tensor.columns, data)
        return added[name]

    for op in program.ops:
        add_op(model, op, buffer, weight)
    return added


def find(known: Mapping[str, int], kind: str, name: str) -> int:
    """The index of `name`."""
    if name not in known:
        raise ValueError(f"the program has no {kind} '{name}'")
    return known[name]


def add_op(
    model: Model, op: Op, buffer: Callable[[str], int], weight: Callable[[str], int]
) -> None:
    """Add one op."""
    match op:
        case Embed():
            model.embed(buffer(op.out), weight(op.table), op.scale)
        case AddEmbedding():
            model.add_embedding(buffer(op.out), weight(op.table), op.index == "type", op.offset)
        case Norm():
            add_norm(model, op, buffer, weight)
        case Linear():
            parts = [weight(name) for name in op.weights]
            biases = [weight(name) for name in op.biases]
            model.linear(buffer(op.out), buffer(op.source), parts, biases)
        case NormHeads():
            query, key = weight(op.query), weight(op.key)
            model.norm_heads(buffer(op.qkv), op.heads, query, key, op.epsilon, op.whole)
        case RotateAndWrite():
            rope = op.rope
            frequencies, place = list(rope.frequencies), (buffer(op.qkv), op.layer, op.heads)
            model.rotate_and_write(*place, frequencies, rope.interleaved, rope.scale)
        case Attention():
            out, qkv, rest = buffer(op.out), buffer(op.qkv), (op.scale, op.window, op.cap)
            sinks = None if op.sinks is None else weight(op.sinks)
            model.attention(out, qkv, op.layer, op.heads, *rest, sinks, op.causal)
        case GateMultiply():
            check_activation(op.activation)
            model.gate_multiply(buffer(op.out), buffer(op.source), op.activation)
        case Activate():
            check_activation(op.activation)
            model.activate(buffer(op.out), buffer(op.source), op.activation)
        case Pool():
            model.pool(buffer(op.out), buffer(op.source), op.pooling)
        case Result():
            model.result(buffer(op.source))
        case Logits():
            model.project_to_logits(buffer(op.source), weight(op.weight), op.scale, op.cap)
        case _:
            raise UnsupportedProgram(f"backend cpu does not know {type(op).__name__}")


def add_norm(
    model: Model, op: Norm, buffer: Callable[[str], int], weight: Callable[[str], int]
) -> None:
    """Add a norm. Raises UnsupportedProgram for mixtures that no model has."""
    add = None if op.add is None else buffer(op.add)
    place = buffer(op.out), buffer(op.residual), weight(op.weight)
    if op.kind == "rms" and op.bias is None:
        model.norm(*place, op.epsilon, add, op.add_scale, op.accumulate)
    elif op.kind == "layer" and not op.accumulate:
        bias = None if op.bias is None else weight(op.bias)
        model.layer_norm(*place, bias, op.epsilon, add, op.add_scale)
    else:
        raise UnsupportedProgram("backend cpu knows no RMS norm with a bias, and none to add")


def check_activation(name: str) -> None:
    """Raises UnsupportedProgram."""
    if name not in ACTIVATIONS:
        raise UnsupportedProgram(f"backend cpu does not know the activation {name}")
