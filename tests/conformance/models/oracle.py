"""Random small models of transformers, as people find them on disk, and their logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from headrace.runtime.backends.base import KVLayout, Load
from headrace.runtime.backends.reference import load as reference
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import Description
from tests.fakes.programs import ragged_batch

Logits = NDArray[np.float32]

SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
# Three sequences of different lengths, step by step: the rows (begin, count) of each. The second
# and third are prefilled in chunks; all decode at the end, two steps long.
STEPS = (
    ((0, 5), (0, 20), (0, 41)),
    ((5, 1), (20, 13), (41, 29)),
    ((6, 1), (33, 1), (70, 1)),
    ((7, 1), (34, 1), (71, 1)),
)
LENGTHS = tuple(begin + count for begin, count in STEPS[-1])


def small(**changes: Any) -> dict[str, Any]:
    """The settings of a small model."""
    return {**SMALL, **changes}


def write(
    path: Path,
    config: transformers.PreTrainedConfig,
    kind: type[Any] = transformers.AutoModelForCausalLM,
) -> transformers.PreTrainedModel:
    """Save a random model of this configuration, no parameter of it at an idle value."""
    torch.manual_seed(1)
    config._attn_implementation = "eager"
    model: transformers.PreTrainedModel = kind.from_config(config)
    randomize(model)
    model.save_pretrained(path)
    model.train(False)
    return model


def randomize(model: torch.nn.Module) -> None:
    """Vectors (norms, biases, sinks) far from 0 and 1, matrices of ordinary size."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or "bias" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)


def prompts() -> list[list[int]]:
    """Random tokens that are no special ones."""
    random = np.random.default_rng(3)
    return [random.integers(3, SMALL["vocab_size"], length).tolist() for length in LENGTHS]


def expected(model: torch.nn.Module, tokens: list[int]) -> Logits:
    """The oracle's logits at every position, one prompt alone."""
    with torch.inference_mode():
        found: Logits = model(torch.tensor([tokens])).logits[0].numpy()
    return found


def ours(described: Description, load: Load = reference) -> list[Logits]:
    """A backend's logits at every position of the prompts, computed in `STEPS`."""
    kv = KVLayout(blocks=96, block_size=8)
    backend = load(decoder_program(described.architecture), described.weights, kv, 1)
    texts = prompts()
    order = np.random.default_rng(5).permutation(kv.blocks).astype(np.int32)
    tables = order[: len(texts) * 20].reshape(len(texts), 20)
    found: list[list[Logits]] = [[] for _ in texts]
    for spans in STEPS:
        rows = zip(texts, spans, strict=True)
        tokens = [token for text, (at, count) in rows for token in text[at : at + count]]
        logits = backend.logits(ragged_batch(spans, tables, kv, tokens))
        ends = np.cumsum([count for _, count in spans])[:-1]
        for sequence, part in zip(found, np.split(logits, ends), strict=True):
            sequence.append(part)
    return [np.concatenate(parts) for parts in found]


def assert_agrees(described: Description, model: torch.nn.Module, load: Load = reference) -> None:
    """Ours and the oracle's logits are equal to 1e-4 at every position."""
    found = ours(described, load)
    spread = max(float(np.ptp(logits)) for logits in found)
    assert spread > 0.5, "logits that hardly differ say nothing"
    for tokens, logits in zip(prompts(), found, strict=True):
        np.testing.assert_allclose(logits, expected(model, tokens), atol=1e-4, rtol=0)
