"""Decoders from config.json: one small function a family, over what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..weights.gguf import WeightsError
from .architecture import NO_ROPE, Activation, Architecture, Experts, Layer
from .fields import Fields, UnsupportedModel
from .rope import rope_of

QKV = frozenset({"attention.query", "attention.key", "attention.value"})
MLP = frozenset({"mlp.gate", "mlp.up", "mlp.down"})
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "tanh": "tanh",
}
MOST_LAYERS, MOST_VALUES, MOST_EXPERTS = 1024, 4096, 1024  # a model, a head, a layer
SLIDING, FULL = "sliding_attention", "full_attention"


def activation(config: Fields, *names: str, default: str = "silu") -> Activation:
    """The MLP's activation, under the first of `names` that is there."""
    asked = next((found for name in names if (found := config.get(name))), default)
    if asked not in ACTIVATIONS:
        raise UnsupportedModel(f"activation '{asked}'; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[asked]


def head_size_of(config: Fields) -> int:
    """Values a head."""
    if config.get("head_dim"):
        return config.count("head_dim", most=MOST_VALUES)
    size = config.count("hidden_size") // config.count("num_attention_heads")
    if not 1 <= size <= MOST_VALUES:
        raise WeightsError(f"heads of {size} values")
    return size


def decoder(config: Fields, served: int, **differences: Any) -> Architecture:
    """What all families share, as Llama has it; `differences` are a family's own fields."""
    heads, head_size = config.count("num_attention_heads"), head_size_of(config)
    common: dict[str, Any] = {
        "name": config.get("_name_or_path") or config.need("model_type"),
        "vocabulary": config.count("vocab_size"),
        "context": config.count("max_position_embeddings"),
        "width": config.count("hidden_size"),
        "heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_size": head_size,
        "gate_width": config.count("intermediate_size"),
        "norm_epsilon": config.need("rms_norm_eps"),
        "attention_scale": head_size**-0.5,
        "tied_embeddings": config.get("tie_word_embeddings", False),
    }
    if "activation" not in differences:
        differences["activation"] = activation(config, "hidden_act")
    if "layers" not in differences:
        differences["layers"] = alike(config, served)
    if "biases" not in differences:
        differences["biases"] = biases(config)
    return Architecture(**{**common, **differences})


def alike(config: Fields, served: int) -> tuple[Layer, ...]:
    """Layers that do not differ, and see everything."""
    count = config.count("num_hidden_layers", MOST_LAYERS)
    return (Layer(rope_of(config, head_size_of(config), served)),) * count


def biases(config: Fields) -> frozenset[str]:
    """Biases by the two switches that most families have."""
    found: frozenset[str] = frozenset()
    if config.get("attention_bias"):
        found |= QKV | {"attention.output"}
    return found | MLP if config.get("mlp_bias") else found


def kinds_of(config: Fields, otherwise: Callable[[int], bool]) -> Sequence[str]:
    """Each layer's kind of attention; where config.json lists none, sliding where `otherwise`."""
    count = config.count("num_hidden_layers", MOST_LAYERS)
    kinds: list[str] = config.get("layer_types") or [
        SLIDING if otherwise(index) else FULL for index in range(count)
    ]
    if len(kinds) != count or set(kinds) - {SLIDING, FULL}:
        raise UnsupportedModel(f"layer_types {kinds} for {count} layers")
    return kinds


def windowed(
    config: Fields,
    served: int,
    otherwise: Callable[[int], bool],
    unstated: int = 0,
    theta: float = 10_000.0,
) -> tuple[Layer, ...]:
    """Layers of which some see only the sliding window.

    It is `unstated` wide, and RoPE's base is `theta`, where config.json does not say.
    """
    window = config.stated("sliding_window", unstated) or 0
    rope = rope_of(config, head_size_of(config), served, theta=theta)
    kinds = kinds_of(config, lambda index: bool(window) and otherwise(index))
    return tuple(Layer(rope, window if kind == SLIDING else 0) for kind in kinds)


def mistral(config: Fields, served: int) -> Architecture:
    """Mistral: every layer sees the window, where there is one."""
    layers = windowed(config, served, lambda index: True, unstated=4096)
    return decoder(config, served, layers=layers)


def qwen_layers(config: Fields, served: int) -> tuple[Layer, ...]:
    """Qwen's window is for the layers from `max_window_layers` on, and off unless asked for."""
    first = config.get("max_window_layers", 0)
    if config.get("use_sliding_window"):
        return windowed(config, served, lambda index: index >= first)
    config.ignore("sliding_window", "layer_types")
    return alike(config, served)


def qwen2(config: Fields, served: int) -> Architecture:
    """Qwen 2 and 2.5: biases of query, key and value."""
    return decoder(config, served, layers=qwen_layers(config, served), biases=QKV)


def qwen3(config: Fields, served: int) -> Architecture:
    """Qwen 3: a norm over each query and key head."""
    layers = qwen_layers(config, served)
    return decoder(config, served, layers=layers, query_key_norm="head")


def qwen3_moe(config: Fields, served: int) -> Architecture:
    """Qwen 3 with a mixture of experts, in all layers or in every so many."""
    alone, step = config.get("mlp_only_layers") or [], config.get("decoder_sparse_step", 1)
    layers = tuple(
        Layer(layer.rope, layer.window, experts=index not in alone and (index + 1) % step == 0)
        for index, layer in enumerate(qwen_layers(config, served))
    )
    experts = Experts(
        config.count(
            "num_experts" if config.get("num_experts") else "num_local_experts", MOST_EXPERTS
        ),
        config.count("num_experts_per_tok"),
        config.count("moe_intermediate_size"),
        normalized=config.get("norm_topk_prob", False),
    )
    return decoder(config, served, layers=layers, query_key_norm="head", experts=experts)


def mixtral(config: Fields, served: int) -> Architecture:
    """Mixtral: Mistral with a mixture of experts in every layer."""
    layers = windowed(config, served, lambda index: True, theta=1_000_000.0)
    experts = Experts(
        config.count("num_local_experts", MOST_EXPERTS),
        config.count("num_experts_per_tok"),
        config.count("intermediate_size"),
    )
    layers = tuple(Layer(layer.rope, layer.window, experts=True) for layer in layers)
    return decoder(config, served, layers=layers, experts=experts)


def gpt_oss(config: Fields, served: int) -> Architecture:
    """gpt-oss: attention sinks, a window in every other layer, experts with a clamped gate."""
    config.only("swiglu_alpha", 1.702)
    config.only("swiglu_limit", 7.0)
    config.ignore("hidden_act", "experts_per_token", "initial_context_length")
    layers = windowed(config, served, lambda index: index % 2 == 0, 128, 150_000.0)
    experts = Experts(
        config.count("num_local_experts", MOST_EXPERTS),
        config.count("num_experts_per_tok"),
        config.count("intermediate_size"),
    )
    mixture = {"mlp.router", "mlp.experts.gate", "mlp.experts.up", "mlp.experts.down"}
    return decoder(
        config,
        served,
        layers=tuple(Layer(layer.rope, layer.window, experts=True) for layer in layers),
        experts=experts,
        sinks=True,
        biases=biases(config) | mixture,
        activation="clamped_silu",
    )


def smollm3(config: Fields, served: int) -> Architecture:
    """SmolLM3: no position embedding in every so many layers (arXiv 2305.19466)."""
    count, step = (
        config.count("num_hidden_layers", MOST_LAYERS),
        config.get("no_rope_layer_interval", 4),
    )
    turned = config.get("no_rope_layers") or [(index + 1) % step for index in range(count)]
    slides = bool(config.get("use_sliding_window"))
    if not slides:
        config.ignore("sliding_window", "layer_types", "max_window_layers")
        layers = alike(config, served)
    else:
        layers = windowed(config, served, lambda index: not turned[index])
    return decoder(
        config,
        served,
        layers=tuple(
            Layer(layer.rope if rotates else NO_ROPE, layer.window)
            for layer, rotates in zip(layers, turned, strict=True)
        ),
        tied_embeddings=config.get("tie_word_embeddings", True),
    )


def gemma(config: Fields, served: int, period: int, theta: float, **own: Any) -> Architecture:
    """What Gemma 2 and 3 share: a window in all but every `period`th layer, norms on both sides
    of each sublayer, an embedding times the square root of the width."""
    config.only("use_bidirectional_attention", False)
    full = rope_of(config, head_size_of(config), served, FULL, theta=theta)
    local = own.pop("local", full)
    window = config.get("sliding_window", 4096)
    kinds = kinds_of(config, lambda index: bool((index + 1) % period))
    layers = [Layer(local, window) if kind == SLIDING else Layer(full) for kind in kinds]
    return decoder(
        config,
        served,
        layers=tuple(layers),
        activation=activation(config, "hidden_activation", default="gelu_pytorch_tanh"),
        placement="both",
        attention_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        embedding_scale=config.count("hidden_size") ** 0.5,
        tied_embeddings=config.get("tie_word_embeddings", True),
        **own,
    )


def gemma2(config: Fields, served: int) -> Architecture:
    """Gemma 2: soft caps on scores and logits (arXiv 2408.00118)."""
    config.ignore("hidden_act", "cache_implementation")
    return gemma(
        config,
        served,
        period=2,
        theta=10_000.0,
        attention_cap=config.stated("attn_logit_softcapping", 50.0) or 0.0,
        logit_cap=config.stated("final_logit_softcapping", 30.0) or 0.0,
    )


def gemma3(config: Fields, served: int) -> Architecture:
    """Gemma 3, its text part: query and key norms, and a RoPE of their own for local layers."""
    config.ignore("hidden_act", "cache_implementation")
    head_size = head_size_of(config)
    return gemma(
        config,
        served,
        period=config.get("sliding_window_pattern") or config.get("_sliding_window_pattern", 6),
        theta=1_000_000.0,
        local=rope_of(config, head_size, served, SLIDING, "rope_local_base_freq"),
        query_key_norm="head",
        attention_cap=config.get("attn_logit_softcapping", 0.0),
        logit_cap=config.get("final_logit_softcapping", 0.0),
    )


def phi3(config: Fields, served: int) -> Architecture:
    """Phi-3 and Phi-4: Mistral with packed weights, and longrope."""
    config.only("full_attn_mod", 1)
    config.only("interpolate_factor", 1)
    return decoder(config, served, layers=windowed(config, served, lambda index: True))


def olmo2(config: Fields, served: int) -> Architecture:
    """OLMo 2: norms after each sublayer only, and over all queries and all keys together."""
    return decoder(config, served, placement="after", query_key_norm="width")


def granite(config: Fields, served: int) -> Architecture:
    """Granite 3: Llama with four multipliers."""
    return decoder(
        config,
        served,
        attention_scale=config.get("attention_multiplier", 1.0),
        embedding_scale=config.get("embedding_multiplier", 1.0),
        residual_scale=config.get("residual_multiplier", 1.0),
        logit_scale=1 / config.get("logits_scaling", 1.0),
    )
