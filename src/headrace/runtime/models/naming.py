"""Canonical weight names from those of each file format, for the Llama family.

Canonical: "embedding", "norm", "output", and per layer "layers.N.attention.query" and so on, as
`models.program` uses them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..weights.gguf import WeightsError
from ..weights.tensor import Tensor

GGUF_NAMES = {
    "token_embd.weight": "embedding",
    "output_norm.weight": "norm",
    "output.weight": "output",
    "attn_norm.weight": "attention.norm",
    "attn_q.weight": "attention.query",
    "attn_k.weight": "attention.key",
    "attn_v.weight": "attention.value",
    "attn_q.bias": "attention.query.bias",
    "attn_k.bias": "attention.key.bias",
    "attn_v.bias": "attention.value.bias",
    "attn_output.weight": "attention.output",
    "ffn_norm.weight": "mlp.norm",
    "ffn_gate.weight": "mlp.gate",
    "ffn_up.weight": "mlp.up",
    "ffn_down.weight": "mlp.down",
}
HUGGING_FACE_NAMES = {
    "model.embed_tokens.weight": "embedding",
    "model.norm.weight": "norm",
    "lm_head.weight": "output",
    "input_layernorm.weight": "attention.norm",
    "self_attn.q_proj.weight": "attention.query",
    "self_attn.k_proj.weight": "attention.key",
    "self_attn.v_proj.weight": "attention.value",
    "self_attn.q_proj.bias": "attention.query.bias",
    "self_attn.k_proj.bias": "attention.key.bias",
    "self_attn.v_proj.bias": "attention.value.bias",
    "self_attn.o_proj.weight": "attention.output",
    "post_attention_layernorm.weight": "mlp.norm",
    "mlp.gate_proj.weight": "mlp.gate",
    "mlp.up_proj.weight": "mlp.up",
    "mlp.down_proj.weight": "mlp.down",
}
# Not weights of the program: RoPE divisors are part of the architecture description, and old
# checkpoints store the RoPE frequencies that everyone computes.
IGNORED = re.compile(r"rope_freqs\.weight$|rotary_emb\.inv_freq$")
IN_LAYER = re.compile(r"(?:blk|model\.layers)\.(\d+)\.(.+)")


def canonical(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename a file's tensors. Raises WeightsError on a tensor that no table knows.

    A weight left over would mean a model that is computed wrongly, so it is refused.
    """
    renamed = {}
    for name, tensor in tensors.items():
        if IGNORED.search(name):
            continue
        layer = IN_LAYER.fullmatch(name)
        known = names.get(layer[2] if layer else name)
        if known is None:
            raise WeightsError(f"tensor {name} is not part of a Llama-family model")
        renamed[f"layers.{layer[1]}.{known}" if layer else known] = tensor
    return renamed
