"""Matrix products, rows and sampling of the CUDA backend, against the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.runtime import sampling
from headrace.runtime.backends import cuda, reference
from headrace.runtime.backends.base import Edits, Float32, KVLayout, Masks, SamplingRows
from headrace.runtime.backends.cuda.running import Clock, Running
from headrace.runtime.backends.cuda.sampling import sample
from headrace.runtime.models.architecture import Activation, Rope
from headrace.runtime.models.program import (
    Activate,
    AddEmbedding,
    Embed,
    GateMultiply,
    Linear,
    Logits,
    Norm,
    NormHeads,
    Op,
    RotateAndWrite,
)
from headrace.runtime.weights.tensor import BLOCKS
from tests.fakes.programs import (
    flat_batch,
    greedy,
    linear_program,
    program,
    ragged_batch,
    random_tensor,
    tensor,
)

KV = KVLayout(2, 32)
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 40


@pytest.mark.parametrize("format", sorted(BLOCKS))
@pytest.mark.parametrize("rows", [1, 16, 17])
def test_products_of_every_format(format: str, rows: int) -> None:
    random = np.random.default_rng(rows)
    weights = {
        "first": random_tensor(random, format, 40, 1024),
        "second": random_tensor(random, format, 24, 1024),
    }
    made, weights = linear_program(weights, ("bias of first", "bias of second"))
    weights["bias of first"] = random_tensor(random, "F32", 1, 40)
    weights["bias of second"] = random_tensor(random, "F32", 1, 24)
    weights["table"] = random_tensor(random, format, 30, 1024)
    batch = flat_batch(list(random.integers(0, 30, rows)))
    actual = cuda.load(made, weights, KV, 0).logits(batch)
    expected = reference.load(made, weights, KV, 1).logits(batch)
    np.testing.assert_allclose(actual, expected, atol=2e-6 * float(np.abs(expected).max()))


def test_weights_of_several_formats_stay_packed_on_top_of_each_other() -> None:
    random = np.random.default_rng(6)
    formats = ("Q4_K", "Q4_K", "Q6_K", "F32")
    names = [f"{format} {index}" for index, format in enumerate(formats)]
    weights = {
        name: random_tensor(random, format, 40, 1024)
        for name, format in zip(names, formats, strict=True)
    }
    biases = [f"bias of {name}" for name in weights]
    made, weights = linear_program(weights, biases)
    weights |= {name: random_tensor(random, "F32", 1, 40) for name in biases}
    weights["table"] = random_tensor(random, "F32", 30, 1024)
    backend = cuda.load(made, weights, KV, 0)
    batch = flat_batch([3, 1, 4])
    expected = reference.load(made, weights, KV, 1).logits(batch)
    np.testing.assert_allclose(
        backend.logits(batch), expected, atol=2e-6 * float(np.abs(expected).max())
    )
    assert {"linear Q4_K", "linear Q6_K"} <= backend.kernels().keys()


@pytest.mark.parametrize("normed", [False, True])
def test_many_rows_times_fp8_lose_no_more_than_their_own_rounding(normed: bool) -> None:
    random = np.random.default_rng(8)
    width, rows = 256, 17
    ops: list[Op] = [Embed("x", "table")]
    if normed:
        ops = [Embed("y", "table"), Embed("residual", "zeros")]
        ops.append(Norm("x", "residual", "norm", 1e-5, add="y"))
    ops += [Linear("z", "x", ("first", "second"), ("bias",)), Logits("z", "identity")]
    made = program(ops, {"x": width, "y": width, "residual": width, "z": 70}, 70)
    weights = {
        name: random_tensor(random, format, *shape)
        for name, format, shape in (
            ("first", "E4M3", (30, width)),
            ("second", "E4M3", (40, width)),
            ("table", "F32", (30, width)),
            ("bias", "F32", (1, 70)),
            ("norm", "F32", (1, width)),
        )
    }
    weights["zeros"] = tensor(np.zeros((30, width), np.float32))
    weights["identity"] = tensor(np.eye(70, dtype=np.float32))
    batch = flat_batch(list(random.integers(0, 30, rows)))
    on = replace(cuda.found_device(), multiplies_fp8=True)
    actual = cuda.CUDABackend(made, weights, KV, on).logits(batch)
    expected = reference.load(made, weights, KV, 1).logits(batch)
    error = np.linalg.norm(actual - expected) / np.linalg.norm(expected)
    assert 0.005 < error < 0.04  # of a value with 3 bits after its first


def both(ops: list[Op], buffers: dict[str, int], out: str) -> tuple[Float32, Float32]:
    """Buffer `out` after `ops`, of 21 rows of random tokens: by this backend, by the reference."""
    random = np.random.default_rng(1)
    width = buffers[out]
    shape = {"kv_heads": KV_HEADS, "head_size": HEAD_SIZE}
    made = program([*ops, Logits(out, "identity", scale=0.5, cap=3.0)], buffers, width, **shape)
    weights = {"identity": tensor(np.eye(width, dtype=np.float32))}
    for name, rows, columns in (
        ("table", 50, buffers["x"]),
        ("places", 50, buffers["x"]),
        ("wide", 1, buffers["x"]),
        ("bias", 1, buffers["x"]),
        ("head", 1, HEAD_SIZE),
        ("query", 1, HEADS * HEAD_SIZE),
        ("key", 1, KV_HEADS * HEAD_SIZE),
    ):
        weights[name] = random_tensor(random, "F32", rows, columns)
    tables = np.array([[0, 1]], np.int32)
    batch = ragged_batch([(0, 21)], tables, KV, list(random.integers(0, 50, 21)))
    backend = cuda.load(made, weights, KV, 0)
    return backend.logits(batch), reference.load(made, weights, KV, 1).logits(batch)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("width", [15, 64, 1030])
def test_embeddings_norms_and_residuals(kind: Literal["rms", "layer"], width: int) -> None:
    ops: list[Op] = [
        Embed("x", "table", scale=3.5),
        AddEmbedding("x", "places", "position", offset=2),
        AddEmbedding("x", "places", "type"),
        Norm("y", "x", "wide", 1e-5, kind=kind),
        Norm("z", "x", "wide", 1e-6, add="y", add_scale=0.3, kind=kind, bias="bias"),
        Norm("y", "z", "wide", 1e-6, accumulate=True),
    ]
    actual, expected = both(ops, {"x": width, "y": width, "z": width}, "y")
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "tanh"])
def test_activations(activation: Activation) -> None:
    ops: list[Op] = [Embed("x", "table"), Activate("y", "x", activation)]
    actual, expected = both(ops, {"x": 70, "y": 70}, "y")
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "clamped_silu"])
def test_gates(activation: Activation) -> None:
    ops: list[Op] = [Embed("x", "table", scale=9), GateMultiply("y", "x", activation)]
    actual, expected = both(ops, {"x": 2200, "y": 1100}, "y")
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
def test_norms_of_heads_and_rotation(whole: bool, interleaved: bool) -> None:
    width = (HEADS + 2 * KV_HEADS) * HEAD_SIZE
    names = ("query", "key") if whole else ("head", "head")
    shape = (HEADS, KV_HEADS, HEAD_SIZE)
    ops: list[Op] = [
        Embed("x", "table"),
        NormHeads("x", *shape, *names, epsilon=1e-5, whole=whole),
        RotateAndWrite("x", 0, *shape, Rope((1.0, 0.5, 0.01), interleaved, scale=1.3)),
    ]
    actual, expected = both(ops, {"x": width}, "x")
    # the backend leaves the key and value parts of `x` as they were: only the cache has them turned
    queries = HEADS * HEAD_SIZE
    np.testing.assert_allclose(actual[:, :queries], expected[:, :queries], atol=1e-5)


def everything(random: np.random.Generator, samples: int, vocabulary: int) -> SamplingRows:
    """Rows that ask for all there is, each with a chance."""
    asked = random.random(samples) < 0.2
    entries = random.integers(0, 20, samples)
    masks = random.integers(0, 2**32, (2, -(-vocabulary // 32)), np.uint32)
    return SamplingRows(
        temperature=random.choice([0, 0.3, 1, 2], samples).astype(np.float32),
        top_k=random.choice([0, 1, 3, 50, 100_000], samples).astype(np.int32),
        top_p=random.choice([0.01, 0.5, 0.95, 1], samples).astype(np.float32),
        min_p=random.choice([0, 0, 0.01, 0.5, 1], samples).astype(np.float32),
        uniform=random.random(samples, np.float32),
        target=np.where(asked, random.integers(0, vocabulary, samples), -1).astype(np.int32),
        ranked=int(random.choice([0, 5])),
        edits=Edits(
            starts=np.concatenate([[0], np.cumsum(entries)]).astype(np.int32),
            tokens=np.concatenate(
                [random.choice(vocabulary, count, replace=False) for count in entries]
            ).astype(np.int32),
            divisors=random.uniform(1, 2, entries.sum()).astype(np.float32),
            addends=random.choice([-1, 3, -np.inf], entries.sum()).astype(np.float32),
        ),
        masks=Masks(random.integers(-1, 2, samples).astype(np.int32), masks),
    )


@pytest.mark.parametrize("seed", range(12))
def test_sampling_chooses_what_the_definition_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    samples, vocabulary = 9, int(random.choice([33, 700, 9000]))
    logits = np.round(random.standard_normal((samples, vocabulary)) * 3, 1).astype(np.float32)
    rows = everything(random, samples, vocabulary)
    actual = sample(torch.from_numpy(logits), rows)
    expected = sampling.sample(logits, rows)
    assert list(actual.tokens) == list(expected.tokens)
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=1e-5)
    if actual.ranked is not None and expected.ranked_tokens is not None:
        assert actual.ranked[0].tolist() == expected.ranked_tokens.tolist()


@pytest.mark.parametrize("temperature", [0, 1])
def test_nothing_allowed_gives_token_zero(temperature: float) -> None:
    nothing = Masks(np.zeros(1, np.int32), np.zeros((1, 2), np.uint32))
    rows = replace(greedy(1), temperature=np.full(1, temperature, np.float32), masks=nothing)
    assert sample(torch.ones((1, 64)), rows).tokens[0] == 0


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what moves between the host and the device, for which torch's "meta" stands: it has
    no values, so that reading one back raises."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.to_device = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.name() == "aten::_to_copy" and args[0].device != out.device:
            self.to_device += 1
        return out


def test_sampling_takes_one_copy_to_the_device_and_one_small_copy_back() -> None:
    samples, vocabulary = 9, 700
    rows = replace(everything(np.random.default_rng(0), samples, vocabulary), ranked=5)
    with Copies() as copies:
        packed = sample(torch.empty((samples, vocabulary), device="meta"), rows).packed()
    assert copies.to_device == 1
    assert packed.device.type == "meta"
    assert packed.nbytes == samples * (2 + 2 * rows.ranked) * 4


@pytest.mark.parametrize("ranked", [0, 3])
def test_what_comes_back_is_what_was_chosen(ranked: int) -> None:
    logits = np.random.default_rng(1).standard_normal((4, 90)).astype(np.float32)
    rows = replace(greedy(4), ranked=ranked)
    found = Running(torch.from_numpy(logits), Clock(torch.device("cpu")))
    found.choose(rows)
    actual, expected = found.wait(), sampling.sample(logits, rows)
    assert actual.tokens.tolist() == expected.tokens.tolist()
    np.testing.assert_allclose(actual.logprobs, expected.logprobs, atol=1e-5)
    if ranked and actual.ranked_tokens is not None and expected.ranked_tokens is not None:
        assert actual.ranked_tokens.tolist() == expected.ranked_tokens.tolist()
    assert (actual.ranked_logprobs is None) == (ranked == 0)
