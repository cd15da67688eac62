"""Models of published shapes with random weights, and steps for them: no file is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from headrace.runtime.backends.base import Batch, KVLayout, KVType, SamplingRows
from headrace.runtime.backends.cuda import CUDABackend, device_choices, found_device
from headrace.runtime.models.architecture import Architecture, Experts, Layer, Rope
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.shapes import expected_shapes
from headrace.runtime.weights.tensor import BLOCKS, Tensor

BLOCK = 32  # tokens of a block of KV
MEASURING = 40.0  # seconds at most that a model's products are measured for
PATTERN = 1 << 20  # random values, repeated: timings do not read them
KINDS: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Where a format's scales lie in a block: byte, type, and what the weight's own size is times.
SCALES: dict[str, tuple[tuple[int, str, float], ...]] = {
    "Q8_0": ((0, "<f2", 1 / 74),),
    "Q4_0": ((0, "<f2", 1 / 4.6),),
    "Q4_1": ((0, "<f2", 1 / 4.6), (2, "<f2", -7.5 / 4.6)),
    "Q5_0": ((0, "<f2", 1 / 9.2),),
    "Q5_1": ((0, "<f2", 1 / 9.2), (2, "<f2", -15.5 / 9.2)),
    "Q4_K": ((0, "<f2", 1 / 200), (2, "<f2", 7.5 / 200)),
    "Q5_K": ((0, "<f2", 1 / 400), (2, "<f2", 15.5 / 400)),
    "Q6_K": ((208, "<f2", 1 / 1300),),
    "E4M3": ((0, "<f4", 1 / 0.7),),
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work there is: all of it, or as little as still runs every line."""

    models: tuple[tuple[Architecture, str], ...]  # the first is small, the second the main one
    mixture: tuple[Architecture, str]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    rounds: int
    read: int  # bytes that the ceiling of reading reads
    square: int  # rows and columns of the ceiling of products
    requests: int
    asked: int  # tokens of a prompt, and of an answer
    rates: tuple[float, ...]  # of the requests a second that saturate
    kv_tokens: int  # at most


def llama(name: str, layers: int, width: int, heads: int, gate: int, **other: Any) -> Architecture:
    """A decoder of the Llama family by its sizes."""
    size = other.pop("head_size", 128)
    rope = Rope(tuple(500_000.0 ** -(np.arange(size // 2) * 2 / size)), interleaved=False)
    layer = Layer(rope, window=other.pop("window", 0), experts="experts" in other)
    return Architecture(
        name=name,
        vocabulary=other.pop("vocabulary", 128_256),
        context=131_072,
        width=width,
        heads=heads,
        kv_heads=other.pop("kv_heads", 8),
        head_size=size,
        gate_width=gate,
        norm_epsilon=1e-5,
        layers=(layer,) * layers,
        attention_scale=size**-0.5,
        **other,
    )


LLAMA_1B = llama("Llama-3.2-1B", 16, 2048, 32, 8192, head_size=64, tied_embeddings=True)
LLAMA_8B = llama("Llama-3.1-8B", 32, 4096, 32, 14336)
QWEN_8B = llama("Qwen3-8B", 36, 4096, 32, 12288, vocabulary=151_936, query_key_norm="head")
QWEN_30B = llama(
    "Qwen3-30B-A3B",
    48,
    2048,
    32,
    6144,
    kv_heads=4,
    vocabulary=151_936,
    query_key_norm="head",
    experts=Experts(128, 8, 768),
)
SMALL = llama("small", 2, 256, 4, 512, head_size=64, kv_heads=2, vocabulary=500)
TINY = llama("tiny", 1, 64, 2, 128, head_size=32, kv_heads=1, vocabulary=300)
TINY_MIXTURE = llama(
    "tiny mixture",
    1,
    64,
    2,
    128,
    head_size=32,
    kv_heads=1,
    vocabulary=300,
    experts=Experts(4, 2, 32),
)

FULL_SIZES = Sizes(
    models=(
        (LLAMA_1B, "BF16"),
        (LLAMA_8B, "BF16"),
        (LLAMA_8B, "E4M3"),
        (LLAMA_8B, "Q4_1"),
        (LLAMA_8B, "Q4_K"),
        (LLAMA_8B, "Q8_0"),
        (QWEN_8B, "BF16"),
    ),
    mixture=(QWEN_30B, "MXFP4"),
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256),
    contexts=(512, 2048, 8192, 32768),
    prompts=(512, 2048, 8192, 32768),
    rounds=10,
    read=1 << 34,
    square=8192,
    requests=256,
    asked=1024,
    rates=(0.25, 0.5, 0.75, 0.9),
    kv_tokens=1 << 20,
)
TINY_SIZES = Sizes(
    models=((TINY, "BF16"), (TINY, "Q4_1")),
    mixture=(TINY_MIXTURE, "BF16"),
    batches=(1, 2),
    contexts=(16,),
    prompts=(4,),
    rounds=1,
    read=1 << 12,
    square=16,
    requests=2,
    asked=2,
    rates=(0.5,),
    kv_tokens=256,
)


def random_weights(model: Architecture, format: str, seed: int = 0) -> dict[str, Tensor]:
    """Weights of small values. Weights of one shape share their bytes on the host."""
    random = np.random.default_rng(seed)
    made: dict[tuple[int, int, str], Tensor] = {}
    found = {}
    for name, (rows, columns) in expected_shapes(model).items():
        kind = format
        if rows == 1:
            kind = "F32"
        elif name.endswith("router") or columns % BLOCKS[format][0]:
            kind = "BF16"
        key = rows, columns, kind
        if key not in made:
            made[key] = random_tensor(random, kind, rows, columns)
        found[name] = made[key]
    return found


def random_tensor(random: np.random.Generator, format: str, rows: int, columns: int) -> Tensor:
    """A weight whose products neither vanish nor explode."""
    size = 1.0 if rows == 1 else columns**-0.5
    if format in KINDS:
        some = random.standard_normal(min(PATTERN, rows * columns)).astype(np.float32) * size
        some = 1 + 0.1 * some if rows == 1 else some
        return Tensor(format, rows, columns, tiled(some.astype(KINDS[format]), rows, columns))
    values, bytes_a_block = BLOCKS[format]
    count = min(PATTERN // values, rows * columns // values)
    blocks = random.integers(0, 256, (count, bytes_a_block), np.uint8)
    if format == "E4M3":
        blocks &= 0xBF  # below 2, and no NaN
    if format == "MXFP4":
        blocks[:, 0] = 127 + round(math.log2(size / 2.7))
    for at, kind, factor in SCALES.get(format, ()):
        scale = np.array(size * factor, kind)
        blocks[:, at : at + scale.nbytes] = np.frombuffer(scale.tobytes(), np.uint8)
    return Tensor(format, rows, columns, tiled(blocks, rows, columns // values))


def tiled(pattern: NDArray[Any], rows: int, units: int) -> NDArray[np.uint8]:
    """The pattern's units over and over: uint8 [rows, units · bytes of a unit]."""
    unit = pattern.nbytes // len(pattern)
    data = np.resize(pattern.reshape(len(pattern), -1).view(np.uint8), (rows * units, unit))
    return data.reshape(rows, units * unit)


def loaded(
    model: Architecture, format: str, kv: KVLayout, seed: int = 0, *, invariant: bool = False
) -> CUDABackend:
    """A random model on the device; its products are measured there with more time than a start
    has."""
    on = replace(found_device(), invariant=invariant)
    choices = device_choices(on)
    choices.left = MEASURING
    weights = random_weights(model, format, seed)
    return CUDABackend(decoder_program(model), weights, kv, on, choices)


def token_bytes(model: Architecture, kv: str = "f16") -> int:
    """Bytes of one token's KV."""
    size = model.head_size * 2 if kv == "f16" else model.head_size + 4
    return 2 * size * model.kv_heads * len(model.layers)


def read_bytes(model: Architecture, format: str, rows: int = 1) -> float:
    """Bytes of the weights that a step of `rows` rows must read once."""
    values, size = BLOCKS[format]
    shared = matrix_values(model, experts=False)
    chosen = 0.0
    if model.experts is not None:
        count, a_row = model.experts.count, model.experts.chosen
        met = count * (1 - (1 - a_row / count) ** rows)  # experts, if rows choose by chance
        chosen = met / count * (matrix_values(model, experts=True) - shared)
    return (shared + chosen) * size / values


def matrix_values(model: Architecture, *, experts: bool) -> int:
    """Values of all matrices that are multiplied; those of experts only where asked for."""
    return sum(
        rows * columns
        for name, (rows, columns) in expected_shapes(model).items()
        if rows > 1
        and (name != "embedding" or model.tied_embeddings)
        and (experts or ".experts." not in name)
    )


def step_batch(
    spans: Sequence[tuple[int, int]],
    vocabulary: int,
    tables: NDArray[np.int32] | None = None,
    block: int = BLOCK,
) -> Batch:
    """Rows (begin, count) of each sequence, the last of which is sampled.

    A sequence's blocks are a row of `tables`; without them they follow each other.
    """
    counts = np.array([count for _, count in spans])
    contexts = np.array([begin + count for begin, count in spans])
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    if tables is None:
        widest = -(-int(contexts.max()) // block)
        tables = np.arange(len(spans) * widest, dtype=np.int32).reshape(len(spans), widest)
    positions = np.concatenate([np.arange(begin, begin + count) for begin, count in spans])
    sequence = np.repeat(np.arange(len(spans)), counts)
    slots = tables[sequence, positions // block] * block + positions % block
    return Batch(
        tokens=np.random.default_rng(len(spans)).integers(0, vocabulary, len(slots), np.int32),
        positions=positions.astype(np.int32),
        slots=slots.astype(np.int32),
        row_starts=starts,
        context_lengths=contexts.astype(np.int32),
        block_tables=tables,
        sampled_rows=(starts[1:] - 1).astype(np.int32),
        sampling=sampling(len(spans)),
    )


def ragged_steps(
    depths: Sequence[int], vocabulary: int, block: int = BLOCK, fresh: int = 40
) -> list[Batch]:
    """Three steps of sequences whose blocks are scattered: first prompts of these depths but for
    those of 0, then their next tokens beside `fresh` of the others, then all decode."""
    count, widest = len(depths), -(-(max(depths) + 64) // block)
    blocks = np.random.default_rng(0).permutation(count * widest).astype(np.int32)
    tables = blocks.reshape(count, widest)
    old = [index for index, depth in enumerate(depths) if depth]
    mixed = [(depth, 1 + index % 3) if depth else (0, fresh) for index, depth in enumerate(depths)]
    return [
        step_batch([(0, depths[index]) for index in old], vocabulary, tables[old], block),
        step_batch(mixed, vocabulary, tables, block),
        step_batch([(begin + rows, 1) for begin, rows in mixed], vocabulary, tables, block),
    ]


def pool_of(depths: Sequence[int], block: int = BLOCK, kv: KVType = "f16") -> KVLayout:
    """The blocks that `ragged_steps` uses."""
    return KVLayout(len(depths) * -(-(max(depths) + 64) // block), block, kv)


def sampling(samples: int, **chosen: float) -> SamplingRows:
    """Greedy rows, but for what is given."""
    zeros = np.zeros(samples, np.float32)
    return SamplingRows(
        temperature=zeros + np.float32(chosen.get("temperature", 0.0)),
        top_k=np.full(samples, chosen.get("top_k", 0), np.int32),
        top_p=zeros + np.float32(chosen.get("top_p", 1.0)),
        min_p=zeros + np.float32(chosen.get("min_p", 0.0)),
        uniform=zeros + np.float32(0.5),
        target=np.full(samples, -1, np.int32),
        ranked=int(chosen.get("ranked", 0)),
    )
