"""Which weights an architecture has, and their shapes."""

from __future__ import annotations

from collections.abc import Mapping

from ..weights.gguf import WeightsError
from ..weights.tensor import BLOCKS, Tensor
from .architecture import Architecture, Layer

Shapes = dict[str, tuple[int, int]]


def expected_shapes(model: Architecture) -> Shapes:
    """(rows, columns) of every weight by its canonical name; vectors have one row.

    Raises WeightsError on a description that contradicts itself.
    """
    if model.heads % model.kv_heads:
        raise WeightsError(f"{model.heads} heads do not share {model.kv_heads} key/value heads")
    shapes: Shapes = {"embedding": (model.vocabulary, model.width)}
    for index, layer in enumerate(model.layers):
        if len(layer.rope.frequencies) * 2 > model.head_size:
            raise WeightsError("RoPE turns more values than a head has")
        in_layer = attention_shapes(model, layer) | mlp_shapes(model, layer)
        shapes |= {f"layers.{index}.{name}": shape for name, shape in in_layer.items()}
    if model.inputs is not None:
        shapes |= norm_shapes(model, "embedding.norm")
        if model.inputs.positions:
            shapes["embedding.position"] = (model.inputs.positions, model.width)
        if model.inputs.types:
            shapes["embedding.type"] = (model.inputs.types, model.width)
    if model.placement != "residual":
        shapes |= norm_shapes(model, "norm")
    if model.causal and not model.tied_embeddings and model.head is None:
        shapes["output"] = (model.vocabulary, model.width)
    if model.head is not None:
        matrices = {"head.labels": (len(model.head.labels), model.width)}
        if model.head.dense:
            matrices["head.dense"] = (model.width, model.width)
        if model.head.norm:
            shapes |= norm_shapes(model, "head.norm")
        shapes |= matrices | bias_shapes(model, matrices)
    return shapes


def attention_shapes(model: Architecture, layer: Layer) -> Shapes:
    """The weights of one layer's attention, without the layer's name."""
    queries, keys = model.heads * model.head_size, model.kv_heads * model.head_size
    matrices = {
        "attention.query": (queries, model.width),
        "attention.key": (keys, model.width),
        "attention.value": (keys, model.width),
        "attention.output": (model.width, queries),
    }
    shapes = matrices | bias_shapes(model, matrices)
    if layer.normed:
        shapes |= around_shapes(model, "attention")
    if model.query_key_norm == "head":
        shapes["attention.query.norm"] = shapes["attention.key.norm"] = (1, model.head_size)
    elif model.query_key_norm == "width":
        shapes |= {"attention.query.norm": (1, queries), "attention.key.norm": (1, keys)}
    if model.sinks:
        shapes["attention.sinks"] = (1, model.heads)
    return shapes


def mlp_shapes(model: Architecture, layer: Layer) -> Shapes:
    """The weights of one layer's MLP or experts, without the layer's name."""
    shapes = around_shapes(model, "mlp")
    if not layer.experts or model.experts is None:
        parts = ("gate", "up") if model.gated else ("up",)
        matrices = {f"mlp.{part}": (model.gate_width, model.width) for part in parts}
        matrices["mlp.down"] = (model.width, model.gate_width)
        return shapes | matrices | bias_shapes(model, matrices)
    router = {"mlp.router": (model.experts.count, model.width)}
    shapes |= router | bias_shapes(model, router)
    width = model.experts.width
    for part, rows, columns in (
        ("gate", width, model.width),
        ("up", width, model.width),
        ("down", model.width, width),
    ):
        for index in range(model.experts.count):
            shapes[f"mlp.experts.{index}.{part}"] = (rows, columns)
            if f"mlp.experts.{part}" in model.biases:
                shapes[f"mlp.experts.{index}.{part}.bias"] = (1, rows)
    return shapes


def around_shapes(model: Architecture, sublayer: str) -> Shapes:
    """The norms before and after a sublayer, those that the model has."""
    parts = {"before": ("norm",), "after": ("post_norm",), "both": ("norm", "post_norm")}
    shapes: Shapes = {}
    for part in parts.get(model.placement, ("norm",)):
        shapes |= norm_shapes(model, f"{sublayer}.{part}")
    return shapes


def norm_shapes(model: Architecture, name: str) -> Shapes:
    """A norm's weight, and its bias where it has one."""
    shape = (1, model.width)
    return {name: shape} | ({f"{name}.bias": shape} if model.norm_bias else {})


def bias_shapes(model: Architecture, matrices: Shapes) -> Shapes:
    """The biases of those matrices that have one."""
    return {
        f"{name}.bias": (1, rows) for name, (rows, _) in matrices.items() if name in model.biases
    }


def check_shapes(expected: Shapes, weights: Mapping[str, Tensor]) -> None:
    """Raise WeightsError on a weight that is missing, unknown, or not of its shape."""
    for name, shape in expected.items():
        tensor = weights.get(name)
        if tensor is None:
            raise WeightsError(f"the weight {name} is missing")
        if (tensor.rows, tensor.columns) != shape:
            raise WeightsError(f"the weight {name} is {(tensor.rows, tensor.columns)}, not {shape}")
        if tensor.format not in BLOCKS:
            raise WeightsError(f"the weight {name} has format {tensor.format}")
    if extra := sorted(weights.keys() - expected.keys()):
        raise WeightsError(f"the model does not use the weight {extra[0]}")
