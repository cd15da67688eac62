"""Random Hugging Face directories of the Llama family: logits against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.kvcache import BlockPool
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.models.fields import UnsupportedModel
from headrace.runtime.text.tokenizer import BYTE_OF
from tests.fakes.batches import whole_prompt

SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied embeddings": {"tie_word_embeddings": True},
    "one kv head": {"num_key_value_heads": 1},
    "a head size of its own": {"head_dim": 32},
    "linear rope": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    },
    "llama3 rope": {"rope_parameters": LLAMA3},
}


def write_model(path: Path, dtype: torch.dtype, **changes: Any) -> transformers.LlamaForCausalLM:
    """A random Llama with a byte tokenizer, saved as people find models."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, **changes}))
    torch.nn.Module.to(model, dtype)
    model.save_pretrained(path)
    alphabet = {character: BYTE_OF[character] for character in BYTE_OF}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    torch.nn.Module.to(model, torch.float32)
    return model


def logits_of(path: Path, tokens: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with Engine.load(path, EngineOptions(backend="reference", kv_tokens=512)) as engine:
        pool = BlockPool(engine.backend.kv.blocks, engine.backend.kv.block_size)
        (logits,) = engine.backend.logits(whole_prompt(tokens, pool))
        return np.asarray(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_float_format_gives_the_oracle_s_logits(tmp_path: Path, dtype: torch.dtype) -> None:
    model = write_model(tmp_path, dtype)
    tokens = list(b"The quick brown fox jumps over the lazy dog.")
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0, -1].numpy()
    np.testing.assert_allclose(logits_of(tmp_path, tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_gives_the_oracle_s_logits(tmp_path: Path, variant: str) -> None:
    model = write_model(tmp_path, torch.float32, **VARIANTS[variant])
    tokens = list(b"Position matters, and so do the heads. " * 8)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0, -1].numpy()
    np.testing.assert_allclose(logits_of(tmp_path, tokens), expected, atol=1e-4, rtol=0)


def test_shards_are_one_model(tmp_path: Path) -> None:
    model = write_model(tmp_path, torch.float32)
    whole = logits_of(tmp_path, [1, 2, 3])
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    (tmp_path / "model.safetensors").unlink()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    np.testing.assert_array_equal(logits_of(tmp_path, [1, 2, 3]), whole)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    write_model(tmp_path, torch.float32)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"mamba"'))
    with pytest.raises(UnsupportedModel, match="mamba"):
        load_checkpoint(tmp_path)
