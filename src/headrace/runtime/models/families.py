"""The architectures that are known, by the names that files give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..weights.tensor import Tensor
from . import decoders, encoders, naming, unpacking
from .architecture import Architecture
from .fields import Fields, UnsupportedModel
from .shapes import check_shapes, expected_shapes


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's files are read.

    `describe(config, served)` reads the description, `served` being the longest sequence that
    will be asked for (0: as long as it was trained for). `names` are those of the weights.
    `unpack` brings weights to rows of outputs. Norm weights lie in the file less `norm_offset`.
    """

    describe: Callable[[Fields, int], Architecture]
    names: naming.Names = field(default_factory=lambda: naming.LLAMA)
    unpack: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None
    norm_offset: float = 0.0


# By `model_type` of config.json.
FAMILIES: Mapping[str, Family] = {
    "llama": Family(decoders.decoder),
    "mistral": Family(decoders.mistral),
    "qwen2": Family(decoders.qwen2),
    "qwen3": Family(decoders.qwen3),
    "smollm3": Family(decoders.smollm3),
    "gemma2": Family(decoders.gemma2, naming.SANDWICH, norm_offset=1.0),
    "gemma3_text": Family(decoders.gemma3, naming.SANDWICH, norm_offset=1.0),
    "phi3": Family(decoders.phi3, naming.PHI3),
    "olmo2": Family(decoders.olmo2, naming.SANDWICH),
    "granite": Family(decoders.granite),
    "mixtral": Family(decoders.mixtral, naming.MIXTRAL),
    "qwen3_moe": Family(decoders.qwen3_moe, naming.EXPERTS),
    "gpt_oss": Family(decoders.gpt_oss, naming.GPT_OSS, unpacking.gpt_oss),
    "bert": Family(encoders.bert, naming.BERT),
    "roberta": Family(encoders.roberta, naming.ROBERTA),
    "xlm-roberta": Family(encoders.roberta, naming.ROBERTA),
    "camembert": Family(encoders.roberta, naming.ROBERTA),
    "modernbert": Family(encoders.modernbert, naming.MODERNBERT),
}

# Fields of config.json that change nothing of a forward pass: training, tokens, bookkeeping.
TRAINING = {
    *("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classifier_dropout"),
    *("embd_pdrop", "hidden_dropout_prob", "resid_pdrop", "initializer_range", "pretraining_tp"),
    *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "problem_type"),
    *("gradient_checkpointing", "use_cache", "unsloth_fixed", "unsloth_version"),
}
TOKENS = {f"{name}_token_id" for name in ("bos", "cls", "eos", "mask", "pad", "sep", "unk")} | {
    "tokenizer_class",
    "language",
}
BOOKKEEPING = {
    *("architectures", "auto_map", "dtype"),
    *("id2label", "label2id", "keys_to_ignore_at_inference", "model_type", "output_attentions"),
    *("output_hidden_states", "output_past", "return_dict", "torch_dtype", "transformers_version"),
    *("is_llama_config", "transformers.js_config", "use_bfloat16"),
    *("chunk_size_feed_forward", "sentence_transformers", "sbert_ce_default_activation_function"),
}
HARMLESS = frozenset(TRAINING | TOKENS | BOOKKEEPING)


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises UnsupportedModel."""
    kind = str(config.get("model_type"))
    if kind not in FAMILIES:
        raise UnsupportedModel(f"model_type '{kind}'; supported: {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def from_config(config: Mapping[str, Any], served: int = 0) -> Architecture:
    """Describe the model of a Hugging Face config.json.

    `served` is the longest sequence that will be asked for; 0: as long as it was trained for.
    Raises UnsupportedModel, also on a field that is not known; WeightsError on a gap.
    """
    fields = Fields(config, "config.json")
    model = family_of(config).describe(fields, served)
    fields.refuse_unread(HARMLESS)
    return model


def weights_of(
    family: Family, model: Architecture, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """A file's tensors as the weights of the program. Raises WeightsError where they differ."""
    shapes = expected_shapes(model)
    unpacked = family.unpack(tensors) if family.unpack else tensors
    weights = naming.canonical(unpacked, family.names, shapes)
    if model.tied_embeddings:
        weights.pop("output", None)
    if model.head is None:  # a pooler or another head that nothing reads
        weights = {name: one for name, one in weights.items() if not name.startswith("head.")}
    if family.norm_offset:
        norms = [name for name in weights if name.endswith("norm")]
        weights |= {name: unpacking.offset(weights[name], family.norm_offset) for name in norms}
    check_shapes(shapes, weights)
    return weights
