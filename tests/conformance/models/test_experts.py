"""Random mixtures of experts from Hugging Face directories: logits against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
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
