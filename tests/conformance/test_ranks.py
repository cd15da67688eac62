"""A real model of packed weights in three parts: what each token is followed by stays the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headrace.runtime.backends.base import KVLayout
from headrace.runtime.backends.reference import ReferenceBackend
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import load_checkpoint
from tests.fakes.programs import ragged_batch
from tests.fakes.ranks import Together

PROMPT = "The capital of France is Paris, and that of Italy is Rome. Q: What is"


def test_three_ranks_of_a_real_model_agree_with_one_process(smollm2: Path) -> None:
    checkpoint = load_checkpoint(smollm2)
    program, weights = decoder_program(checkpoint.architecture), checkpoint.weights
    tokens = checkpoint.vocabulary.encode(PROMPT, add_bos=False)
    kv = KVLayout(1, 32)
    batch = ragged_batch([(0, len(tokens))], np.array([[0]], np.int32), kv, tokens)
    one = ReferenceBackend(program, weights, kv).logits(batch)
    several = Together(program, weights, kv, 3).logits(batch)
    assert (several.argmax(axis=1) == one.argmax(axis=1)).all()
    assert np.abs(several - one).max() < 1e-4 * np.abs(one).max()
