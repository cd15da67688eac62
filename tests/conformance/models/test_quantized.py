"""Quantised checkpoints: each matrix against its definition, whole models against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from headrace.runtime.models.checkpoint import describe_directory
from tests.conformance.models.oracle import assert_agrees, expected, ours, prompts, small, write
from tests.fakes.quantized import FORMS, fp8, quantize_directory

CANONICAL = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
}


def canonical(name: str) -> str:
    _, layers, number, rest = name.split(".", 3)
    return f"{layers}.{number}.{CANONICAL[rest.removesuffix('.weight')]}"


@pytest.mark.parametrize("name", FORMS)
def test_a_quantised_llama_is_what_its_definition_says(tmp_path: Path, name: str) -> None:
    config = transformers.LlamaConfig(**small(intermediate_size=128, num_hidden_layers=2))
    model = write(tmp_path, config)
    meant = quantize_directory(tmp_path, FORMS[name])
    described = describe_directory(tmp_path)
    for matrix, values in meant.items():
        tensor = described.weights[canonical(matrix)]
        assert tensor.format in FORMS[name].formats
        found, expected = tensor.float32(), values.numpy()
        # Half a unit of binary16, of a value or of the minimum its block adds to it; float32 sums.
        bound = np.abs(expected).max() * 2.0**-11 * 1.01
        np.testing.assert_allclose(found, expected, atol=bound, rtol=0)
        if tensor.format in ("Q4_0", "Q8_0"):
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=0)
    with torch.no_grad():
        for matrix in meant:
            exact = described.weights[canonical(matrix)].float32()
            model.get_parameter(matrix).copy_(torch.from_numpy(exact))
    assert_agrees(described, model)


def test_fp8_is_what_transformers_reads(tmp_path: Path) -> None:
    write(tmp_path, transformers.LlamaConfig(**small(intermediate_size=128, num_hidden_layers=2)))
    quantize_directory(tmp_path, fp8((32, 32)))
    config = transformers.FineGrainedFP8Config(weight_block_size=(32, 32), dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, quantization_config=config, attn_implementation="eager"
    )
    model.train(False)
    for tokens, logits in zip(prompts(), ours(describe_directory(tmp_path)), strict=True):
        # ours are F16: 2^-12 of each weight, through two layers
        np.testing.assert_allclose(logits, expected(model, tokens), atol=1e-2, rtol=0)
