"""A model as it was found on disk: description, weights, tokenizer and chat template together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from ..text.template import CHATML, ChatTemplate
from ..text.tokenizer import (
    Vocabulary,
    read_json,
    token_text,
    vocabulary_from_directory,
    vocabulary_from_gguf,
)
from ..weights.gguf import WeightsError, read_gguf
from ..weights.safetensors import read_directory
from ..weights.tensor import Tensor
from .architecture import Architecture
from .description import from_config, from_gguf
from .naming import GGUF_NAMES, HUGGING_FACE_NAMES, canonical


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything a model file says, in canonical names."""

    architecture: Architecture
    weights: Mapping[str, Tensor]
    vocabulary: Vocabulary
    template: ChatTemplate

    @property
    def formats(self) -> dict[str, int]:
        """How many weights there are of each format."""
        counts: dict[str, int] = {}
        for tensor in self.weights.values():
            counts[tensor.format] = counts.get(tensor.format, 0) + 1
        return counts


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a GGUF file or a Hugging Face directory.

    Raises WeightsError (UnsupportedModel where only the architecture is unknown), or OSError.
    """
    try:
        checkpoint = from_directory(path) if path.is_dir() else from_file(path)
        check_shapes(checkpoint.architecture, checkpoint.weights)
    except WeightsError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        # A value of a wrong type or range somewhere in the description: the file is at fault.
        raise WeightsError(f"{path} does not describe a model: {error!r}") from error
    return checkpoint


def check_shapes(model: Architecture, weights: Mapping[str, Tensor]) -> None:
    """Raise WeightsError on a weight that is missing or is not the shape the model says."""
    if model.layers > len(weights):
        raise WeightsError(f"{model.layers} layers, but only {len(weights)} weights")
    queries, keys = model.heads * model.head_size, model.kv_heads * model.head_size
    if model.heads % model.kv_heads:
        raise WeightsError(f"{model.heads} heads do not share {model.kv_heads} key/value heads")
    if len(model.rope.frequencies) * 2 > model.head_size:
        raise WeightsError("RoPE turns more values than a head has")
    in_layer = {
        "attention.norm": (1, model.width),
        "attention.query": (queries, model.width),
        "attention.key": (keys, model.width),
        "attention.value": (keys, model.width),
        "attention.output": (model.width, queries),
        "mlp.norm": (1, model.width),
        "mlp.gate": (model.gate_width, model.width),
        "mlp.up": (model.gate_width, model.width),
        "mlp.down": (model.width, model.gate_width),
    }
    if model.attention_bias:
        in_layer["attention.query.bias"] = (1, queries)
        in_layer["attention.key.bias"] = in_layer["attention.value.bias"] = (1, keys)
    expected = {
        f"layers.{layer}.{name}": shape
        for layer in range(model.layers)
        for name, shape in in_layer.items()
    }
    expected |= {"embedding": (model.vocabulary, model.width), "norm": (1, model.width)}
    if not model.tied_embeddings:
        expected["output"] = (model.vocabulary, model.width)
    for name, shape in expected.items():
        tensor = weights.get(name)
        if tensor is None:
            raise WeightsError(f"the weight {name} is missing")
        if (tensor.rows, tensor.columns) != shape:
            raise WeightsError(f"the weight {name} is {(tensor.rows, tensor.columns)}, not {shape}")
    if extra := sorted(weights.keys() - expected.keys()):
        raise WeightsError(f"the model does not use the weight {extra[0]}")


def from_file(path: Path) -> Checkpoint:
    """Read a GGUF file."""
    file = read_gguf(path)
    about = file.metadata
    tokens = about.get("tokenizer.ggml.tokens") or []

    def token(name: str) -> str:
        index = about.get(f"tokenizer.ggml.{name}_token_id")
        return tokens[index] if index is not None and index < len(tokens) else ""

    return Checkpoint(
        architecture=from_gguf(file),
        weights=canonical(file.tensors, GGUF_NAMES),
        vocabulary=vocabulary_from_gguf(about),
        template=compile_template(about.get("tokenizer.chat_template"), token("bos"), token("eos")),
    )


def from_directory(path: Path) -> Checkpoint:
    """Read a Hugging Face directory: config.json, *.safetensors, tokenizer.json and companions."""
    about = read_json(path / "tokenizer_config.json")
    beside = path / "chat_template.jinja"
    source = beside.read_text() if beside.exists() else about.get("chat_template")
    weights = canonical(read_directory(path), HUGGING_FACE_NAMES)
    architecture = from_config(read_json(path / "config.json"))
    if architecture.tied_embeddings:
        weights.pop("output", None)
    bos, eos = (token_text(about.get(f"{name}_token")) or "" for name in ("bos", "eos"))
    return Checkpoint(
        architecture=architecture,
        weights=weights,
        vocabulary=vocabulary_from_directory(path),
        template=compile_template(source, bos, eos),
    )


def compile_template(source: Any, bos: str, eos: str) -> ChatTemplate:
    """Compile a chat template; several come as a list of {name, template}, "default" counts.

    A model without one is a base model: it gets ChatML, the plainest of the common forms.
    """
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    try:
        return ChatTemplate(source or CHATML, bos_token=bos, eos_token=eos)
    except TemplateError as error:
        raise WeightsError(f"the chat template is not sound: {error}") from error
