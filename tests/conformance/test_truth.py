"""The engine's greedy text against transformers, on the same real file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from headrace.runtime.admission import encode
from headrace.runtime.engine import Engine, EngineOptions
from headrace.runtime.kvcache import BlockPool
from headrace.runtime.request import SamplingParameters
from tests.fakes.batches import whole_prompt

NEW_TOKENS = 64
PROMPTS = (
    "Once upon a time, in a land far away,",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at 100 degrees Celsius because",
    "Die Hauptstadt von Deutschland ist",
    "1, 1, 2, 3, 5, 8, 13,",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nWrite a haiku about rivers.<|im_end|>\n<|im_start|>assistant\n",
    "été, naïve café, 你好 🎉:",
    "The three laws of robotics are: first,",
)


@dataclass(frozen=True)
class Oracle:
    """transformers' model and tokenizer of the same file, float32."""

    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase

    def continuation(self, tokens: list[int]) -> list[int]:
        with torch.inference_mode():
            out = self.model.generate(  # type: ignore[operator]
                torch.tensor([tokens]), do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=-1
            )
        found: list[int] = out[0, len(tokens) :].tolist()
        return found

    def logprobs(self, tokens: list[int]) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = self.model(torch.tensor([tokens])).logits[0, -1]
        return torch.log_softmax(logits, -1).numpy()


@pytest.fixture(scope="module")
def oracle(smollm2: Path) -> Oracle:
    where = {
        "pretrained_model_name_or_path": str(smollm2.parent),
        "gguf_file": smollm2.name,
    }
    dequantized = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.float32, quantization_config=dequantized
    )
    model.train(False)
    return Oracle(model, transformers.AutoTokenizer.from_pretrained(**where))


@pytest.fixture(scope="module")
def engine(smollm2: Path) -> Iterator[Engine]:
    with Engine.load(smollm2, EngineOptions(backend="reference", kv_tokens=4096)) as loaded:
        yield loaded


@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_tokenizer_gives_the_same_ids(engine: Engine, oracle: Oracle, prompt: str) -> None:
    assert encode(engine.checkpoint, prompt) == oracle.tokenizer(prompt).input_ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_the_oracle_s(engine: Engine, oracle: Oracle, prompt: str) -> None:
    """Equal tokens, or where they part each one's token is in the other's top 5, within 0.05."""
    tokens = encode(engine.checkpoint, prompt)
    sampling = SamplingParameters(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    ours = list(engine.generate(prompt, sampling).tokens)
    theirs = oracle.continuation(tokens)
    assert len(ours) == len(theirs) == NEW_TOKENS
    parted = next((at for at in range(NEW_TOKENS) if ours[at] != theirs[at]), None)
    if parted is None:
        return
    so_far = tokens + ours[:parted]
    pool = BlockPool(engine.backend.kv.blocks, engine.backend.kv.block_size)
    logits = engine.backend.logits(whole_prompt(so_far, pool))[0]
    mine = logits - np.logaddexp.reduce(logits)
    other = oracle.logprobs(so_far)
    for token in (ours[parted], theirs[parted]):
        assert token in np.argsort(-mine)[:5]
        assert token in np.argsort(-other)[:5]
        assert abs(mine[token] - other[token]) < 0.05
