"""From an architecture to its step program.

The residual is "hidden". What a sublayer gave is "delta"; where norms stand before sublayers it
is added by the norm that comes next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from .architecture import Architecture, Experts, Head, Layer, Pooling
from .fields import UnsupportedModel
from .program import (
    Activate,
    AddEmbedding,
    Attention,
    Embed,
    GateMultiply,
    Linear,
    Logits,
    MixExperts,
    Norm,
    NormHeads,
    Op,
    Pool,
    Program,
    Result,
    RotateAndWrite,
)


def decoder_program(model: Architecture) -> Program:
    """Compile a decoder: five matrix products a layer, residual adds in the norms.

    Raises UnsupportedModel on a model that does not generate.
    """
    if not model.causal or model.head is not None:
        raise UnsupportedModel(f"{model.name} embeds or classifies; it does not generate text")
    weight = "embedding" if model.tied_embeddings else "output"
    end = Logits("normed", weight, scale=model.logit_scale, cap=model.logit_cap)
    ops = [*layers(model, len(model.layers)), last_norm(model), end]
    return program(model, ops, model.vocabulary, len(model.layers))


def pooled_program(model: Architecture, pooling: Pooling) -> Program:
    """Compile what embeds: one vector [width] a sequence.

    Every sequence must be whole in its step: the KV of all layers shares one layer's place.
    """
    ops, states = states_of(model)
    ops += [Pool("pooled", states, pooling), Result("pooled")]
    return program(model, ops, model.width, 1)


def classifier_program(model: Architecture, head: Head) -> Program:
    """Compile a classifier: one row of scores [labels] a sequence, each whole in its step."""
    ops, states = states_of(model)
    ops.append(Pool("pooled", states, head.pooling))
    source = "pooled"
    if head.dense:
        ops.append(linear(model, "dense", source, "head.dense"))
        ops.append(Activate("activated", "dense", head.activation))
        source = "activated"
    if head.norm:
        ops.append(norm(model, "pooled", source, "head.norm"))
        source = "pooled"
    ops += [linear(model, "scores", source, "head.labels"), Result("scores")]
    return program(model, ops, len(head.labels), 1)


def program(model: Architecture, ops: list[Op], outputs: int, kv_layers: int) -> Program:
    """A program of these ops, with the buffers that they use."""
    query_width, key_width = model.heads * model.head_size, model.kv_heads * model.head_size
    widths = {
        "hidden": model.width,
        "normed": model.width,
        "qkv": query_width + 2 * key_width,
        "attended": query_width,
        "delta": model.width,
        "gate_up": 2 * model.gate_width,
        "gated": model.gate_width,
        "up": model.gate_width,
        "pooled": model.width,
        "dense": model.width,
        "activated": model.width,
        "scores": outputs,
    }
    used = {getattr(op, "out", None) for op in ops}
    buffers = {name: width for name, width in widths.items() if name in used}
    return Program(tuple(ops), buffers, outputs, kv_layers, model.kv_heads, model.head_size)


def states_of(model: Architecture) -> tuple[list[Op], str]:
    """Ops up to the last hidden states, and the buffer that they are in."""
    if model.placement == "residual":
        return layers(model, 1), "hidden"
    return [*layers(model, 1), last_norm(model)], "normed"


def last_norm(model: Architecture) -> Norm:
    """The norm after the last layer."""
    if model.placement == "before":
        return settle(model, "normed", "hidden", "")
    return norm(model, "normed", "hidden", "norm")


def layers(model: Architecture, kv_layers: int) -> list[Op]:
    """Ops up to the end of the last layer."""
    ops = embed(model)
    for index, layer in enumerate(model.layers):
        at = f"layers.{index}"
        attention = partial(
            attention_ops, model, layer, f"{at}.attention", min(index, kv_layers - 1)
        )
        mlp = partial(mlp_ops, model, layer, f"{at}.mlp")
        if model.placement == "residual":
            ops += [*attention("hidden"), settle(model, "normed", "hidden", f"{at}.attention")]
            ops += [*mlp("normed"), settle(model, "hidden", "normed", f"{at}.mlp")]
        else:
            ops += around(model, attention, f"{at}.attention", index == 0, layer.normed)
            ops += around(model, mlp, f"{at}.mlp")
    return ops


def around(
    model: Architecture,
    sublayer: Callable[[str], list[Op]],
    at: str,
    first: bool = False,
    normed: bool = True,
) -> list[Op]:
    """A sublayer with the norms before and after it, those that the model has."""
    if model.placement == "after" or not normed:
        ops = sublayer("hidden")
    elif model.placement == "both" or first:
        ops = [norm(model, "normed", "hidden", f"{at}.norm"), *sublayer("normed")]
    else:
        ops = [settle(model, "normed", "hidden", at), *sublayer("normed")]
    if model.placement != "before":
        ops.append(replace(norm(model, "hidden", "delta", f"{at}.post_norm"), accumulate=True))
    return ops


def norm(model: Architecture, out: str, source: str, weight: str) -> Norm:
    """A norm of the model's kind."""
    bias = f"{weight}.bias" if model.norm_bias else None
    return Norm(out, source, weight, model.norm_epsilon, kind=model.norm, bias=bias)


def settle(model: Architecture, out: str, residual: str, at: str) -> Norm:
    """The norm that adds "delta" to the residual first."""
    weight = f"{at}.norm" if at else "norm"
    return replace(norm(model, out, residual, weight), add="delta", add_scale=model.residual_scale)


def embed(model: Architecture) -> list[Op]:
    """The tokens' embeddings; an encoder's with positions and types, through a norm."""
    if model.inputs is None:
        return [Embed("hidden", "embedding", scale=model.embedding_scale)]
    ops: list[Op] = [Embed("delta", "embedding")]
    if model.inputs.positions:
        offset = model.inputs.position_offset
        ops.append(AddEmbedding("delta", "embedding.position", "position", offset))
    if model.inputs.types:
        ops.append(AddEmbedding("delta", "embedding.type", "type"))
    return [*ops, norm(model, "hidden", "delta", "embedding.norm")]


def linear(model: Architecture, out: str, source: str, *weights: str) -> Linear:
    """Matrices side by side, with their biases where the model has them: all of them or none."""
    biases = tuple(f"{name}.bias" for name in weights if role(name) in model.biases)
    return Linear(out, source, weights, biases)


def role(name: str) -> str:
    """A weight's name without its layer: "attention.query"."""
    return name.split(".", 2)[2] if name.startswith("layers.") else name


def attention_ops(
    model: Architecture, layer: Layer, at: str, kv_layer: int, source: str
) -> list[Op]:
    """Attention: `source` in, "delta" out; keys and values live in `kv_layer` of the cache."""
    heads = (model.heads, model.kv_heads, model.head_size)
    parts = (f"{at}.query", f"{at}.key", f"{at}.value")
    ops: list[Op] = [linear(model, "qkv", source, *parts)]
    if model.query_key_norm != "none":
        weights = (f"{at}.query.norm", f"{at}.key.norm", model.norm_epsilon)
        ops.append(NormHeads("qkv", *heads, *weights, whole=model.query_key_norm == "width"))
    attention = Attention(
        "attended",
        "qkv",
        kv_layer,
        *heads,
        scale=model.attention_scale,
        window=layer.window,
        cap=model.attention_cap,
        sinks=f"{at}.sinks" if model.sinks else None,
        causal=model.causal,
    )
    ops += [RotateAndWrite("qkv", kv_layer, *heads, layer.rope), attention]
    return [*ops, linear(model, "delta", "attended", f"{at}.output")]


def mlp_ops(model: Architecture, layer: Layer, at: str, source: str) -> list[Op]:
    """The MLP, or the experts in its place: `source` in, "delta" out."""
    if layer.experts and model.experts is not None:
        return [experts_op(model, model.experts, at, source)]
    if not model.gated:
        ops: list[Op] = [linear(model, "up", source, f"{at}.up")]
        ops.append(Activate("gated", "up", model.activation))
    else:
        ops = [linear(model, "gate_up", source, f"{at}.gate", f"{at}.up")]
        ops.append(GateMultiply("gated", "gate_up", model.activation))
    return [*ops, linear(model, "delta", "gated", f"{at}.down")]


def experts_op(model: Architecture, experts: Experts, at: str, source: str) -> MixExperts:
    """A mixture of experts."""

    def names(part: str, suffix: str = "") -> tuple[str, ...]:
        return tuple(f"{at}.experts.{index}.{part}{suffix}" for index in range(experts.count))

    def biases(part: str) -> tuple[str, ...]:
        return names(part, ".bias") if f"mlp.experts.{part}" in model.biases else ()

    return MixExperts(
        "delta",
        source,
        f"{at}.router",
        names("gate"),
        names("up"),
        names("down"),
        chosen=experts.chosen,
        normalized=experts.normalized,
        activation=model.activation,
        router_bias=f"{at}.router.bias" if "mlp.router" in model.biases else None,
        gate_bias=biases("gate"),
        up_bias=biases("up"),
        down_bias=biases("down"),
    )
