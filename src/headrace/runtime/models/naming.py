"""Canonical weight names from those of each file format.

Canonical: "embedding", "norm", "output", and per layer "layers.N.attention.query" and so on, as
`models.shapes` lists them. A table says what each name of a file stands for: a canonical name, or
several, whose rows lie in the tensor one after the other. `*` stands for an expert's number; where
only the canonical names have it, the tensor holds all experts in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import count

import numpy as np

from ..weights.gguf import WeightsError
from ..weights.tensor import BLOCKS, Tensor
from .shapes import Shapes

Names = Mapping[str, str | tuple[str, ...]]


UNUSED = ""  # a weight of a head that we do not run, as of masked language modelling


def with_biases(names: Names) -> dict[str, str | tuple[str, ...]]:
    """The table, with a `.bias` beside every `.weight`."""
    found = dict(names)
    for name, target in names.items():
        if name.endswith(".weight"):
            targets = (target,) if isinstance(target, str) else target
            biases = tuple(f"{one}.bias" if one else UNUSED for one in targets)
            found[f"{name.removesuffix('weight')}bias"] = (
                biases[0] if isinstance(target, str) else biases
            )
    return found


LLAMA = with_biases(
    {
        "embed_tokens.weight": "embedding",
        "norm.weight": "norm",
        "lm_head.weight": "output",
        "input_layernorm.weight": "attention.norm",
        "self_attn.q_proj.weight": "attention.query",
        "self_attn.k_proj.weight": "attention.key",
        "self_attn.v_proj.weight": "attention.value",
        "self_attn.q_norm.weight": "attention.query.norm",
        "self_attn.k_norm.weight": "attention.key.norm",
        "self_attn.o_proj.weight": "attention.output",
        "post_attention_layernorm.weight": "mlp.norm",
        "mlp.gate_proj.weight": "mlp.gate",
        "mlp.up_proj.weight": "mlp.up",
        "mlp.down_proj.weight": "mlp.down",
    }
)
PHI3: Names = {
    **LLAMA,
    "self_attn.qkv_proj.weight": ("attention.query", "attention.key", "attention.value"),
    "mlp.gate_up_proj.weight": ("mlp.gate", "mlp.up"),
}
SANDWICH: Names = {
    **LLAMA,
    "post_attention_layernorm.weight": "attention.post_norm",
    "pre_feedforward_layernorm.weight": "mlp.norm",
    "post_feedforward_layernorm.weight": "mlp.post_norm",
}
EXPERTS: Names = {
    **LLAMA,
    "mlp.gate.weight": "mlp.router",
    "mlp.experts.*.gate_proj.weight": "mlp.experts.*.gate",
    "mlp.experts.*.up_proj.weight": "mlp.experts.*.up",
    "mlp.experts.*.down_proj.weight": "mlp.experts.*.down",
    "mlp.experts.gate_up_proj": ("mlp.experts.*.gate", "mlp.experts.*.up"),
    "mlp.experts.down_proj": ("mlp.experts.*.down",),
}
MIXTRAL: Names = {
    **EXPERTS,
    "block_sparse_moe.gate.weight": "mlp.router",
    "block_sparse_moe.experts.*.w1.weight": "mlp.experts.*.gate",
    "block_sparse_moe.experts.*.w3.weight": "mlp.experts.*.up",
    "block_sparse_moe.experts.*.w2.weight": "mlp.experts.*.down",
}
GPT_OSS: Names = {  # the experts themselves are unpacked before (`models.unpacking`)
    **LLAMA,
    "self_attn.sinks": "attention.sinks",
    "mlp.router.weight": "mlp.router",
    "mlp.router.bias": "mlp.router.bias",
    "mlp.experts.*.gate": "mlp.experts.*.gate",
    "mlp.experts.*.up": "mlp.experts.*.up",
    "mlp.experts.*.down": "mlp.experts.*.down",
    "mlp.experts.gate_bias": ("mlp.experts.*.gate.bias",),
    "mlp.experts.up_bias": ("mlp.experts.*.up.bias",),
    "mlp.experts.down_proj_bias": ("mlp.experts.*.down.bias",),
}
BERT = with_biases(
    {
        "embeddings.word_embeddings.weight": "embedding",
        "embeddings.position_embeddings.weight": "embedding.position",
        "embeddings.token_type_embeddings.weight": "embedding.type",
        "embeddings.LayerNorm.weight": "embedding.norm",
        "attention.self.query.weight": "attention.query",
        "attention.self.key.weight": "attention.key",
        "attention.self.value.weight": "attention.value",
        "attention.output.dense.weight": "attention.output",
        "attention.output.LayerNorm.weight": "attention.norm",
        "intermediate.dense.weight": "mlp.up",
        "output.dense.weight": "mlp.down",
        "output.LayerNorm.weight": "mlp.norm",
        "pooler.dense.weight": "head.dense",
        "classifier.weight": "head.labels",
        "cls.predictions.transform.dense.weight": UNUSED,
        "cls.predictions.transform.LayerNorm.weight": UNUSED,
        "cls.predictions.decoder.weight": UNUSED,
        "cls.predictions.weight": UNUSED,
        "cls.seq_relationship.weight": UNUSED,
    }
)
# What the first BERT checkpoints call the parts of a norm.
BERT |= {
    name.replace(new, old): target
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for name, target in BERT.items()
    if name.endswith(new)
}
ROBERTA = with_biases(
    {
        **BERT,
        "pooler.dense.weight": UNUSED,
        "lm_head.dense.weight": UNUSED,
        "lm_head.layer_norm.weight": UNUSED,
        "lm_head.decoder.weight": UNUSED,
        "lm_head.weight": UNUSED,
        "classifier.dense.weight": "head.dense",
        "classifier.out_proj.weight": "head.labels",
    }
)
MODERNBERT = with_biases(
    {
        "embeddings.tok_embeddings.weight": "embedding",
        "embeddings.norm.weight": "embedding.norm",
        "attn_norm.weight": "attention.norm",
        "attn.Wqkv.weight": ("attention.query", "attention.key", "attention.value"),
        "attn.Wo.weight": "attention.output",
        "mlp_norm.weight": "mlp.norm",
        "mlp.Wi.weight": ("mlp.gate", "mlp.up"),
        "mlp.Wo.weight": "mlp.down",
        "final_norm.weight": "norm",
        "head.dense.weight": "head.dense",
        "head.norm.weight": "head.norm",
        "classifier.weight": "head.labels",
        "decoder.weight": UNUSED,
    }
)
GGUF_LLAMA = with_biases(
    {
        "token_embd.weight": "embedding",
        "output_norm.weight": "norm",
        "output.weight": "output",
        "attn_norm.weight": "attention.norm",
        "attn_q.weight": "attention.query",
        "attn_k.weight": "attention.key",
        "attn_v.weight": "attention.value",
        "attn_output.weight": "attention.output",
        "attn_q_norm.weight": "attention.query.norm",
        "attn_k_norm.weight": "attention.key.norm",
        "ffn_norm.weight": "mlp.norm",
        "ffn_gate.weight": "mlp.gate",
        "ffn_up.weight": "mlp.up",
        "ffn_down.weight": "mlp.down",
        "post_attention_norm.weight": "attention.post_norm",
        "post_ffw_norm.weight": "mlp.post_norm",
        "ffn_gate_inp.weight": "mlp.router",
        "ffn_gate_exps.weight": ("mlp.experts.*.gate",),
        "ffn_up_exps.weight": ("mlp.experts.*.up",),
        "ffn_down_exps.weight": ("mlp.experts.*.down",),
    }
)
GGUF_PHI3: Names = {
    **GGUF_LLAMA,
    "attn_qkv.weight": ("attention.query", "attention.key", "attention.value"),
    "ffn_up.weight": ("mlp.gate", "mlp.up"),
}
GGUF_GPT_OSS: Names = {
    **GGUF_LLAMA,
    "post_attention_norm.weight": "mlp.norm",
    "attn_sinks.weight": "attention.sinks",
}
# Not weights of the program: RoPE divisors are part of the architecture description, old
# checkpoints store what everyone computes.
IGNORED = re.compile(r"rope_f\w+\.weight|.*(rotary_emb\.inv_freq|position_ids)")
IN_LAYER = re.compile(r"(?:blk|(?:encoder\.)?layers?)\.(\d+)\.(.+)")
BASE = re.compile(r"(?:model|bert|roberta)\.")  # what a model with a head calls the model proper
EXPERT = re.compile(r"(?<=experts\.)\d+")


def canonical(tensors: Mapping[str, Tensor], names: Names, shapes: Shapes) -> dict[str, Tensor]:
    """Rename a file's tensors, and take those apart that hold several weights.

    Raises WeightsError on a tensor that no table knows: one left over would mean a model that is
    computed wrongly.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = parts_of(name, names, shapes)
        if parts is None:
            continue
        if isinstance(parts, str):
            renamed[parts] = tensor
        else:
            renamed |= split(name, tensor, parts, shapes)
    return renamed


def parts_of(name: str, names: Names, shapes: Shapes) -> str | list[str] | None:
    """What a file's tensor stands for: a canonical name, or several whose rows it holds in order.

    None where nothing reads it. Raises WeightsError where no table knows it.
    """
    plain = BASE.sub("", name, count=1) if BASE.match(name) else name
    if IGNORED.fullmatch(plain):
        return None
    layer = IN_LAYER.fullmatch(plain)
    inner = layer[2] if layer else plain
    expert = EXPERT.search(inner)
    target = names.get(EXPERT.sub("*", inner))
    if target is None:
        raise WeightsError(f"tensor {name} is not known in this architecture")
    if target == UNUSED:
        return None
    prefix = f"layers.{layer[1]}." if layer else ""
    if isinstance(target, str):
        return prefix + target.replace("*", expert[0] if expert else "*")
    wanted = [prefix + one for one in target]
    return per_expert(wanted, shapes) if "*" in wanted[0] else wanted


def per_expert(names: list[str], shapes: Shapes) -> list[str]:
    """The names for every expert that the model has, an expert's own beside each other."""
    found: list[str] = []
    for expert in count():
        own = [name.replace("*", str(expert)) for name in names]
        if own[0] not in shapes:
            break
        found += own
    return found


def split(name: str, tensor: Tensor, parts: list[str], shapes: Shapes) -> dict[str, Tensor]:
    """Views of the rows of a tensor; of a vector, of its values."""
    sizes = [shapes[part] for part in parts if part in shapes]
    if len(sizes) != len(parts):
        raise WeightsError(f"the model has no weights for tensor {name}")
    along = tensor.rows == 1 and all(rows == 1 for rows, _ in sizes) and len(sizes) > 1
    counts = [columns if along else rows for rows, columns in sizes]
    if sum(counts) != (tensor.columns if along else tensor.rows):
        raise WeightsError(f"tensor {name} has {tensor.rows} rows, its parts {sum(counts)}")
    values, size = BLOCKS[tensor.format]
    if along and any(one % values for one in counts):
        raise WeightsError(f"tensor {name} cannot be taken apart in format {tensor.format}")
    ends = np.cumsum(counts).tolist()
    found = {}
    for part, size_of, end in zip(parts, counts, ends, strict=True):
        if along:
            data = tensor.data[:, (end - size_of) // values * size : end // values * size]
            found[part] = Tensor(
                tensor.format, 1, size_of, np.ascontiguousarray(data), tensor.origin
            )
        else:
            data = tensor.data[end - size_of : end]
            found[part] = Tensor(tensor.format, size_of, tensor.columns, data, tensor.origin)
    return found
