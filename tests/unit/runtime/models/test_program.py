"""What programs ask of a backend, and that none runs what it does not know."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from headrace.runtime.backends.base import KVLayout
from headrace.runtime.backends.choice import choose
from headrace.runtime.backends.reference import ReferenceBackend
from headrace.runtime.models.assembly import decoder_program, pooled_program
from headrace.runtime.models.families import from_config
from headrace.runtime.models.program import BASIC, UnsupportedProgram, demands
from tests.fakes.programs import linear_program, random_tensor
from tests.unit.runtime.models import published


def test_the_llama_family_asks_for_nothing_beyond_the_basics() -> None:
    for config in (published.LLAMA_3_2_1B, published.QWEN2_5_0_5B, published.SMOLLM3_3B):
        assert demands(decoder_program(from_config(config))) <= BASIC


def test_what_a_family_asks_beyond_is_named() -> None:
    gemma = demands(decoder_program(from_config(published.GEMMA_2_2B)))
    assert gemma - BASIC == {
        "Attention.cap",
        "Attention.window",
        "Embed.scale",
        "GateMultiply.activation",
        "Logits.cap",
        "Norm.accumulate",
    }
    phi = demands(decoder_program(from_config(published.PHI_4_MINI)))
    assert phi - BASIC == {"Attention.window", "Rope.scale"}
    bert = demands(pooled_program(from_config(published.BERT_BASE), "mean"))
    assert {"AddEmbedding", "Attention.causal", "Norm.kind", "Pool", "Result"} <= bert


def test_an_encoder_keeps_one_layer_s_keys_and_values() -> None:
    assert pooled_program(from_config(published.BERT_BASE), "mean").layers == 1
    assert decoder_program(from_config(published.QWEN3_0_6B)).layers == 28


def test_auto_falls_back_and_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cpu = pytest.importorskip("headrace.runtime.backends.cpu")
    monkeypatch.setattr(cpu, "SUPPORTS", BASIC - {"Linear.biases"})
    random = np.random.default_rng(0)
    program, weights = linear_program({"w": random_tensor(random, "F32", 4, 8)}, biases=("b",))
    weights["table"] = random_tensor(random, "F32", 16, 8)
    weights["b"] = random_tensor(random, "F32", 1, 4)
    with caplog.at_level(logging.WARNING):
        backend = choose("auto")(program, weights, KVLayout(1), 1)
    assert isinstance(backend, ReferenceBackend)
    assert "backend cpu does not know Linear.biases" in caplog.text
    with pytest.raises(UnsupportedProgram, match=r"Linear\.biases"):
        choose("cpu")(program, weights, KVLayout(1), 1)
