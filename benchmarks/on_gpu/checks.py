"""Every kernel against the truth: float32 on the host (`backends.reference`), or float64.

Steps are ragged, and everything that a kernel should write holds NaN before. An error is
|out - truth| / |truth|; in the interpreter, which computes in float32, the bound is tighter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.runtime import sampling as definition
from headrace.runtime.backends import reference
from headrace.runtime.backends.base import Batch, Edits, KVLayout, KVType, Masks, SamplingRows
from headrace.runtime.backends.cuda import CUDABackend, found_device
from headrace.runtime.backends.cuda.products import LEVELS, multiply, ways
from headrace.runtime.backends.cuda.sampling import sample
from headrace.runtime.backends.cuda.staging import Staging
from headrace.runtime.backends.cuda.weights import upload
from headrace.runtime.backends.devices import interpreted
from headrace.runtime.models.architecture import Architecture, Experts, Rope
from headrace.runtime.models.assembly import decoder_program
from headrace.runtime.models.checkpoint import load_checkpoint
from headrace.runtime.models.program import (
    Attention,
    Embed,
    Linear,
    Logits,
    Norm,
    Op,
    Program,
    Result,
    RotateAndWrite,
)
from headrace.runtime.weights.tensor import BLOCKS, Tensor

from .run import Line, Run, error_of
from .shapes import (
    BLOCK,
    SMALL,
    TINY,
    TINY_MIXTURE,
    llama,
    loaded,
    pool_of,
    ragged_steps,
    random_tensor,
    random_weights,
    step_batch,
)

BF16, CODES, EXACT = 1e-2, 4e-2, 1e-5  # bounds: of bfloat16, of rows rounded to E4M3, of float32


@dataclass(frozen=True, slots=True)
class Check:
    """`error` computes how far off it is; `bound` of a chip."""

    name: str
    error: Callable[[], float]
    bound: float = BF16


def checks(run: Run) -> Iterator[Line]:
    """This process's share of all checks, a line each."""
    for check in all_checks(run)[run.share :: run.shares]:
        if run.left < 0:
            yield {"check": check.name, "right": False, "error": "no time left"}
            continue
        bound = EXACT if interpreted() else check.bound
        try:
            error = check.error()
        except Exception as fault:
            yield {"check": check.name, "right": False, "error": repr(fault)[:500]}
            continue
        yield {"check": check.name, "right": error < bound, "error": error, "bound": bound}


def all_checks(run: Run) -> list[Check]:
    """What is checked, the dearest to compile spread over the list."""
    found = [*attention_checks(), *product_checks(), *model_checks(), *sampling_checks()]
    if not interpreted():
        bounds: dict[KVType, float] = {"f16": BF16, "int8": 3e-2, "fp8": 6e-2}
        found += [
            Check(f"attention of {count} entries, {kv} KV", partial(long_error, count, kv), bound)
            for count in (4096, 32_768)
            for kv, bound in bounds.items()
        ]
    if run.model is not None:
        found.append(Check(f"logits of {run.model.name}", partial(real_error, run), 3e-2))
    return found


def poison(backend: CUDABackend) -> None:
    """NaN wherever a step writes, and in the KV that it must not read."""
    model = backend.model
    written = [*model.buffers.values(), model.logits, model.partial_sums, model.partial_stats]
    written += [one for one in (model.cache.keys, model.cache.values) if one.is_floating_point()]
    for one in written:
        one.fill_(float("nan"))


def compared(
    program: Program, weights: dict[str, Tensor], kv: KVLayout, steps: list[Batch]
) -> float:
    """The worst error of some steps; each runs as often as it takes to be captured and replayed."""
    ours = CUDABackend(program, weights, kv, found_device())
    theirs = reference.load(program, weights, kv, 1)
    poison(ours)
    worst = 0.0
    for step in steps:
        truth = theirs.logits(step)
        for _ in range(1 if interpreted() else 3):
            for one in (*ours.model.buffers.values(), ours.model.logits):
                one.fill_(float("nan"))
            error = error_of(ours.logits(step), truth)
            worst = max(worst, error if error == error else float("inf"))
    ours.close()
    return worst


def attention_checks() -> Iterator[Check]:
    """Head sizes, groups, windows, caps, sinks, blocks and forms of KV, on ragged steps."""
    size = 32 if interpreted() else 64
    plain: dict[str, Any] = {"size": size, "heads": 4, "kv_heads": 2}
    cases: list[dict[str, Any]] = [plain]
    if not interpreted():
        cases += [{**plain, "size": size} for size in (80, 96, 128, 256)]
        cases += [{**plain, "heads": 2 * group} for group in (1, 3, 4, 5, 6, 7, 8)]
        cases += [{**plain, "block": block} for block in (1, 16, 64, 256)]
        cases += [{**plain, "window": 70}, {**plain, "cap": 30.0}, {**plain, "sinks": True}]
        cases += [{**plain, "size": 128, "heads": 8, "window": 300, "cap": 20.0, "sinks": True}]
    kinds: tuple[KVType, ...] = ("f16", "fp8") if interpreted() else ("f16", "int8", "fp8")
    for kv in kinds:
        both = [plain, {**plain, "size": 128, "heads": 16}]
        for case in cases if kv == "f16" or interpreted() else both:
            name = ", ".join(f"{key} {value}" for key, value in case.items())
            yield Check(f"attention, {name}, {kv} KV", partial(attention_error, kv, **case))
        for heads in (8,) if interpreted() else (2, 8, 16):
            name = f"the bits of decodes that share a prefix, {heads} heads, {kv} KV"
            yield Check(name, partial(sharing_error, kv, heads))


def attention_error(kv: KVType, size: int, heads: int, kv_heads: int, **other: Any) -> float:
    """Attention over what it wrote itself, in steps of prefill, chunks and decodes together."""
    block = other.get("block", BLOCK)
    program = attention_program(size, heads, kv_heads, layers=1, **other)
    random = np.random.default_rng(size + heads)
    weights = {
        "table": float32(random.standard_normal((60, program.buffers["qkv"]), np.float32)),
        "sinks": float32(random.standard_normal((1, heads), np.float32)),
    }
    depths = (3, 0, 9) if interpreted() else (300, 17, 0, 700, 260)
    steps = ragged_steps(depths, 60, block, 4 if interpreted() else 40)
    return compared(program, weights, pool_of(depths, block, kv), steps)


def attention_program(
    size: int, heads: int, kv_heads: int, layers: int, *, writes: bool = True, **other: Any
) -> Program:
    """Attention of so many layers, each over its own KV, and next to nothing else.

    `writes` off: what the KV holds stays there. `other`: window, cap, sinks.
    """
    rope = Rope(tuple(10_000.0 ** -np.linspace(0, 1, size // 2)), interleaved=False)
    ops: list[Op] = [Embed("qkv", "table")]
    for layer in range(layers):
        shape = (layer, heads, kv_heads, size)
        if writes:
            ops.append(RotateAndWrite("qkv", *shape, rope))
        ops.append(
            Attention(
                "attended",
                "qkv",
                *shape,
                scale=size**-0.5,
                window=other.get("window", 0),
                cap=other.get("cap", 0.0),
                sinks="sinks" if other.get("sinks") else None,
            )
        )
    ops.append(Result("attended"))
    width = heads * size
    buffers = {"qkv": width + 2 * kv_heads * size, "attended": width}
    return Program(tuple(ops), buffers, width, layers, kv_heads, size)


def sharing_error(kv: KVType, heads: int) -> float:
    """Whether decodes behind a common prefix have, to the bit, what they have behind copies of it:
    0 or 1."""
    depth, streams, size = (512, 4, 32) if interpreted() else (4096, 40, 128)
    program = attention_program(size, heads, 2, layers=1, writes=False)
    table = np.random.default_rng(3).standard_normal((60, program.buffers["qkv"]), np.float32)
    common, widest = depth // BLOCK, (depth + 4 * streams) // BLOCK + 1
    pool = KVLayout(widest * streams, BLOCK, kv)
    backend = CUDABackend(program, {"table": float32(table)}, pool, found_device())
    copies = np.arange(pool.blocks, dtype=np.int32).reshape(streams, widest)
    shared = copies.copy()
    shared[:, :common] = copies[0, :common]
    for one in backend.model.cache.tensors:
        if one is not None:
            some = torch.rand(one.shape, device=one.device)
            one.copy_(some if one.is_floating_point() else some * 100)
            rows = one.view(one.shape[0], streams, widest * BLOCK, *one.shape[2:])
            rows[:, 1:, :depth] = rows[:, :1, :depth]
    spans = [(depth + 3 * stream, 1) for stream in range(streams)]
    together, apart = (backend.logits(step_batch(spans, 60, tables)) for tables in (shared, copies))
    backend.close()
    return float(not np.array_equal(together, apart))


def float32(values: NDArray[np.float32]) -> Tensor:
    """A weight of these values."""
    rows, columns = values.shape
    return Tensor("F32", rows, columns, np.ascontiguousarray(values).view(np.uint8))


def long_error(entries: int, kv: KVType) -> float:
    """Decodes over much KV against float64 on the device, which reads what the cache holds."""
    program = attention_program(128, 8, 2, layers=1)
    random = np.random.default_rng(entries)
    table = random.standard_normal((60, program.buffers["qkv"])).astype(np.float32)
    prompt = step_batch([(0, entries)], 60)
    backend = CUDABackend(
        program,
        {"table": float32(table)},
        KVLayout(2 * entries // BLOCK, BLOCK, kv),
        found_device(),
    )
    backend.logits(prompt)
    actual = torch.from_numpy(backend.logits(step_batch([(entries, 1)], 60)))[-1].view(2, 4, 128)
    keys, values = cached(backend, entries + 1)
    queries = backend.model.buffers["qkv"][0, : 8 * 128].view(2, 4, 128).double()
    shares = (torch.einsum("kgd,tkd->kgt", queries, keys) * 128**-0.5).softmax(dim=2)
    truth = torch.einsum("kgt,tkd->kgd", shares, values)
    return error_of(actual.numpy(), truth.cpu().numpy())


def cached(backend: CUDABackend, entries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first keys and values that the cache holds, float64 [entries, kv_heads, head_size]."""
    layer = backend.model.cache.layer(0)
    found = []
    for codes, scales in ((layer.keys, layer.key_scales), (layer.values, layer.value_scales)):
        some = codes[:entries]
        if some.dtype == torch.uint8:
            some = some.view(torch.float8_e4m3fn)
        wide = some.float().double()
        found.append(wide if scales is None else wide * scales[:entries, :, None].double())
    return found[0], found[1]


def product_checks() -> Iterator[Check]:
    """Every way to multiply by every format, and every format in a program of its own."""
    for format in ("BF16", "E4M3") if interpreted() else sorted(BLOCKS):
        yield Check(f"every product of {format}", partial(product_error, format))
        bound = CODES if format == "E4M3" else BF16
        yield Check(f"a linear of {format}", partial(linear_error, format), bound)


def product_error(format: str) -> float:
    """The worst way, at its most rows and at fewer; without the library's, in the interpreter."""
    tensor = random_tensor(np.random.default_rng(1), format, 96, 1024)
    truth = torch.from_numpy(tensor.float32()).double()
    on = found_device()
    weight = upload([tensor], on.dtype, Staging(on.device))
    worst = 0.0
    for level in LEVELS[:1] if interpreted() else LEVELS:
        source = torch.randn(level, 1024, dtype=on.dtype, device=on.device)
        expected = source.cpu().double() @ truth.T
        for _, way in ways(weight, level, on.processors, invariant=False):
            for rows in (level, level // 2 + 1):
                out = torch.full((rows, 96), float("nan"), dtype=on.dtype, device=on.device)
                multiply(way, source[:rows], weight, None, out)
                error = error_of(out.float().cpu().numpy(), expected[:rows].numpy())
                worst = max(worst, error if error == error else float("inf"))
    return worst


def linear_error(format: str) -> float:
    """Two weights and their biases on top of each other, after a norm; few rows and more."""
    columns, rows = 512, (3, 17) if interpreted() else (1, 5, 17, 70, 300)
    ops = (
        Embed("residual", "table"),
        Norm("x", "residual", "norm", 1e-5),
        Linear("y", "x", ("first", "second"), ("bias",)),
        Logits("y", "identity"),
    )
    program = Program(ops, {"residual": columns, "x": columns, "y": 96}, 96, 1, 1, 32)
    random = np.random.default_rng(2)
    weights = {
        "table": random_tensor(random, "BF16", 60, columns),
        "norm": random_tensor(random, "F32", 1, columns),
        "first": random_tensor(random, format, 64, columns),
        "second": random_tensor(random, format, 32, columns),
        "bias": random_tensor(random, "F32", 1, 96),
        "identity": float32(np.eye(96, dtype=np.float32)),
    }
    steps = [step_batch([(0, 1)] * count, 60) for count in rows]
    return compared(program, weights, KVLayout(max(rows)), steps)


def model_checks() -> Iterator[Check]:
    """Whole small models, in every form of KV, and some formats; mixtures of experts."""
    small = TINY if interpreted() else SMALL
    experts = replace(
        llama("mixture", 2, 256, 4, 512, head_size=64, kv_heads=2, vocabulary=500),
        experts=Experts(8, 2, 128),
    )
    mixture = TINY_MIXTURE if interpreted() else experts
    mixture = replace(mixture, layers=tuple(replace(one, experts=True) for one in mixture.layers))
    normed = replace(small, query_key_norm="head", tied_embeddings=True)
    cases: list[tuple[str, Architecture, str, KVType, float]] = [
        ("a model", small, "BF16", "f16", 2e-2),
        ("a model", small, "BF16", "int8", 4e-2),
        ("a model", small, "BF16", "fp8", 8e-2),
        ("a model", small, "Q4_1", "f16", 2e-2),
        ("a model", small, "E4M3", "f16", 8e-2),
        ("normed heads", normed, "BF16", "f16", 2e-2),
        ("experts", mixture, "BF16", "f16", 3e-2),
        ("experts", mixture, "MXFP4", "f16", 3e-2),
    ]
    for name, model, format, kv, bound in cases[::4] if interpreted() else cases:
        error = partial(model_error, model, format, kv)
        yield Check(f"{name}, {format}, {kv} KV", error, bound)
    yield Check("the same bits in any company", invariance_error, 0.5)


def model_error(model: Architecture, format: str, kv: KVType) -> float:
    """Logits of prefill, of chunks beside decodes, and of decodes."""
    depths = (3, 0) if interpreted() else (300, 0, 17, 130)
    program, weights = decoder_program(model), random_weights(model, format)
    return compared(
        program, weights, pool_of(depths, kv=kv), ragged_steps(depths, model.vocabulary)
    )


def invariance_error() -> float:
    """0 where a row of an invariant model has the bits that it has alone."""
    model = TINY if interpreted() else SMALL
    backend = loaded(model, "BF16", KVLayout(256), invariant=True)
    others = 3 if interpreted() else 90
    alone = step_batch([(0, 7)], model.vocabulary)
    company = step_batch(
        [(0, 7), *[(0, 1 + index % 3) for index in range(others)]], model.vocabulary
    )
    company.tokens[:7] = alone.tokens
    return float(not np.array_equal(backend.logits(alone)[0], backend.logits(company)[0]))


def real_error(run: Run) -> float:
    """Logits of a model from a file: a prompt, and a token after it."""
    if run.model is None:
        raise ValueError("no model was given")
    found = load_checkpoint(run.model)
    program = decoder_program(found.architecture)
    steps = ragged_steps((40, 0), found.architecture.vocabulary)
    return compared(program, dict(found.weights), pool_of((40, 0)), steps)


def sampling_checks() -> Iterator[Check]:
    """The device chooses what `runtime.sampling` defines."""
    for seed in range(2 if interpreted() else 8):
        yield Check(f"sampling {seed}", partial(sampling_error, seed), 0.02)


def sampling_error(seed: int) -> float:
    """The share of rows with another token; a few are on the edge between two, by rounding."""
    random = np.random.default_rng(seed)
    samples, vocabulary = (9, 700) if interpreted() else (64, 128_256)
    logits = np.round(random.standard_normal((samples, vocabulary)) * 3, 1).astype(np.float32)
    rows = SamplingRows(
        temperature=random.choice([0, 0.3, 1, 2], samples).astype(np.float32),
        top_k=random.choice([0, 1, 3, 50], samples).astype(np.int32),
        top_p=random.choice([0.01, 0.5, 0.95, 1], samples).astype(np.float32),
        min_p=random.choice([0, 0, 0.01, 0.5, 1], samples).astype(np.float32),
        uniform=random.random(samples, np.float32),
        target=np.where(random.random(samples) < 0.2, 7, -1).astype(np.int32),
        ranked=5 * (seed % 2),
        edits=Edits(
            starts=np.arange(samples + 1, dtype=np.int32),
            tokens=random.integers(0, vocabulary, samples).astype(np.int32),
            divisors=random.uniform(1, 2, samples).astype(np.float32),
            addends=random.choice([-1, 3, -np.inf], samples).astype(np.float32),
        ),
        masks=Masks(
            random.integers(-1, 2, samples).astype(np.int32),
            random.integers(0, 2**32, (2, -(-vocabulary // 32)), np.uint32),
        ),
    )
    actual = sample(torch.from_numpy(logits).to(found_device().device), rows)
    expected = definition.sample(logits, rows)
    return float(np.mean(actual.tokens.cpu().numpy() != expected.tokens))
