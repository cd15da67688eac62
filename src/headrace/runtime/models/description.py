"""Architecture descriptions from GGUF metadata."""

from __future__ import annotations

from typing import Any

from ..weights.gguf import GGUF, WeightsError
from .architecture import Architecture, Layer, Rope
from .decoders import QKV
from .fields import UnsupportedModel
from .rope import frequencies


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
        layers=(Layer(Rope(tuple(angles.tolist()), interleaved=True)),) * need("block_count"),
        heads=heads,
        kv_heads=about.get("llama.attention.head_count_kv", heads),
        head_size=head_size,
        attention_scale=head_size**-0.5,
        gate_width=need("feed_forward_length"),
        norm_epsilon=need("attention.layer_norm_rms_epsilon"),
        # The converter permutes query and key rows of this architecture so that pairs are adjacent.
        tied_embeddings="output.weight" not in file.tensors,
        biases=QKV if "blk.0.attn_q.bias" in file.tensors else frozenset(),
    )
