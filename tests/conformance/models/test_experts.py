"""Random mixtures of experts from Hugging Face directories: logits against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from headrace.runtime.models.checkpoint import describe_directory
from tests.conformance.models.oracle import assert_agrees, small, write

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "qwen3 moe": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3 moe, weights as they are": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
        },
    ),
    "gpt-oss": (
        "GptOss",
        {
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
        },
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_the_oracle_s_logits(tmp_path: Path, name: str) -> None:
    family, changes = FAMILIES[name]
    model = write(tmp_path, getattr(transformers, f"{family}Config")(**small(**changes)))
    assert_agrees(describe_directory(tmp_path), model)


def test_gpt_oss_s_gate_is_cut_where_it_is_large(tmp_path: Path) -> None:
    family, changes = FAMILIES["gpt-oss"]
    model = write(tmp_path, getattr(transformers, f"{family}Config")(**small(**changes)))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.gate_up_proj *= 12
            layer.mlp.experts.down_proj *= 0.1
    model.save_pretrained(tmp_path)
    assert_agrees(describe_directory(tmp_path), model)
