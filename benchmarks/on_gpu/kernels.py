"""Single kernels at the shapes that models have, each with its share of what bounds it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from headrace.runtime.backends.base import KVLayout, KVType
from headrace.runtime.backends.cuda import CUDABackend, device_choices, found_device
from headrace.runtime.backends.cuda.choices import EventTimer
from headrace.runtime.backends.cuda.products import LEVELS, chosen, multiply
from headrace.runtime.backends.cuda.sampling import sample
from headrace.runtime.backends.cuda.staging import Staging
from headrace.runtime.backends.cuda.weights import DeviceWeight, upload
from headrace.runtime.models.architecture import Architecture
from headrace.runtime.weights.tensor import Tensor

from .checks import attention_program, float32
from .run import Line, Run, free_memory
from .shapes import BLOCK, random_tensor, sampling, step_batch

LAYERS = 8  # of attention in one step, each over its own KV, so that no cache holds it
MEASURING = 60.0


def products(run: Run) -> Iterator[Line]:
    """Every product of the models: by what, and how near the limit, at each level of rows.

    What is measured here is kept, and later phases go by it.
    """
    on = found_device()
    choices = device_choices(on)
    choices.left = min(MEASURING, run.left / 2)
    timer = EventTimer(on.device) if on.device.type == "cuda" else run.seconds
    random = np.random.default_rng(0)
    seen = set()
    for model, format in run.sizes.models:
        for outputs, inputs in product_shapes(model):
            if (outputs, inputs, format) in seen or run.left < 10:
                continue
            seen.add((outputs, inputs, format))
            tensor = random_tensor(random, format, outputs, inputs)
            weight = upload([tensor], on.dtype, Staging(on.device))
            for level in LEVELS if on.device.type == "cuda" else LEVELS[:1]:
                taken = chosen(weight, level, on.processors, on.dtype, choices)
                source = torch.randn(level, inputs, dtype=on.dtype, device=on.device)
                out = source.new_empty((level, outputs))
                spent = timer(lambda: multiply(taken, source, weight, None, out))  # noqa: B023
                yield {
                    "product": f"{outputs}x{inputs} {format}",
                    "rows": level,
                    "by": "cuBLAS" if taken is None else taken.name,
                    "us": spent * 1e6,
                    "share": product_floor(weight, level, run) / spent,
                }
    choices.close()


def product_shapes(model: Architecture) -> list[tuple[int, int]]:
    """Outputs and inputs of the packed products of a dense layer, and of the logits."""
    heads = (model.heads + 2 * model.kv_heads) * model.head_size
    return [
        (heads, model.width),
        (model.width, model.heads * model.head_size),
        (2 * model.gate_width, model.width),
        (model.width, model.gate_width),
        (model.vocabulary, model.width),
    ]


def product_floor(weight: DeviceWeight, rows: int, run: Run) -> float:
    """Seconds that a product takes at least: to read the weight, or to multiply."""
    operations = 2 * rows * weight.outputs * weight.inputs
    return max(weight.bytes / run.ceilings.read, operations / run.ceilings.products)


def attention(run: Run) -> Iterator[Line]:
    """Decodes: bytes of KV over the bandwidth. A prompt: operations over the rate."""
    sizes = run.sizes
    model = sizes.models[-1][0]
    shape = model.head_size, model.heads, model.kv_heads
    layers = LAYERS if run.device.type == "cuda" else 1
    program = attention_program(*shape, layers=layers, writes=False)
    table = {"table": table_of(program.buffers["qkv"])}
    kinds: tuple[KVType, ...] = ("f16", "int8", "fp8")
    for kv in kinds:
        a_token = 2 * model.kv_heads * (2 * model.head_size if kv == "f16" else model.head_size + 4)
        tokens = min(sizes.kv_tokens, int(free_memory(run.device) * 0.7 / (a_token * layers)))
        pool = KVLayout(tokens // BLOCK, BLOCK, kv)
        backend = CUDABackend(program, table, pool, found_device())
        for context in sizes.contexts:
            for streams in sizes.batches[:1] + sizes.batches[-3:]:
                if streams * (context + BLOCK) > tokens or run.left < 5:
                    continue
                batch = step_batch([(context - 1, 1)] * streams, 60)
                whole, alone = run.step(backend, batch)
                spent = (alone if alone == alone else whole) / layers
                yield {
                    "attention": f"{kv} KV",
                    "streams": streams,
                    "context": context,
                    "us": spent * 1e6,
                    "share": streams * context * a_token / run.ceilings.read / spent,
                }
        yield from sharing(run, backend, tokens, a_token, layers)
        for prompt in sizes.prompts[:3] if kv == "f16" else ():
            if prompt + BLOCK > tokens or run.left < 5:
                continue
            batch = step_batch([(0, prompt)], 60)
            spent = run.seconds(lambda: backend.forward(batch)) / layers  # noqa: B023
            operations = 4 * prompt * prompt / 2 * model.heads * model.head_size
            yield {
                "attention": "prompt",
                "tokens": prompt,
                "us": spent * 1e6,
                "share": operations / run.ceilings.products / spent,
            }
        backend.close()


def sharing(
    run: Run, backend: CUDABackend, tokens: int, a_token: int, layers: int
) -> Iterator[Line]:
    """Decodes behind one prefix: bytes of its KV, read once, over the bandwidth."""
    for context in run.sizes.contexts:
        for streams in run.sizes.batches[-2:]:
            common = (context - 1) // BLOCK
            if (common + streams) * BLOCK > tokens or run.left < 5:
                continue
            tables = np.empty((streams, common + 1), np.int32)
            tables[:, :common] = np.arange(common)
            tables[:, common] = common + np.arange(streams)
            batch = step_batch([(common * BLOCK, 1)] * streams, 60, tables)
            whole, alone = run.step(backend, batch)
            spent = (alone if alone == alone else whole) / layers
            yield {
                "attention": f"{backend.kv.dtype} KV, one prefix",
                "streams": streams,
                "context": context,
                "us": spent * 1e6,
                "share": (common * BLOCK + streams) * a_token / run.ceilings.read / spent,
            }


def table_of(width: int) -> Tensor:
    """Rows to embed."""
    return float32(np.random.default_rng(0).standard_normal((60, width)).astype(np.float32))


def choosing(run: Run) -> Iterator[Line]:
    """Sampling: greedy, everything at once, with log-probabilities; and what the host does."""
    vocabulary = run.sizes.models[-1][0].vocabulary
    ways: dict[str, dict[str, float]] = {
        "greedy": {},
        "sampled": {"temperature": 1.0},
        "sampled, cut": {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "min_p": 0.05},
        "greedy, 5 ranked": {"ranked": 5},
    }
    for rows in (run.sizes.batches[0], run.sizes.batches[-1]):
        logits = torch.randn(rows, vocabulary, device=run.device)
        for name, chosen_by in ways.items():
            spent = run.seconds(lambda: sample(logits, sampling(rows, **chosen_by)))  # noqa: B023
            least = logits.nbytes / run.ceilings.read
            yield {"sampling": name, "rows": rows, "us": spent * 1e6, "share": least / spent}
