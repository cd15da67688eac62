"""Encoders from config.json: BERT and its kin, ModernBERT; with a classifier on top or not."""

from __future__ import annotations

from typing import Any

from .architecture import NO_ROPE, Architecture, Head, Inputs, Layer, Pooling
from .decoders import FULL, MOST_LAYERS, QKV, SLIDING, activation, head_size_of, kinds_of
from .fields import Fields
from .rope import rope_of

POOLINGS: dict[str, Pooling] = {"cls": "first", "mean": "mean"}


def labels_of(config: Fields) -> tuple[str, ...] | None:
    """The labels of a classifier, in order; None where the model is none."""
    count = config.get("num_labels") or config.get("_num_labels") or 2
    if not any("SequenceClassification" in name for name in config.get("architectures", [])):
        return None
    named = config.get("id2label") or {str(index): f"LABEL_{index}" for index in range(count)}
    return tuple(named[key] for key in sorted(named, key=int))


def encoder(config: Fields, **differences: Any) -> Architecture:
    """What all encoders share."""
    heads, head_size = config.count("num_attention_heads"), head_size_of(config)
    common: dict[str, Any] = {
        "name": config.get("_name_or_path") or config.need("model_type"),
        "vocabulary": config.count("vocab_size"),
        "width": config.count("hidden_size"),
        "heads": heads,
        "kv_heads": heads,
        "head_size": head_size,
        "gate_width": config.count("intermediate_size"),
        "attention_scale": head_size**-0.5,
        "causal": False,
        "tied_embeddings": True,
        "norm": "layer",
    }
    config.ignore("tie_word_embeddings")
    return Architecture(**{**common, **differences})


def bert(config: Fields, served: int, offset: int = 0) -> Architecture:
    """BERT (arXiv 1810.04805): learnt positions and types, norms after each residual."""
    config.only("position_embedding_type", "absolute")
    config.ignore("directionality", *POOLER_FIELDS)
    positions, labels = config.count("max_position_embeddings"), labels_of(config)
    head = Head(labels, "first") if labels is not None else None
    linears = QKV | {"attention.output", "mlp.up", "mlp.down", "head.dense", "head.labels"}
    return encoder(
        config,
        context=positions - offset,
        norm_epsilon=config.get("layer_norm_eps", 1e-12),
        layers=(Layer(NO_ROPE),) * config.count("num_hidden_layers", MOST_LAYERS),
        biases=linears,
        activation=activation(config, "hidden_act", default="gelu"),
        gated=False,
        norm_bias=True,
        placement="residual",
        inputs=Inputs(positions, offset, config.get("type_vocab_size", 2)),
        head=head,
    )


POOLER_FIELDS = (
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
)


def roberta(config: Fields, served: int) -> Architecture:
    """RoBERTa and XLM-R: BERT whose positions begin after the padding token's number."""
    return bert(config, served, offset=config.get("pad_token_id", 1) + 1)


def modernbert(config: Fields, served: int) -> Architecture:
    """ModernBERT (arXiv 2412.13663): RoPE, gated MLPs, a window in most layers, norms before."""
    config.only("rope_scaling")
    config.ignore("layer_norm_eps", "position_embedding_type", "initializer_cutoff_factor")
    config.ignore("decoder_bias", "sparse_pred_ignore_index", "embedding_dropout", "mlp_dropout")
    config.ignore("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad")
    head_size, period = head_size_of(config), config.get("global_attn_every_n_layers", 3)
    full = rope_of(config, head_size, served, FULL, "global_rope_theta", 160_000.0)
    local = rope_of(config, head_size, served, SLIDING, "local_rope_theta", 10_000.0)
    reach = config.get("local_attention", 128) // 2  # positions to each side
    kinds = kinds_of(config, lambda index: bool(index % period))
    layers = tuple(
        Layer(
            local if kind == SLIDING else full,
            reach + 1 if kind == SLIDING else 0,
            normed=bool(index),
        )
        for index, kind in enumerate(kinds)
    )
    switches = {
        "attention_bias": QKV | {"attention.output"},
        "mlp_bias": frozenset({"mlp.gate", "mlp.up", "mlp.down"}),
        "classifier_bias": frozenset({"head.dense"}),
    }
    biases = [
        frozenset({"head.labels"}),
        *(one for name, one in switches.items() if config.get(name)),
    ]
    return encoder(
        config,
        context=config.count("max_position_embeddings"),
        norm_epsilon=config.get("norm_eps", 1e-5),
        layers=layers,
        biases=frozenset().union(*biases),
        activation=activation(config, "hidden_activation", default="gelu"),
        norm_bias=config.get("norm_bias", False),
        inputs=Inputs(),
        head=modernbert_head(config),
    )


def modernbert_head(config: Fields) -> Head | None:
    """Its classifier, with a norm between dense layer and labels."""
    pooling = config.get("classifier_pooling", "cls")
    acts = activation(config, "classifier_activation", default="gelu")
    labels = labels_of(config)
    if labels is None:
        return None
    config.only("classifier_pooling", *POOLINGS)
    return Head(labels, POOLINGS[pooling], acts, norm=True)
