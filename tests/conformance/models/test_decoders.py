"""Random decoders of every family from Hugging Face directories: logits against transformers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transformers

from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import describe_directory
from headrace.runtime.models.program import demands
from tests.conformance.models.oracle import assert_agrees, small, write

LOCAL, GLOBAL = "sliding_attention", "full_attention"
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.1 * pair for pair in range(6)],
    "long_factor": [1.0 + 0.7 * pair for pair in range(6)],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 512,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with every bias": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, dynamic rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}},
    ),
    "llama, yarn": ("Llama", {"rope_parameters": {**YARN, "rope_theta": 10_000.0}}),
    "llama, yarn not truncated": (
        "Llama",
        {
            "rope_parameters": {
                **YARN,
                "rope_theta": 10_000.0,
                "truncate": False,
                "beta_fast": 8.0,
                "attention_factor": 1.3,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 16}),
    "mistral without a window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2 with a window": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "smollm3": ("SmolLM3", {"pad_token_id": 2}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 48},
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "head_dim": 32,
            "sliding_window": 16,
            "query_pre_attn_scalar": 48,
            "layer_types": [LOCAL, GLOBAL, LOCAL, LOCAL],
            "rope_parameters": {
                LOCAL: {"rope_type": "default", "rope_theta": 10_000.0},
                GLOBAL: {"rope_type": "linear", "rope_theta": 1_000_000.0, "factor": 8.0},
            },
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 30}),
    "phi3, partial rotary and longrope": ("Phi3", {"rope_parameters": LONGROPE}),
    "olmo2": ("Olmo2", {}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.5,
        },
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_oracle_s_logits(tmp_path: Path, name: str) -> None:
    family, changes = FAMILIES[name]
    model = write(tmp_path, getattr(transformers, f"{family}Config")(**small(**changes)))
    assert_agrees(describe_directory(tmp_path), model)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_native_backend_gives_them_too(tmp_path: Path, name: str) -> None:
    """With float32 activations and KV; what it does not know is for the reference to run."""
    cpu = pytest.importorskip("headrace.runtime.backends.cpu")
    family, changes = FAMILIES[name]
    model = write(tmp_path, getattr(transformers, f"{family}Config")(**small(**changes)))
    described = describe_directory(tmp_path)
    if lacking := demands(decoder_program(described.architecture)) - cpu.SUPPORTS:
        pytest.skip(f"not known: {', '.join(sorted(lacking))}")
    precise = partial(cpu.load, options=cpu.Options(precise=True))
    assert_agrees(described, model, precise)


def test_longrope_past_the_original_length(tmp_path: Path) -> None:
    """Every prompt is longer than the original length, as our one set of factors has it."""
    rope = {**LONGROPE, "original_max_position_embeddings": 4}
    model = write(tmp_path, transformers.Phi3Config(**small(rope_parameters=rope)))
    assert_agrees(describe_directory(tmp_path, served=512), model)
