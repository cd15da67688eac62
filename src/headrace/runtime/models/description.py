"""Architecture descriptions from what a file says of its model: GGUF metadata or config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..weights.gguf import GGUF, WeightsError
from .architecture import Architecture, Rope

HUGGING_FACE_TYPES = ("llama", "mistral")


class UnsupportedModel(WeightsError):
    """The file is sound, but its architecture has no description here."""


def frequencies(theta: float, pairs: int) -> NDArray[np.float64]:
    """Angle per position of each rotated pair, radians: theta^(-i / pairs)."""
    return theta ** (-np.arange(pairs) / pairs)


def from_gguf(file: GGUF) -> Architecture:
    """Describe the model of a GGUF file. Raises UnsupportedModel, or WeightsError on a gap."""
    about = file.metadata
    kind = about.get("general.architecture")
    if kind != "llama":
        raise UnsupportedModel(f"architecture '{kind}'; supported in GGUF: llama")
    if about.get("llama.expert_count"):
        raise UnsupportedModel("a mixture of experts in the llama architecture")

    def need(key: str) -> Any:
        if f"llama.{key}" not in about:
            raise WeightsError(f"the metadata lack llama.{key}")
        return about[f"llama.{key}"]

    width, heads = need("embedding_length"), need("attention.head_count")
    head_size = about.get("llama.attention.key_length", width // heads)
    rotated = about.get("llama.rope.dimension_count", head_size)
    if rotated > head_size or head_size > width:
        raise WeightsError(f"heads of {head_size} with {rotated} rotated, in a width of {width}")
    angles = frequencies(about.get("llama.rope.freq_base", 10_000.0), rotated // 2)
    scaling = about.get("llama.rope.scaling.type", "none")
    if scaling == "linear":
        angles = angles / about["llama.rope.scaling.factor"]
    elif scaling != "none":
        raise UnsupportedModel(f"RoPE scaling '{scaling}'")
    if "rope_freqs.weight" in file.tensors:  # llama3 scaling, stored as a divisor of each pair
        angles = angles / file.tensors["rope_freqs.weight"].float32().ravel()
    return Architecture(
        name=about.get("general.name", kind),
        vocabulary=file.tensors["token_embd.weight"].rows,
        context=need("context_length"),
        width=width,
        layers=need("block_count"),
        heads=heads,
        kv_heads=about.get("llama.attention.head_count_kv", heads),
        head_size=head_size,
        gate_width=need("feed_forward_length"),
        norm_epsilon=need("attention.layer_norm_rms_epsilon"),
        # The converter permutes query and key rows of this architecture so that pairs are adjacent.
        rope=Rope(tuple(angles.tolist()), interleaved=True),
        tied_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
    )


def from_config(config: Mapping[str, Any]) -> Architecture:
    """Describe the model of a Hugging Face config.json. Raises UnsupportedModel or WeightsError."""
    kind = config.get("model_type")
    if kind not in HUGGING_FACE_TYPES:
        raise UnsupportedModel(f"model_type '{kind}'; supported: {', '.join(HUGGING_FACE_TYPES)}")
    if config.get("sliding_window"):
        raise UnsupportedModel("sliding-window attention")
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias"):
        raise UnsupportedModel("an MLP other than SwiGLU without bias")
    try:
        width, heads = config["hidden_size"], config["num_attention_heads"]
        head_size = config.get("head_dim") or width // heads
        return Architecture(
            name=config.get("_name_or_path") or kind,
            vocabulary=config["vocab_size"],
            context=config["max_position_embeddings"],
            width=width,
            layers=config["num_hidden_layers"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_size=head_size,
            gate_width=config["intermediate_size"],
            norm_epsilon=config["rms_norm_eps"],
            rope=Rope(tuple(scaled(config, head_size // 2).tolist()), interleaved=False),
            tied_embeddings=config.get("tie_word_embeddings", False),
            attention_bias=config.get("attention_bias", False),
        )
    except KeyError as error:
        raise WeightsError(f"config.json lacks {error}") from error


def scaled(config: Mapping[str, Any], pairs: int) -> NDArray[np.float64]:
    """RoPE frequencies with the scaling that config.json asks for (none, linear or llama3)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta", 10_000.0)
    angles = frequencies(theta, pairs)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return angles
    if kind == "linear":
        return angles / float(rope["factor"])
    if kind != "llama3":
        raise UnsupportedModel(f"RoPE scaling '{kind}'")
    # Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, a ramp between.
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * angles / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    blended: NDArray[np.float64] = angles * (kept + (1 - kept) / float(rope["factor"]))
    return blended
