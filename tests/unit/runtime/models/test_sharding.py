"""Programs cut into the parts of several ranks, run together, against the whole on one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headrace.runtime.backends.base import Float32, KVLayout
from headrace.runtime.backends.reference import ReferenceBackend
from headrace.runtime.models.architecture import Architecture, Experts, Layer, Rope
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.families import from_config
from headrace.runtime.models.program import Program, UnsupportedProgram
from headrace.runtime.models.shapes import expected_shapes
from headrace.runtime.models.sharding import edges, fitting, shard
from headrace.runtime.weights.lowrank import LowRank
from headrace.runtime.weights.tensor import Tensor
from tests.fakes.programs import ragged_batch, random_tensor
from tests.fakes.ranks import Together
from tests.unit.runtime.models import published

BOUND = 1e-4  # of float32 logits of order 1: the ranks' sums are added in another order
ROPE = Rope((1.0, 0.1), interleaved=False)
LLAMA = Architecture(
    name="llama",
    vocabulary=61,
    context=64,
    width=64,
    heads=8,
    kv_heads=4,
    head_size=8,
    gate_width=96,
    norm_epsilon=1e-5,
    layers=(Layer(ROPE), Layer(ROPE)),
    attention_scale=8**-0.5,
    tied_embeddings=True,
)
QWEN = replace(
    LLAMA,
    tied_embeddings=False,
    query_key_norm="head",
    biases=frozenset({"attention.query", "attention.key", "attention.value"}),
)
BIASED = replace(
    LLAMA, gated=False, activation="gelu", biases=QWEN.biases | {"attention.output", "mlp.down"}
)
GEMMA = replace(
    LLAMA,
    placement="both",
    logit_cap=3.0,
    attention_cap=5.0,
    embedding_scale=8.0,
    layers=(Layer(ROPE, window=5), Layer(ROPE)),
)
GPT_OSS = replace(
    LLAMA,
    activation="clamped_silu",
    sinks=True,
    layers=(Layer(ROPE, experts=True), Layer(ROPE, window=3, experts=True)),
    experts=Experts(count=4, chosen=2, width=96),
    biases=frozenset(
        {"attention.output", "mlp.router", "mlp.experts.gate", "mlp.experts.up", "mlp.experts.down"}
    ),
)


def made(model: Architecture, format: str = "F32") -> tuple[Program, dict[str, Tensor]]:
    """The program, with random weights whose matrices have a format."""
    random = np.random.default_rng(3)
    weights = {}
    for name, (rows, columns) in expected_shapes(model).items():
        if rows == 1 or format == "F32":
            values = random.standard_normal((rows, columns), np.float32)
            values *= np.float32(columns**-0.5)
            weights[name] = Tensor("F32", rows, columns, values.view(np.uint8))
        else:
            weights[name] = random_tensor(random, format, rows, columns)
    return decoder_program(model), weights


def together(
    model: Architecture, size: int, format: str = "F32", kv: KVLayout | None = None
) -> tuple[Float32, Float32]:
    """Logits of two steps of two sequences: of so many ranks, and of one."""
    kv = kv or KVLayout(4, 8)
    program, weights = made(model, format)
    tables = np.array([[2, 0], [1, 3]], np.int32)
    tokens = np.random.default_rng(1).integers(0, model.vocabulary, 20).tolist()
    batches = [
        ragged_batch([(0, 9), (0, 6)], tables, kv, tokens[:15]),
        ragged_batch([(9, 1), (6, 4)], tables, kv, tokens[15:]),
    ]
    ranks, one = Together(program, weights, kv, size), ReferenceBackend(program, weights, kv)
    several = np.concatenate([ranks.logits(batch) for batch in batches])
    return several, np.concatenate([one.logits(batch) for batch in batches])


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("model", [LLAMA, QWEN, BIASED, GEMMA, GPT_OSS])
def test_ranks_together_compute_what_one_does(model: Architecture, size: int) -> None:
    several, one = together(model, size)
    assert several.shape == one.shape
    assert np.abs(several - one).max() < BOUND


@pytest.mark.parametrize("format", ["Q4_1", "Q8_0", "F16"])
def test_packed_weights_are_cut_as_they_are(format: str) -> None:
    several, one = together(LLAMA, 2, format)
    assert np.abs(several - one).max() < BOUND * np.abs(one).max()


def test_k_formats_are_cut_on_their_blocks() -> None:
    wide = replace(LLAMA, width=256, heads=8, kv_heads=2, head_size=64, gate_width=768)
    several, one = together(wide, 2, "Q4_K")
    assert np.abs(several - one).max() < BOUND * np.abs(one).max()


def test_an_8_bit_cache_keeps_the_same_bytes_whoever_keeps_them() -> None:
    several, one = together(QWEN, 2, kv=KVLayout(4, 8, "int8"))
    assert np.abs(several - one).max() < BOUND


def test_an_adapter_is_cut_like_the_weights_that_it_changes() -> None:
    program, weights = made(QWEN)
    random = np.random.default_rng(5)
    deltas = {
        name: LowRank(
            random.standard_normal((3, weights[name].columns), np.float32),
            random.standard_normal((weights[name].rows, 3), np.float32),
            0.1,
        )
        for name in ("layers.0.attention.key", "layers.0.attention.output", "layers.1.mlp.down")
    }
    kv = KVLayout(4, 8)
    batch = ragged_batch([(0, 5), (0, 4)], np.array([[0], [1]], np.int32), kv, list(range(9)))
    batch = replace(batch, adapters=np.array([0, -1], np.int32))
    ranks, one = Together(program, weights, kv, 2), ReferenceBackend(program, weights, kv)
    for part, backend in zip(ranks.shards, ranks.backends, strict=True):
        backend.load_adapter(0, part.changes(deltas))
    one.load_adapter(0, deltas)
    assert np.abs(ranks.logits(batch) - one.logits(batch)).max() < BOUND


def test_a_rank_keeps_its_part_of_weights_and_kv_without_a_copy() -> None:
    program, weights = made(LLAMA)
    parts = [shard(program, weights, rank, 2) for rank in range(2)]
    assert [part.program.kv_heads for part in parts] == [2, 2]
    assert [part.program.buffers["gated"] for part in parts] == [48, 48]
    assert all(
        np.shares_memory(part.weights[name].data, weights[name].data)
        for part in parts
        for name in weights
    )
    matrices = {name for name, one in weights.items() if one.rows > 1}
    kept = sum(part.weights[name].data.nbytes for part in parts for name in matrices)
    assert kept == sum(weights[name].data.nbytes for name in matrices)


def test_fewer_kv_heads_than_ranks_are_repeated() -> None:
    program, weights = made(replace(LLAMA, kv_heads=2))
    keys = [shard(program, weights, rank, 4).cuts["layers.0.attention.key"] for rank in range(4)]
    assert [(cut.begin, cut.end) for cut in keys] == [(0, 8), (0, 8), (8, 16), (8, 16)]


def test_hidden_units_are_shared_out_by_blocks() -> None:
    assert edges(96, 2, 32, "units") == [(0, 32), (32, 96)]
    assert edges(11008, 2, 256, "units") == [(0, 5376), (5376, 11008)]
    assert edges(50257, 4, 1, "tokens")[-1] == (37692, 50257)


def test_heads_that_cannot_be_shared_out_are_refused_with_what_can() -> None:
    program, weights = made(replace(LLAMA, heads=9, kv_heads=3, width=72))
    with pytest.raises(UnsupportedProgram, match=r"9 heads over 3 KV heads .* 2 parts.* 1, 3, 9"):
        shard(program, weights, 0, 2)


def test_the_numbers_of_parts_that_fit_are_told() -> None:
    assert fitting(*made(LLAMA)) == [1, 2, 4, 8]
    assert fitting(*made(LLAMA, "Q4_1")) == [1, 2]
    assert fitting(*made(replace(LLAMA, query_key_norm="width"))) == []


def test_a_cut_inside_a_block_is_refused_with_the_numbers() -> None:
    program, weights = made(replace(LLAMA, gate_width=128), "Q4_1")
    with pytest.raises(UnsupportedProgram, match=r"output has blocks of 32 values \(Q4_1\)"):
        shard(program, weights, 1, 4)
    program, weights = made(replace(LLAMA, heads=16, kv_heads=16, head_size=32), "Q4_1")
    with pytest.raises(UnsupportedProgram, match=r"96 hidden units in blocks of 32 .* 4 parts"):
        shard(program, weights, 1, 4)


def test_a_norm_over_all_heads_is_refused() -> None:
    program, weights = made(replace(LLAMA, query_key_norm="width"))
    with pytest.raises(UnsupportedProgram, match="norm over all heads"):
        shard(program, weights, 0, 2)


def test_published_models_are_cut_as_their_shapes_allow() -> None:
    program = decoder_program(from_config(published.LLAMA_3_2_1B))
    model = from_config(published.LLAMA_3_2_1B)
    empty = {
        name: Tensor("BF16", rows, columns, np.empty((rows, 0), np.uint8))
        for name, (rows, columns) in expected_shapes(model).items()
    }
    part = shard(program, empty, 3, 4)
    assert part.program.kv_heads == model.kv_heads // 4
    assert part.weights["layers.0.mlp.down"].columns == model.gate_width // 4
