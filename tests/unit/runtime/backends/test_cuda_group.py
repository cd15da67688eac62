"""A part of a program on the CUDA backend, in a group of one: what ranks do, without the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headrace.runtime.backends import cuda, reference
from headrace.runtime.backends.base import Filling, KVLayout, Place
from headrace.runtime.backends.cuda.room import RESERVE, SHARE, Meter
from headrace.runtime.models.program import Embed, Logits
from headrace.runtime.models.sharding import shard
from tests.fakes.programs import flat_batch, program, random_tensor, tensor
from tests.unit.runtime.models.test_sharding import GPT_OSS, made


def test_a_part_runs_among_ranks_that_agree_on_the_size_of_the_cache(tmp_path: Path) -> None:
    whole, weights = made(GPT_OSS)
    own = shard(whole, weights, 0, 1)
    kv = KVLayout(1, 8, filling=Filling(rows=2, sequences=1, context=8, ranked=1))
    meter = Meter(lambda: int(RESERVE / SHARE) + 2**16, lambda: 0, lambda: 0)
    place = Place(0, 1, tmp_path / "meeting")
    backend = cuda.load(own.program, own.weights, kv, 0, place, meter)
    batch = flat_batch([3, 60])
    try:
        assert backend.kv.blocks > 1
        actual = backend.logits(batch)
    finally:
        backend.close()
    expected = reference.load(whole, weights, replace(kv, filling=None), 1).logits(batch)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("format", ["F32", "Q4_1", "Q4_K", "MXFP4", "E4M3"])
def test_a_table_of_some_tokens_gives_zeros_for_others(format: str) -> None:
    random = np.random.default_rng(2)
    made = program([Embed("x", "table", 2.0, first=10), Logits("x", "identity")], {"x": 256}, 256)
    weights = {
        "table": random_tensor(random, format, 5, 256),
        "identity": tensor(np.eye(256, dtype=np.float32)),
    }
    kv = KVLayout(1, 32)
    actual = cuda.load(made, weights, kv, 0).logits(flat_batch([9, 10, 14, 15, 0]))
    rows = weights["table"].float32() * 2
    expected = np.stack([rows[0] * 0, rows[0], rows[4], rows[0] * 0, rows[0] * 0])
    np.testing.assert_allclose(actual, expected, atol=1e-5)
