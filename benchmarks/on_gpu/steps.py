"""Whole steps of models of published shapes: decode by batch and context, prefill by length.

Of decode the floor is the bytes that must be read (weights once, KV of every stream) over the
bandwidth of this run, of prefill the products over the rate of this run. `share` is the floor over
the time from launch to tokens, `device` that over a replay alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from headrace.runtime.backends.base import KVLayout
from headrace.runtime.backends.cuda import CUDABackend
from headrace.runtime.models.architecture import Architecture

from .run import Line, Run, free_memory
from .shapes import (
    BLOCK,
    loaded,
    matrix_values,
    read_bytes,
    step_batch,
    token_bytes,
)

SPARE = 6e9  # bytes left for what a step needs beside weights and KV


def decode(run: Run) -> Iterator[Line]:
    """Every model; of the first two all batches and contexts, of the others fewer."""
    for index, (model, format) in enumerate(run.sizes.models):
        if run.left < 15:
            yield {"decode": f"{model.name} {format}", "skipped": "no time left"}
            continue
        began = time.monotonic()
        backend = on_device(run, model, format)
        yield loading(model, format, time.monotonic() - began, backend)
        contexts = run.sizes.contexts if index < 2 else run.sizes.contexts[1:2]
        for context in contexts or run.sizes.contexts:
            for streams in run.sizes.batches:
                if streams * (context + BLOCK) <= backend.kv.blocks * BLOCK and run.left > 5:
                    yield decoded(run, backend, model, format, (streams, context))
        if index == 1:
            yield overhead(run, backend, model)
        backend.close()


def loading(model: Architecture, format: str, seconds: float, backend: CUDABackend) -> Line:
    """What it took to load, what is made of random values included."""
    weights = sum(one.bytes for one in backend.model.uploaded.values())
    return {
        "loaded": f"{model.name} {format}",
        "seconds": seconds,
        "GB/s": weights / seconds / 1e9,
        "KV tokens": backend.kv.blocks * BLOCK,
    }


def on_device(run: Run, model: Architecture, format: str) -> CUDABackend:
    """A random model with as much KV as fits beside it."""
    weights = read_bytes(model, format, 1 << 20) * 1.2 + model.vocabulary * model.width * 2
    spare = SPARE if run.device.type == "cuda" else 0
    room = max(free_memory(run.device) - weights - spare, 1 << 20)
    tokens = min(run.sizes.kv_tokens, int(room / token_bytes(model)))
    return loaded(model, format, KVLayout(tokens // BLOCK))


def decoded(
    run: Run, backend: CUDABackend, model: Architecture, format: str, size: tuple[int, int]
) -> Line:
    """One decode step."""
    streams, context = size
    batch = step_batch([(context - 1, 1)] * streams, model.vocabulary)
    whole, alone = run.step(backend, batch)
    read = read_bytes(model, format, streams) + streams * context * token_bytes(model)
    floor = read / run.ceilings.read
    return {
        "decode": f"{model.name} {format}",
        "streams": streams,
        "context": context,
        "ms": whole * 1e3,
        "tok/s": streams / whole,
        "share": floor / whole,
        "device": floor / alone,
    }


def overhead(run: Run, backend: CUDABackend, model: Architecture) -> Line:
    """What a captured step spares: the same step launched kernel by kernel."""
    batch = step_batch([(run.sizes.contexts[0] - 1, 1)], model.vocabulary)
    captured, alone = run.step(backend, batch)
    kept, backend.graphs.captured = backend.graphs.captured, {}
    backend.graphs.seen.clear()

    def launched() -> None:
        backend.graphs.seen.clear()
        backend.run(batch)

    eager = run.seconds(launched)
    backend.graphs.captured = kept
    return {
        "overhead": model.name,
        "captured ms": captured * 1e3,
        "replay ms": alone * 1e3,
        "launched ms": eager * 1e3,
    }


def prefill(run: Run) -> Iterator[Line]:
    """Prompts of one sequence, whole, and many short ones together; a mixture of experts too."""
    for model, format in (*run.sizes.models[1:4], run.sizes.mixture):
        if run.left < 15:
            yield {"prefill": f"{model.name} {format}", "skipped": "no time left"}
            continue
        backend = on_device(run, model, format)
        for spans in ([[(0, prompt)] for prompt in run.sizes.prompts]) + [
            [(0, run.sizes.prompts[0])] * 4
        ]:
            rows = sum(count for _, count in spans)
            if rows + BLOCK * len(spans) > backend.kv.blocks * BLOCK or run.left < 5:
                continue
            batch = step_batch(spans, model.vocabulary)
            whole, _ = run.step(backend, batch)
            yield {
                "prefill": f"{model.name} {format}",
                "prompts": len(spans),
                "tokens": rows,
                "ms": whole * 1e3,
                "tok/s": rows / whole,
                "share": operations(model, spans) / run.ceilings.products / whole,
            }
        backend.close()


def operations(model: Architecture, spans: list[tuple[int, int]]) -> float:
    """Of a prefill: products of every row with what it meets, and causal attention."""
    rows = sum(count for _, count in spans)
    values = matrix_values(model, experts=False) - model.vocabulary * model.width
    if model.experts is not None:
        experts = matrix_values(model, experts=True) - matrix_values(model, experts=False)
        values += experts * model.experts.chosen // model.experts.count
    attended = sum(count * count for _, count in spans)
    attention = 2 * attended * model.heads * model.head_size * len(model.layers)
    return 2.0 * rows * values + attention


def mixture(run: Run) -> Iterator[Line]:
    """Decode of a mixture of experts: the experts that rows choose by chance are read."""
    model, format = run.sizes.mixture
    backend = on_device(run, model, format)
    context = run.sizes.contexts[0]
    for streams in run.sizes.batches:
        if streams * (context + BLOCK) <= backend.kv.blocks * BLOCK and run.left > 5:
            yield decoded(run, backend, model, format, (streams, context))
    backend.close()
